"""Writes events into some of the tables: those of a generation that holds no others.

A reference to a table that the generation does not hold leads to the live one, which is found by the search path: it
may be ahead, and at equal positions both are equal again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from engine.events import Delivered

from . import statements
from .catalog import TABLES
from .fold import Rows, fold, keys_of, touched
from .kit import Table
from .wire import KINDS, Array, array

Connection = psycopg.Connection[Any]
_KEY = KINDS["uuid"]


class SomeTables:
    """Rows of some tables. Nothing is kept in memory between two batches."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._kept = {table.name: table for table in tables if not table.written_once}
        self._once = {table.name: table for table in tables if table.written_once}
        self._plans = touched(self._once.values()), touched(self._kept.values())
        #: Tables whose rows may be deleted, those of other generations as well: references to these are emptied.
        self._removing = [table for table in TABLES if table.removes]
        self._emptied = {table.name: _emptied(tables, table.name) for table in self._removing}

    def write_rows(
        self, connection: Connection, events: Sequence[Delivered]
    ) -> tuple[Rows, bool, dict[str, dict[str, Array]]]:
        """As `Store._write_rows`, of which it is the part for these tables."""
        once, kept = self._plans
        for name, made in fold({}, events, once).items():
            table = self._once[name]
            connection.execute(statements.write(table), statements.parameters(table, list(made.values())))
        rows: Rows = {}
        for name, keys in keys_of(events, kept).items():
            found = connection.execute(statements.read(self._kept[name]), {"ids": array(_KEY, sorted(keys))})
            rows[name] = {values[0]: self._kept[name].row(*values) for values in found}
        changed = fold(rows, events, kept)
        parameters = {name: statements.parameters(self._kept[name], made.values()) for name, made in changed.items()}
        return changed, self._remove(connection, events), parameters

    def _remove(self, connection: Connection, events: Sequence[Delivered]) -> bool:
        removed = False
        for table in self._removing:
            pairs = [
                (key, event.record.workflow_id)
                for event in events
                if (keys_of_record := table.removes.get(type(event.record))) is not None
                for key in keys_of_record(event.record)
            ]
            if not pairs:
                continue
            removed = True
            values = {
                name: array(_KEY, part) for name, part in zip(("ids", "owners"), zip(*pairs, strict=True), strict=True)
            }
            if table.name in self._once:
                connection.execute(statements.delete(table), values)
            else:
                for statement in self._emptied[table.name]:
                    connection.execute(statement, values)
        return removed


def _emptied(tables: Sequence[Table], target: str) -> list[sql.Composed]:
    """Statements that empty references to rows of `target` which were deleted, in rows of their workflow."""
    text: LiteralString = (
        "UPDATE {table} t SET {column} = NULL FROM unnest(%(ids)b::uuid[], %(owners)b::uuid[]) AS k(id, owner)"
        " WHERE t.{column} = k.id AND t.{owner} = k.owner"
    )
    return [
        sql.SQL(text).format(
            table=sql.Identifier(table.name),
            column=sql.Identifier(column.name),
            owner=sql.Identifier(table.columns[table.owner].name),
        )
        for table in tables
        for column in table.columns
        if column.references == target
    ]
