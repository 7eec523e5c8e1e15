"""One consistent look at the tables: everything read through it is of the same moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from schemas.dead_letters import STAGE_APPLY
from schemas.errors import FatalError
from schemas.topics import EVENTS

from . import statements
from .catalog import chosen
from .choice import Choice
from .digest import Differences, differences, row_digests
from .kit import Table
from .parking import trouble
from .sql import blocks
from .store import CONNECT_TIMEOUT_S, GENERATION

_QUERIES = blocks("projections", "queries.sql")
#: Rows fetched at once from a table that is read whole.
_FETCH_ROWS = 2_000


class Snapshot:
    """A read-only transaction at one moment; every query in it sees the same rows."""

    def __init__(self, connection: psycopg.Connection[Any], generation: str) -> None:
        self._connection = connection
        self._generation = generation
        self._place = {"generation": generation, "topic": EVENTS}

    def positions(self) -> dict[int, int]:
        """Next offset of the log to apply, by partition; partitions of which nothing was applied are left out."""
        found = self._connection.execute(_QUERIES["positions"], self._place).fetchall()
        return {partition: offset for partition, offset in found if offset >= 0}

    def beginnings(self) -> dict[tuple[int, int], int]:
        """(partition, version of the tables) to the offset from which on a projector of that version made the rows."""
        found = self._connection.execute(_QUERIES["beginnings"], self._place).fetchall()
        return {(partition, version): offset for partition, version, offset in found}

    def redactions(self) -> dict[int, list[tuple[int, tuple[str, ...]]]]:
        """Partition to (first offset, paths of the fields that rows made from there on hide), in order."""
        places: dict[int, list[tuple[int, tuple[str, ...]]]] = {}
        for partition, offset, paths in self._connection.execute(_QUERIES["redactions"], self._place).fetchall():
            places.setdefault(partition, []).append((offset, tuple(paths)))
        return places

    def dead_letters(self) -> dict[tuple[int, int], str]:
        """Records set aside: (partition, offset) to the stage in which they failed."""
        found = self._connection.execute(_QUERIES["dead_letter_places"], self._place).fetchall()
        return {(partition, offset): stage for partition, offset, stage in found}

    def not_applied(self) -> set[tuple[int, int]]:
        """Places of events that made no rows: they wait with a parked workflow, or were discarded."""
        waiting = self._connection.execute(_QUERIES["parked_places"], self._place).fetchall()
        return {*waiting, *(place for place, stage in self.dead_letters().items() if stage == STAGE_APPLY)}

    def tables(self) -> tuple[Table, ...]:
        """The tables that this generation holds."""
        found = self._connection.execute(_QUERIES["held"], self._place).fetchone()
        return chosen(found[0] if found else None)

    def parked(self) -> set[str]:
        """Workflows whose events wait, since one of them could not be applied."""
        found = self._connection.execute(_QUERIES["parked_workflows"], self._place).fetchall()
        return {workflow_id for (workflow_id,) in found}

    def beside(self, generation: str) -> Snapshot:
        """Another generation at the same moment, for what is asked by its name: positions, what is parked."""
        return Snapshot(self._connection, generation)

    def differences(self, other: Snapshot, tables: Sequence[Table], *, leaving_out: Sequence[str]) -> Differences:
        """Where the rows of another generation differ from those of this one."""
        return differences(self._connection, self._generation, other._generation, tables, leaving_out=leaving_out)

    def rows(self, table: Table) -> Iterator[tuple[Any, ...]]:
        """All rows of a table, in the form that folds use."""
        with self._connection.cursor(name=f"all_{table.name}", binary=True) as cursor:
            cursor.itersize = _FETCH_ROWS
            yield from cursor.execute(statements.read_all(table))

    def digests(self, table: Table, choice: Choice) -> Iterator[tuple[str, bytes]]:
        """Key and digest of all rows of the chosen workflows."""
        ids = None if choice.ids is None else sorted(choice.ids)
        return row_digests(self._connection, self._generation, table, first=choice.first, end=choice.end, ids=ids)

    def sample(self, size: int, seed: int) -> list[str]:
        """The first workflows in the order of `choice.rank`."""
        found = self._connection.execute(_QUERIES["sample"], {"size": size, "seed": f"{seed}:"}).fetchall()
        return [workflow_id for (workflow_id,) in found]

    def query(self, statement: sql.SQL | Any, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of any query, by column name."""
        with self._connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()

    def stream(self, statement: sql.SQL | Any, parameters: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Rows of a query of any size, some at a time."""
        with self._connection.cursor(name="stream") as cursor:
            cursor.itersize = _FETCH_ROWS
            yield from cursor.execute(statement, parameters)

    def read(self, table: Table, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows by key, in the form that folds use, in no certain order."""
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statements.read(table), {"ids": list(ids)}).fetchall()


@contextmanager
def snapshot(url: str, *, generation: str = GENERATION) -> Iterator[Snapshot]:
    """Open one. RetriableError when Postgres is away, FatalError when the tables are not there."""
    try:
        with psycopg.connect(
            url,
            connect_timeout=CONNECT_TIMEOUT_S,
            # Positions and dead letters of all generations are in the live schema.
            options=f"-c search_path={generation},{GENERATION} -c idle_in_transaction_session_timeout=0",
            application_name="kintsugi",
        ) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield Snapshot(connection, generation)
    except psycopg.ProgrammingError as error:
        raise FatalError(f"the tables are not as they should be: {error}", hint="run: kintsugi db migrate") from error
    except (psycopg.OperationalError, psycopg.InternalError) as error:
        raise trouble(error) from error
