"""Scratch schemas: the projected tables as a replay makes them, in a schema of their own, for questions in SQL.

Guarantees: nothing but a schema whose name begins with `kintsugi_replay_` is written, and never one that somebody else
made. It holds the rows that records of the range made or changed, with what tables and policy hide hidden; references
may lead to rows from before the range, so there are no foreign keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from projections import filling
from projections import generations as g
from projections.catalog import TABLES
from projections.kit import Table
from projections.parking import is_poison
from projections.parking import said as said_by
from projections.sql import blocks

from .replay_range import ReplayError

PREFIX = "kintsugi_replay_"
#: With the prefix within the 63 bytes of a name in Postgres.
NAME_CHARS_MAX = 40
#: Rows of one COPY, and about how many bytes: checkpoints hold whole states, of up to 10 MiB each.
_ROWS_MAX, _BYTES_MAX = 500, 16 * 1024 * 1024
_NAME = re.compile(rf"[a-z0-9_]{{1,{NAME_CHARS_MAX}}}")

QUERIES = blocks("ops", "replay.sql")


def schema_of(name: str) -> str:
    """The schema of a name that a person gave, with or without its beginning. ReplayError "spec" when it is none."""
    short = name.removeprefix(PREFIX)
    if _NAME.fullmatch(short) is None:
        raise ReplayError(
            "spec",
            f"{name!r:.80} is no name of a scratch schema",
            hint=f"up to {NAME_CHARS_MAX} of a-z, 0-9 and _; {PREFIX} is put before it",
        )
    return PREFIX + short


def create(postgres: str, schema: str, said: Mapping[str, Any], *, replace: bool) -> None:
    """Make the schema, with the tables of a generation and without rows. ReplayError "taken" when it is there and not
    to be replaced, or not of a replay."""
    with g.connected(postgres) as connection:
        grants = [grant for grant in g.missing_grants(connection) if " ON DATABASE " in grant]
        if grants:
            raise ReplayError("grant", "the database role may not make a schema", hint=grants[0])
        try:
            with connection.transaction():
                _make_room(connection, schema, replace=replace)
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
                g.create(connection, schema)
                for _ in filling.finish(connection, schema, filling.indexes(connection, schema)):
                    pass
                _say(connection, schema, said)
        except (psycopg.errors.DuplicateSchema, psycopg.errors.UniqueViolation):  # somebody was faster
            raise _taken(schema) from None


def finish(postgres: str, schema: str, said: Mapping[str, Any]) -> None:
    """Every row is there: say so beside it, and let Postgres look at what it has."""
    with g.connected(postgres) as connection:
        _say(connection, schema, said)
        filling.analyze(connection, schema, g.NAMES)


def listed(postgres: str) -> list[dict[str, Any]]:
    """The scratch schemas there are, newest first: whose, since when, of which session, and how large."""
    with g.connected(postgres) as connection:
        found = connection.execute(QUERIES["scratch"], {}).fetchall()
    return [
        {"name": name, "size_bytes": size, **{key: said.get(key) for key in ("state", "at", "actor", "session")}}
        for name, comment, size in found
        if (said := _said(comment)) is not None
    ]


def drop(postgres: str, schema: str) -> None:
    """Delete a scratch schema with its rows. ReplayError "unknown" when there is none that a replay made."""
    with g.connected(postgres) as connection:
        if _of_a_replay(connection, schema) is not True:
            raise ReplayError("unknown", f"no replay made a schema {schema}", hint="kintsugi replay list")
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


class Scratch:
    """Writes rows into a scratch schema that is there. One thread."""

    def __init__(self, connection: g.Connection, schema: str) -> None:
        """The connection is the writer's own from here on: it sees no schema by default."""
        self.rows = 0
        #: Place of the record that made a row which Postgres refuses, and why.
        self.refused: list[tuple[str, str]] = []
        self._connection = connection
        self._schema = schema_of(schema)
        self._waiting: dict[str, list[tuple[Sequence[Any], str]]] = {table.name: [] for table in TABLES}
        self._sizes = dict.fromkeys(self._waiting, 0)
        self._tables = {table.name: table for table in TABLES}
        connection.execute("SELECT set_config('search_path', 'pg_catalog', false)")

    def add(self, name: str, row: Sequence[Any], place: str) -> None:
        """A row that no later record changes; one may delete it."""
        waiting = self._waiting[name]
        waiting.append((row, place))
        self._sizes[name] += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(waiting) >= _ROWS_MAX or self._sizes[name] >= _BYTES_MAX:
            self._write(self._tables[name])

    def remove(self, name: str, keys: Sequence[str]) -> None:
        """Delete rows, and empty what refers to them."""
        for table in TABLES:
            self._write(table)
        place = {"keys": list(keys)}
        delete = sql.SQL("DELETE FROM {} WHERE id = ANY(%(keys)s::uuid[])")
        empty = sql.SQL("UPDATE {table} SET {column} = NULL WHERE {column} = ANY(%(keys)s::uuid[])")
        with self._connection.transaction():
            self.rows -= self._connection.execute(delete.format(sql.Identifier(self._schema, name)), place).rowcount
            for table in TABLES:
                for column in (c for c in table.columns if c.references == name):
                    target = sql.Identifier(self._schema, table.name)
                    self._connection.execute(empty.format(table=target, column=sql.Identifier(column.name)), place)

    def close(self, changed: Iterable[tuple[str, Sequence[Any], str]]) -> None:
        """Write what waits, and rows of the other tables as they are at the end: table, row, place of its event."""
        for name, row, place in changed:
            self.add(name, row, place)
        for table in TABLES:
            self._write(table)

    def document(self) -> dict[str, Any]:
        """What was written, and which rows Postgres refused."""
        refused = [{"place": place, "error": error} for place, error in self.refused]
        return {"schema": self._schema, "rows": self.rows, "refused": refused}

    def _write(self, table: Table) -> None:
        waiting, self._waiting[table.name], self._sizes[table.name] = self._waiting[table.name], [], 0
        parts = [waiting] if waiting else []
        while parts:  # what Postgres refuses is found by halving
            part = parts.pop()
            try:
                with self._connection.transaction():
                    filling.copy_rows(self._connection, self._schema, table, [row for row, _ in part])
                self.rows += len(part)
            except Exception as error:
                if not is_poison(error):
                    raise
                if len(part) > 1:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                else:
                    self.refused.append((part[0][1], f"{table.name}: {_refusal(error)}"))


def _refusal(error: Exception) -> str:
    return said_by(error) if isinstance(error, psycopg.Error) else type(error).__name__


def _make_room(connection: g.Connection, schema: str, *, replace: bool) -> None:
    there = _of_a_replay(connection, schema)
    if there is None:
        return
    if not (replace and there):
        raise _taken(schema, ours=there)
    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def _taken(schema: str, *, ours: bool = True) -> ReplayError:
    if not ours:
        return ReplayError("taken", f"schema {schema} is there, and no replay made it", hint="another name for --into")
    return ReplayError("taken", f"schema {schema} is there already", hint="--replace, or another name for --into")


def _of_a_replay(connection: g.Connection, schema: str) -> bool | None:
    """Whether a replay made the schema; None when there is none."""
    row = connection.execute(QUERIES["there"], {"name": schema}).fetchone()
    return None if row is None else _said(row[0]) is not None


def _say(connection: g.Connection, schema: str, said: Mapping[str, Any]) -> None:
    comment = sql.SQL("COMMENT ON SCHEMA {} IS {}")
    connection.execute(comment.format(sql.Identifier(schema), sql.Literal(json.dumps({"replay": dict(said)}))))


def _said(comment: str | None) -> dict[str, Any] | None:
    """What a replay said of its schema; None when the comment is none of a replay."""
    try:
        value = json.loads(comment or "").get("replay")
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, dict) else None
