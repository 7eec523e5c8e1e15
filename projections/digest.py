"""Digests of tables: equal exactly when the rows are, whatever their order.

A row's digest is SHA-256 over its columns' texts, each with its length before it; JSON and bytes go in by digests of
their own. The digest of a set of rows is the sum of theirs, so it can be told per bucket of workflows, and where two
tables differ is found in the buckets that do. Postgres and this program (`row_digest`) come to the same ones.

Everything is read in the transaction of the connection that is given: in one of REPEATABLE READ all of it is of one
moment. Nothing is kept in memory but sums and the differences that are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from . import statements
from .jsonb import jsonb_text
from .kit import Column, Table

#: Parts in which the workflows of a table are compared: a difference is looked for in one part of that many.
BUCKETS = 4_096
#: Differences told with their values; all rows that differ are counted.
SHOWN_MAX = 100
_DIGEST_BYTES = 16
_VALUE_SHOWN_MAX = 200
_FETCH_ROWS = 2_000

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A row or column in which a table differs. `column` is empty when a row is missing or extra."""

    table: str
    key: str
    column: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """How many rows there are, and the sum of their digests."""

    rows: int
    digest: str


NO_ROWS = Digest(rows=0, digest="0" * 2 * _DIGEST_BYTES)


@dataclass(slots=True)
class Differences:
    """Where two sets of tables differ. `rows`: how many rows, by table; only tables that differ are in it.

    `references`: rows that differ in nothing but a reference which is empty in one of them. Both may be right: one to a
    row that came later stays empty, if it was not there when its row was written.
    """

    rows: dict[str, int] = field(default_factory=dict)
    references: dict[str, int] = field(default_factory=dict)
    shown: list[Drift] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether no row differs."""
        return not self.rows


def row_digest(table: Table, row: Sequence[Any]) -> bytes:
    """Digest of a row in the form that folds use."""
    return reduced_digest(reduced(table, row))


def reduced(table: Table, row: Sequence[Any]) -> tuple[Any, ...]:
    """The row with digests in the place of JSON and bytes, which may be long."""
    values = list(row)
    for place, column in enumerate(table.columns):
        value = values[place]
        if value is not None and column.kind in ("jsonb", "bytea"):
            data = jsonb_text(value).encode() if column.kind == "jsonb" else value
            values[place] = sha256(data).hexdigest()
    return tuple(values)


def reduced_digest(row: Sequence[Any]) -> bytes:
    """Digest of a row that is `reduced`."""
    parts = []
    for value in row:
        if value is None:
            parts.append("-")
            continue
        text = str(value) if type(value) is not bool else "true" if value else "false"
        parts.append(f"{len(text)}:{text}")
    return sha256("".join(parts).encode()).digest()[:_DIGEST_BYTES]


def bucket_of(workflow_id: str) -> int:
    """Bucket of a workflow's rows."""
    first = sha256(workflow_id.encode()).digest()[:2]
    return int.from_bytes(first, "big") * BUCKETS >> 16


def total(digests: Iterable[bytes]) -> Digest:
    """Digest of the rows with these digests."""
    rows = high = low = 0
    for one in digests:
        rows += 1
        high += int.from_bytes(one[:8], "big")
        low += int.from_bytes(one[8:], "big")
    return _digest(rows, high, low)


def digest(
    connection: Connection, schema: str, tables: Sequence[Table], *, leaving_out: Sequence[str] = ()
) -> dict[str, Digest]:
    """By table; without the rows of the workflows in `leaving_out`."""
    found: dict[str, Digest] = {}
    for table in tables:
        statement = sql.SQL("SELECT count(*), coalesce(sum(high), 0), coalesce(sum(low), 0) FROM ({}) AS d").format(
            _halves(schema, table)
        )
        row = connection.execute(statement, {"without": list(leaving_out)}).fetchone()
        assert row is not None
        found[table.name] = _digest(*map(int, row))
    return found


def by_bucket(
    connection: Connection, schema: str, table: Table, *, leaving_out: Sequence[str] = ()
) -> dict[int, Digest]:
    """By bucket of workflows; buckets without rows are left out."""
    statement = sql.SQL("SELECT bucket, count(*), sum(high), sum(low) FROM ({}) AS d GROUP BY bucket").format(
        _halves(schema, table)
    )
    rows = connection.execute(statement, {"without": list(leaving_out)})
    return {bucket: _digest(int(count), int(high), int(low)) for bucket, count, high, low in rows}


def row_digests(
    connection: Connection, schema: str, table: Table, *, first: int, end: int, ids: Sequence[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Key and digest of every row of the workflows in a range of buckets; of these only `ids`, where they are given."""
    statement = sql.SQL("SELECT id::text, digest FROM ({}) AS r WHERE bucket >= %(first)s AND bucket < %(end)s").format(
        _rows(schema, table, only=ids is not None)
    )
    with connection.cursor(name=f"digests_{table.name}", binary=True) as cursor:
        cursor.itersize = _FETCH_ROWS
        place = {"first": first, "end": end, "without": [], "ids": list(ids or ())}
        yield from cursor.execute(statement, place)


def differences(
    connection: Connection,
    first: str,
    second: str,
    tables: Sequence[Table],
    *,
    leaving_out: Sequence[str] = (),
    shown_max: int = SHOWN_MAX,
) -> Differences:
    """Where the tables in the schema `second` differ from those in `first`; `expected` tells what is in `first`.

    The positions of both should be equal, or the workflows of the records between them be left out.
    """
    found = Differences()
    for table in tables:
        one, other = (by_bucket(connection, schema, table, leaving_out=leaving_out) for schema in (first, second))
        buckets = sorted(b for b in one.keys() | other.keys() if one.get(b, NO_ROWS) != other.get(b, NO_ROWS))
        if buckets:
            place = {"buckets": buckets, "without": list(leaving_out)}
            _compare(connection, first, second, table, place, found, shown_max)
    return found


def compare_rows(table: Table, expected: Sequence[Any], found: Sequence[Any]) -> Iterator[Drift]:
    """Columns in which two rows of one key differ, in the form that folds use. Of JSON and bytes digests are told: what
    a policy hides in one of them is not shown by the other."""
    for column, want, have in zip(table.columns, reduced(table, expected), reduced(table, found), strict=True):
        if want != have:
            yield Drift(table=table.name, key=expected[0], column=column.name, expected=shown(want), found=shown(have))


def shown(value: Any) -> str:
    """A value, cut."""
    text = repr(value)
    return text if len(text) <= _VALUE_SHOWN_MAX else text[:_VALUE_SHOWN_MAX] + "..."


def _compare(
    connection: Connection,
    first: str,
    second: str,
    table: Table,
    place: Mapping[str, Any],
    found: Differences,
    shown_max: int,
) -> None:
    """Go through the rows of the buckets that differ, each with its like; Postgres joins them."""
    statement = sql.SQL(
        "SELECT coalesce(a.id, b.id)::text FROM ({}) AS a FULL JOIN ({}) AS b ON a.id = b.id"
        " WHERE a.digest IS DISTINCT FROM b.digest ORDER BY 1"
    ).format(_of_buckets(first, table), _of_buckets(second, table))
    rows = references = 0
    with connection.cursor(name="differing") as cursor:
        cursor.itersize = _FETCH_ROWS
        cursor.execute(statement, place)
        while keys := [key for (key,) in cursor.fetchmany(_FETCH_ROWS)]:
            pairs = [_read(connection, schema, table, keys) for schema in (first, second)]
            for key in keys:
                drifts = _told(table, key, *(rows_of.get(key) for rows_of in pairs))
                if not drifts:  # a number written in another way
                    continue
                if all(_empty_reference(table, drift) for drift in drifts):
                    references += 1
                    continue
                rows += 1
                if len(found.shown) < shown_max:
                    found.shown += drifts
    if rows:
        found.rows[table.name] = rows
    if references:
        found.references[table.name] = references


def _told(table: Table, key: str, want: Sequence[Any] | None, have: Sequence[Any] | None) -> list[Drift]:
    if want is not None and have is not None:
        return list(compare_rows(table, want, have))
    row, no_row = "a row", "no row"
    expected, found = (no_row, row) if want is None else (row, no_row)
    return [Drift(table=table.name, key=key, column="", expected=expected, found=found)]


def _empty_reference(table: Table, drift: Drift) -> bool:
    refers = any(c.name == drift.column and c.references is not None for c in table.columns)
    return refers and shown(None) in (drift.expected, drift.found)


def _read(connection: Connection, schema: str, table: Table, keys: list[str]) -> dict[str, tuple[Any, ...]]:
    shown_columns = sql.SQL(", ").join(sql.SQL(statements.shown(c)) for c in table.columns)
    statement = sql.SQL("SELECT {} FROM unnest(%(ids)s::uuid[]) AS k(id) JOIN {} t ON t.id = k.id").format(
        shown_columns, sql.Identifier(schema, table.name)
    )
    with connection.cursor(binary=True) as cursor:
        return {row[0]: row for row in cursor.execute(statement, {"ids": keys})}


def _of_buckets(schema: str, table: Table) -> sql.Composed:
    return sql.SQL("SELECT * FROM ({}) AS r WHERE bucket = ANY(%(buckets)s)").format(_rows(schema, table))


def _halves(schema: str, table: Table) -> sql.Composed:
    """Of each row: its bucket, and its digest as two numbers that can be summed."""
    return sql.SQL("SELECT bucket, {} AS high, {} AS low FROM ({}) AS r").format(
        _number(1), _number(9), _rows(schema, table)
    )


def _number(place: int) -> sql.Composed:
    """Eight bytes of a digest as a number from 0 on. Postgres has no cast from bytea before its version 18."""
    return sql.SQL(
        "((('x' || encode(substr(digest, {0}, 4), 'hex'))::bit(32)::bigint)::numeric * 4294967296"
        " + ('x' || encode(substr(digest, {0} + 4, 4), 'hex'))::bit(32)::bigint)"
    ).format(sql.Literal(place))


def _rows(schema: str, table: Table, *, only: bool = False) -> sql.Composed:
    """Of each row: id, bucket and digest."""
    chosen = "t.{owner} = ANY(%(ids)s::uuid[])" if only else "t.{owner} <> ALL(%(without)s::uuid[])"
    owner = table.columns[table.owner].name
    texts = sql.SQL(" || ").join(sql.SQL(_in_sql(c)) for c in table.columns)
    return sql.SQL(
        "SELECT id, (get_byte(h, 0) * 256 + get_byte(h, 1)) * {buckets} >> 16 AS bucket,"
        " substr(sha256(convert_to(texts, 'UTF8')), 1, {bytes}) AS digest"
        " FROM (SELECT t.id, sha256(convert_to(t.{owner}::text, 'UTF8')) AS h, {texts} AS texts FROM {table} t"
        " WHERE {chosen}) AS x"
    ).format(
        chosen=sql.SQL(chosen).format(owner=sql.Identifier(owner)),
        buckets=sql.Literal(BUCKETS),
        bytes=sql.Literal(_DIGEST_BYTES),
        owner=sql.Identifier(owner),
        texts=texts,
        table=sql.Identifier(schema, table.name),
    )


def _in_sql(column: Column) -> LiteralString:
    """A column's part of the text that is digested: as in `row_digest`."""
    text = _text_in_sql(column)
    return f"coalesce(length({text}) || ':' || {text}, '-')"


def _text_in_sql(column: Column) -> LiteralString:
    value = statements.shown(column)
    if column.kind == "jsonb":
        return f"encode(sha256(convert_to({value}, 'UTF8')), 'hex')"
    if column.kind == "bytea":
        return f"encode(sha256({value}), 'hex')"
    return f"({value})::text"


def _digest(rows: int, high: int, low: int) -> Digest:
    return Digest(rows=rows, digest=f"{high % 2**64:016x}{low % 2**64:016x}")
