"""Folds events into rows of all tables: the same code for the live projector, for `verify` and for a rebuild."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """Fold events on `rows` (changed in place); returns the rows that changed, per table. Deletes nothing: `Folded`."""
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


class Folded:
    """The rows of all tables as a log makes them, with what Postgres does to references: `ON DELETE SET NULL`."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.rows: Rows = {table.name: {} for table in tables}
        #: How many were folded.
        self.events = 0
        #: References (table, key, column) that pointed to nothing when their row was made or changed: Postgres may
        #: have left them empty.
        self.loose: set[tuple[str, str, int]] = set()
        self._tables = {table.name: table for table in tables}
        self._plan = touched(tables)
        self._removing = [table for table in tables if table.removes]
        removable = {table.name for table in self._removing}
        self._references = {
            t.name: [(i, target) for i, c in enumerate(t.columns) if (target := c.references) is not None]
            for t in tables
        }
        #: Per table whose rows are deleted: key to the references that point to it.
        self._referrers: dict[str, dict[str, set[tuple[str, str, int]]]] = {name: {} for name in removable}

    def add(self, event: Delivered, *, passing_over: Iterable[str] = ()) -> Rows:
        """Fold an event; the rows it changed. Tables named in `passing_over` are left as they are."""
        self.events += 1
        changed: Rows = {}
        for name, touch in self._plan.get(type(event.record), ()):  # as `fold`, for one event alone
            key = touch.key(event)
            if key is None:
                continue
            rows = self.rows[name]
            before = rows.get(key)
            after = touch.fold(before, event)
            if after is not None and after is not before:
                rows[key] = after
                changed[name] = {key: after}
        for name in passing_over:
            for key in changed.pop(name, ()):
                del self.rows[name][key]
        for name, made in changed.items():
            if self._references[name]:
                for key, row in made.items():
                    self._refer(name, key, row)
        return changed

    def remove(self, event: Delivered) -> None:
        """Delete the rows that an event deletes."""
        for table in self._removing:
            keys_of_record = table.removes.get(type(event.record))
            if keys_of_record is None:
                continue
            rows = self.rows[table.name]
            for key in keys_of_record(event.record):
                if key in rows and rows[key][table.owner] == event.record.workflow_id:
                    del rows[key]
                    for reference in self._referrers[table.name].pop(key, ()):
                        self._empty(*reference)

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forget all rows but those of the workflows that are wanted."""
        for name, rows in self.rows.items():
            owner = self._tables[name].owner
            for key in [key for key, row in rows.items() if not wanted(row[owner])]:
                del rows[key]
                for references in self._referrers.values():
                    references.pop(key, None)
        self.loose = {place for place in self.loose if place[1] in self.rows[place[0]]}

    def _refer(self, name: str, key: str, row: Sequence[Any]) -> None:
        for index, target in self._references[name]:
            if row[index] is None:
                continue
            if row[index] not in self.rows[target]:
                self.loose.add((name, key, index))
            if target in self._referrers:
                self._referrers[target].setdefault(row[index], set()).add((name, key, index))

    def _empty(self, name: str, key: str, index: int) -> None:
        row = self.rows[name].get(key)
        if row is not None:
            values = list(row)
            values[index] = None
            self.rows[name][key] = self._tables[name].row(*values)
