"""Fills a generation: the events of some workflows, from their beginning, become final rows, by binary COPY.

All events of a workflow come in one part, so no row is read back, and what expired is never written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql

from engine.events import Delivered
from schemas.redaction import Redaction

from . import statements
from .catalog import TABLES, with_references
from .fold import Folded
from .generations import NAMES, QUERIES
from .kit import Table, hidden_from
from .references import references
from .store import GENERATION
from .wire import NULL

Connection = psycopg.Connection[Any]

#: Bytes handed to Postgres at a time, so that it works while the next rows are made.
_WRITE_BYTES = 64 * 1024
_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)


def fold_part(
    events: Iterable[Delivered], hidden: Sequence[tuple[int, Sequence[str]]], tables: Sequence[Table] = TABLES
) -> Folded:
    """The rows of some tables, and of those that they refer to. `hidden`: from which offsets on which fields are
    hidden, as `Snapshot.redactions`."""
    folded = Folded(with_references(tables))
    places = [(offset, Redaction(paths)) for offset, paths in hidden]
    for event in events:
        shown = hidden_from(event, places) if places else event
        folded.remove(shown)
        folded.add(shown)
    return folded


def write_part(
    connection: Connection,
    generation: str,
    folded: Folded,
    partition: int,
    buckets: Sequence[int],
    tables: Sequence[Table] = TABLES,
) -> int:
    """Write the rows of these tables and which part they are, in one transaction; how many rows. UniqueViolation, with
    nothing written, when another process was faster with this part."""
    count = sum(len(folded.rows[table.name]) for table in tables)
    with connection.transaction():
        place = {"name": generation, "partition": partition, "buckets": list(buckets), "rows": count}
        connection.execute(QUERIES["part"], place)  # first, so that of two writers the second waits here
        for table in tables:
            rows = list(folded.rows[table.name].values())
            if rows:
                copy_rows(connection, generation, table, rows)
    return count


def copy_rows(connection: Connection, generation: str, table: Table, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows that are not there yet into a table of a generation, by one COPY."""
    target = sql.Identifier(generation, table.name)
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in table.columns)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, names)
    fields = [statements.kind_of(column).field for column in table.columns]
    head = struct.pack(">h", len(fields))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        parts, size = [_HEADER], 0
        for row in rows:
            made = head + b"".join([NULL if v is None else f(v) for f, v in zip(fields, row, strict=True)])
            parts.append(made)
            size += len(made)
            if size >= _WRITE_BYTES:
                copy.write(b"".join(parts))
                parts, size = [], 0
        copy.write(b"".join([*parts, _TRAILER]))


def finish(connection: Connection, generation: str, definitions: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Make what a generation's tables lack of indexes and keys; yields the name of each when it is there.

    `definitions`: (name, statement). What is there already is left, so it may be called again after it was cut short.
    """
    for name, statement in definitions:
        if not present(connection, generation, name):
            connection.execute(statement.encode())
        yield name


def analyze(connection: Connection, generation: str, tables: Sequence[str]) -> None:
    """Let Postgres know what is in the tables, before anybody reads them."""
    named = sql.SQL(", ").join(sql.Identifier(generation, table) for table in tables)
    connection.execute(sql.SQL("ANALYZE {}").format(named))


def present(connection: Connection, generation: str, name: str) -> bool:
    """Whether an index or a key of this name is there."""
    there = connection.execute(
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %(schema)s AND c.relname = %(name)s UNION ALL"
        " SELECT 1 FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace"
        " WHERE n.nspname = %(schema)s AND c.conname = %(name)s",
        {"schema": generation, "name": name},
    ).fetchone()
    return there is not None


def indexes(connection: Connection, generation: str, tables: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    """Primary keys and indexes as the migrations make them, as statements for a generation of these tables."""
    found: list[tuple[str, str]] = []
    place = {"name": GENERATION, "tables": list(tables)}
    for table, index, key, made in connection.execute(QUERIES["indexes"], place).fetchall():
        if key is None:
            found.append((index, made.replace(f" ON {GENERATION}.", f' ON "{generation}".', 1)))
        else:
            found.append((key, f'ALTER TABLE "{generation}".{table} ADD CONSTRAINT {key} PRIMARY KEY (id)'))
    found.sort(key=lambda item: not item[1].startswith("ALTER"))
    return found


def definitions(connection: Connection, generation: str, tables: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    """What the migrations make beside the columns: `indexes`, and references between these tables. References that lead
    nowhere are emptied before: that is what live tables write."""
    found = indexes(connection, generation, tables)
    for one in references(connection, tables):
        if one.target in tables:
            both = sql.SQL("; ").join([one.emptied(generation, generation), one.made(generation)])
            found.append((one.key, both.as_string(connection)))
    return found
