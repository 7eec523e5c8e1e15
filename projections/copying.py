"""Tables whose rows are written once: they go in by COPY, each row made while Postgres takes the one before.

A state goes to Postgres once: the row of a table with a `twin` takes it from the row that the same event made there,
which spares a second parse and compression (two thirds of the cost of such a row).

COPY knows no ON CONFLICT. A row that is there already makes it fail (UniqueViolation); the batch is then to be written
with `insert`, which leaves such a row as it is. Rows that expired are deleted; what referred to them then refers to
nothing (`ON DELETE SET NULL`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, LiteralString

import psycopg

from engine.events import Delivered

from . import statements
from .catalog import TABLES
from .kit import Table
from .wire import KINDS, Array, array

#: Fewer rows go in sooner by one statement than by COPY, which asks the server twice more.
COPY_ROWS_MIN = 16
#: Rows handed to Postgres at a time: some 32 KB of small states, so that it works while the next ones are made.
ROWS_PER_WRITE = 16

Connection = psycopg.Connection[Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL = "\\N"

#: A row, the table it goes into, and the key of the row that the same event made in the table's twin, if it did.
_Made = tuple[Table, Sequence[Any], str | None]
#: A statement and its parameters.
_Insert = tuple[LiteralString, dict[str, Array]]


@lru_cache(maxsize=64)  # rows of one batch are of few seconds
def _second(since_epoch: int) -> str:
    return (_EPOCH + timedelta(seconds=since_epoch)).strftime("%Y-%m-%d %H:%M:%S")


#: How COPY's text form shows what is no text. Not the binary form: Postgres does not measure its rows, so it begins to
#: compress and store them only when all are there, and nobody has anything left to do meanwhile.
_CELLS: dict[str, Callable[[Any], str]] = {
    "int4": str,
    "int8": str,
    "bool": lambda value: "t" if value else "f",
    "timestamptz": lambda value: f"{_second(value // 1_000_000)}.{value % 1_000_000:06d}+00",
}


def _liner(table: Table) -> Callable[[Sequence[Any]], str]:
    """Writes one row as a line. psycopg.DataError for a time that is none, as the server would say."""
    shapes = [_CELLS.get(statements.kind_of(column).type) for column in table.columns]

    def line(row: Sequence[Any]) -> str:
        try:
            cells = [
                _NULL if v is None else v if shape is None else shape(v) for shape, v in zip(shapes, row, strict=True)
            ]
        except OverflowError as error:
            raise psycopg.DataError(f"{table.name}: {error}") from error
        text = "\t".join(cells)
        plain = text.count("\\") == row.count(None) and text.count("\t") == len(cells) - 1
        if not plain or "\n" in text or "\r" in text:
            cells = [cell if v is None else _escaped(cell) for cell, v in zip(cells, row, strict=True)]
            text = "\t".join(cells)
        return text + "\n"

    return line


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _copy_statement(table: Table) -> LiteralString:
    names = ", ".join(f'"{c.name}"' for c in table.columns)
    return f"COPY {table.name} ({names}) FROM STDIN"


_ONCE = tuple(table for table in TABLES if table.written_once)
_INSERT = {table.name: statements.write(table) for table in _ONCE}
_FROM_TWIN = {table.name: statements.write_from_twin(table) for table in _ONCE if table.twin is not None}
_REFERENCES = {t.name: [i for i, c in enumerate(t.columns) if c.references is not None] for t in _ONCE}
_DELETE = {table.name: statements.delete(table) for table in _ONCE if table.removes}
#: Per record type: the tables from which it deletes, and how it says which rows.
_REMOVING: dict[type, list[tuple[str, Callable[[Any], Sequence[str]]]]] = {}
for _table in _ONCE:
    for _kind, _keys_of in _table.removes.items():
        _REMOVING.setdefault(_kind, []).append((_table.name, _keys_of))
#: The table whose rows are copied: the one that holds every state first.
_FIRST = next(table for table in _ONCE if table.name in {other.twin for other in _ONCE})
_COPY = _copy_statement(_FIRST)
_line = _liner(_FIRST)


def insert(connection: Connection, events: Iterable[Delivered]) -> None:
    """Write the rows that these events make, by one statement for each table."""
    _execute(connection, _inserts((table, row, None) for table, row, _ in _made(events)))


def copy(connection: Connection, events: Sequence[Delivered], meanwhile: Callable[[], None]) -> None:
    """Write the rows that these events make; UniqueViolation when one of them is there already.

    `meanwhile` is done once, when all rows are made and Postgres is still busy with them.
    """
    if sum(type(event.record) in _FIRST.touches for event in events) < COPY_ROWS_MIN:
        insert(connection, events)
        meanwhile()
        return
    ready: list[str] = []
    others: list[_Made] = []
    with connection.cursor() as cursor, cursor.copy(_COPY) as target:
        for made in _made(events):
            if made[0] is not _FIRST:
                others.append(made)
                continue
            ready.append(_line(made[1]))
            if len(ready) >= ROWS_PER_WRITE:
                target.write("".join(ready))
                ready.clear()
        target.write("".join(ready))
        inserts = list(_inserts(others))  # likewise meanwhile
        meanwhile()
    _execute(connection, inserts)


def parts(events: Sequence[Delivered]) -> list[Sequence[Delivered]]:
    """The events in parts, of each of which all rows may be made before any is deleted: a row that is deleted and made
    again begins a new part. One part, unless something expired in this batch and came again in it."""
    if not any(type(event.record) in _REMOVING for event in events):
        return [events]
    found: list[Sequence[Delivered]] = []
    first = 0
    gone: set[tuple[str, str]] = set()
    for number, event in enumerate(events):
        if gone and any(made in gone for made in _keys_made(event)):
            found.append(events[first:number])
            first = number
            gone.clear()
        gone.update((name, key) for name, keys in _keys_removed(event) for key in keys)
    return [*found, events[first:]]


def remove(connection: Connection, events: Iterable[Delivered]) -> bool:
    """Delete the rows that these events delete; whether there were such events."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for event in events:
        for name, keys in _keys_removed(event):
            rows.setdefault(name, []).extend((key, event.record.workflow_id) for key in keys)
    for name, found in rows.items():
        ids, owners = ([pair[place] for pair in found] for place in (0, 1))
        values = {"ids": array(KINDS["uuid"], ids), "owners": array(KINDS["uuid"], owners)}
        connection.execute(_DELETE[name], values)
    return bool(rows)


def _keys_removed(event: Delivered) -> Iterator[tuple[str, Sequence[str]]]:
    for name, keys_of in _REMOVING.get(type(event.record), ()):
        yield name, keys_of(event.record)


def _keys_made(event: Delivered) -> Iterator[tuple[str, str]]:
    for table in _ONCE:
        touch = table.touches.get(type(event.record))
        key = None if touch is None else touch.key(event)
        if key is not None:
            yield table.name, key


def _execute(connection: Connection, inserts: Iterable[_Insert]) -> None:
    with connection.pipeline():  # one answer for all statements
        for statement, parameters in inserts:
            connection.execute(statement, parameters)


def _inserts(made: Iterable[_Made]) -> Iterator[_Insert]:
    """Statements for these rows, in the order of the tables."""
    rows: dict[str, list[Sequence[Any]]] = {}
    twins: dict[str, list[tuple[Sequence[Any], str]]] = {}
    for table, row, twin in made:
        if twin is None:
            rows.setdefault(table.name, []).append(row)
        else:
            twins.setdefault(table.name, []).append((row, twin))
    for table in _ONCE:
        if table.name in rows:
            yield _INSERT[table.name], statements.parameters(table, rows[table.name])
        if table.name in twins:
            yield _FROM_TWIN[table.name], statements.twin_parameters(table, twins[table.name])


def _made(events: Iterable[Delivered]) -> Iterator[_Made]:
    """Rows in the order of the log, the first of each key."""
    seen: dict[str, set[str]] = {table.name: set() for table in _ONCE}
    for event in events:
        by_event: dict[str, str] = {}
        for table in _ONCE:
            touch = table.touches.get(type(event.record))
            key = None if touch is None else touch.key(event)
            if touch is None or key is None or key in seen[table.name]:
                continue
            seen[table.name].add(key)
            by_event[table.name] = key
            row = touch.fold(None, event)
            alone = table.twin is None or any(row[place] is not None for place in _REFERENCES[table.name])
            yield table, row, None if alone else by_event.get(table.twin or "")
