"""Folds events into rows of all tables: the same code for the live projector, for `verify` and for a rebuild."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.events import Delivered

from .kit import Table, Touch

#: Per table: key to row.
Rows = dict[str, dict[str, Any]]


def touched(tables: Iterable[Table]) -> dict[type, list[tuple[str, Touch]]]:
    """Per record type: the tables it touches, and how."""
    found: dict[type, list[tuple[str, Touch]]] = {}
    for table in tables:
        for kind, touch in table.touches.items():
            found.setdefault(kind, []).append((table.name, touch))
    return found


def keys_of(events: Iterable[Delivered], plan: Mapping[type, list[tuple[str, Touch]]]) -> dict[str, set[str]]:
    """Per table: keys that these events touch."""
    keys: dict[str, set[str]] = {}
    for event in events:
        for name, touch in plan.get(type(event.record), ()):
            key = touch.key(event)
            if key is not None:
                keys.setdefault(name, set()).add(key)
    return keys


def fold(rows: Rows, events: Iterable[Delivered], plan: Mapping[type, list[tuple[str, Touch]]]) -> Rows:
    """Fold events on `rows` (changed in place); returns the rows that changed, per table."""
    changed: Rows = {}
    for event in events:
        for name, touch in plan.get(type(event.record), ()):
            key = touch.key(event)
            if key is None:
                continue
            table = rows.setdefault(name, {})
            before = table.get(key)
            after = touch.fold(before, event)
            if after is not None and after is not before:
                table[key] = after
                changed.setdefault(name, {})[key] = after
    return changed
