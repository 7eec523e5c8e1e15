"""Foreign keys between projected tables, as Postgres has them, and how they are made anew in another schema."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from psycopg import sql

from .generations import QUERIES, Connection
from .store import GENERATION

_DEFINITION = re.compile(r"FOREIGN KEY \((\w+)\) REFERENCES (?:\w+\.)?(\w+)\((\w+)\)(.*?)(?: NOT VALID)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A foreign key. `rest`: what it does when the row that it leads to is deleted."""

    key: str
    table: str
    column: str
    target: str
    target_column: str
    rest: str

    def emptied(self, schema: str, target_schema: str) -> sql.Composed:
        """Statement that empties it where it leads nowhere, as live tables do when they write."""
        return sql.SQL(
            "UPDATE {table} t SET {column} = NULL WHERE {column} IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM {target} r WHERE r.{key} = t.{column})"
        ).format(
            table=sql.Identifier(schema, self.table),
            column=sql.Identifier(self.column),
            target=sql.Identifier(target_schema, self.target),
            key=sql.Identifier(self.target_column),
        )

    def made(self, schema: str, *, valid: bool = True) -> sql.Composed:
        """Statement that makes it within a schema; not `valid`: rows that are there are not looked at."""
        return sql.SQL(
            "ALTER TABLE {table} ADD CONSTRAINT {name} FOREIGN KEY ({column}) REFERENCES {target} ({key}){rest}"
        ).format(
            table=sql.Identifier(schema, self.table),
            name=sql.Identifier(self.key),
            column=sql.Identifier(self.column),
            target=sql.Identifier(schema, self.target),
            key=sql.Identifier(self.target_column),
            rest=sql.SQL(self.rest + ("" if valid else " NOT VALID")),
        )

    def dropped(self, schema: str) -> sql.Composed:
        """Statement that takes it away."""
        return sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
            sql.Identifier(schema, self.table), sql.Identifier(self.key)
        )


def references(connection: Connection, tables: Collection[str], *, schema: str = GENERATION) -> list[Reference]:
    """Those of some tables, by name."""
    rows = connection.execute(QUERIES["keys"], {"name": schema, "tables": list(tables)}).fetchall()
    found = []
    for table, key, definition in sorted(rows):
        parts = _DEFINITION.fullmatch(definition)
        assert parts is not None, definition  # the migrations make no other ones
        column, target, target_column, rest = parts.groups()
        found.append(
            Reference(key=key, table=table, column=column, target=target, target_column=target_column, rest=rest)
        )
    return found


def bridges(connection: Connection, some: Collection[str], every: Collection[str]) -> list[Reference]:
    """Live foreign keys between some of the tables and the others."""
    return [r for r in references(connection, every) if (r.table in some) != (r.target in some)]


def empty(connection: Connection, found: Iterable[Reference], some: Collection[str], schema: str) -> None:
    """Empty what leads nowhere when some tables are those in `schema`, and the others are live."""
    for one in found:
        places = [schema if name in some else GENERATION for name in (one.table, one.target)]
        connection.execute(one.emptied(*places))


def validate(connection: Connection, tables: Collection[str]) -> None:
    """Look at the rows of live foreign keys that were made without. Neither readers nor writers wait for it."""
    for table, key in connection.execute(QUERIES["not_validated"], {"tables": list(tables)}).fetchall():
        statement = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}")
        connection.execute(statement.format(sql.Identifier(GENERATION, table), sql.Identifier(key)))
