"""All projected tables, found by their folders, in an order in which references point backwards only.

A folder of this package with a `fold.py` is a table: what stands there as TABLE. Nothing else names it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from pkgutil import iter_modules

from . import __name__ as _package
from . import __path__ as _folders
from .kit import Table


def ordered(tables: Iterable[Table]) -> tuple[Table, ...]:
    """Tables behind those that they refer to or are the twin of; else the oldest first, then by name.

    ValueError for a reference to a table that is not there, or tables that refer to each other.
    """
    waiting = sorted(tables, key=lambda table: (table.since, table.name))
    names = {table.name for table in waiting}
    found: dict[str, Table] = {}
    while waiting:
        ready = next((table for table in waiting if _needs(table) <= found.keys()), None)
        if ready is None:
            wrong = {t.name: sorted(_needs(t) - found.keys()) for t in waiting}
            unknown = sorted({need for needs in wrong.values() for need in needs} - names)
            raise ValueError(f"no table {', '.join(unknown)}" if unknown else f"tables refer to each other: {wrong}")
        found[ready.name] = ready
        waiting.remove(ready)
    return tuple(found.values())


def _needs(table: Table) -> set[str]:
    needs = {target for column in table.columns if (target := column.references) is not None}
    return (needs | ({table.twin} if table.twin else set())) - {table.name}


def _discovered() -> list[Table]:
    folders = [found.name for found in iter_modules(_folders) if found.ispkg]
    tables = [import_module(f"{_package}.{folder}.fold").TABLE for folder in folders]
    for folder, table in zip(folders, tables, strict=True):
        if folder != table.name:
            raise ValueError(f"projections/{folder} holds table {table.name}: folder and table have one name")
    return tables


TABLES: tuple[Table, ...] = ordered(_discovered())


def chosen(names: Collection[str] | None) -> tuple[Table, ...]:
    """Tables by name, in the order of all; None means all. ValueError when there is no such table."""
    if names is None:
        return TABLES
    unknown = set(names) - {table.name for table in TABLES}
    if unknown:
        raise ValueError(f"no table {', '.join(sorted(unknown))}; there are {', '.join(t.name for t in TABLES)}")
    return tuple(table for table in TABLES if table.name in names)


def with_references(tables: Sequence[Table]) -> tuple[Table, ...]:
    """These tables and those that they refer to: what a fold of them holds."""
    wanted = {table.name for table in tables}
    for table in reversed(TABLES):  # references point backwards
        if table.name in wanted:
            wanted |= {target for column in table.columns if (target := column.references) is not None}
    return chosen(wanted)
