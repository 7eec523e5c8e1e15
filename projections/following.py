"""A generation that comes after the live tables: it applies what they have applied, and nothing else.

What is parked or discarded is so for the live tables, and the generation passes over it. Its own part of the parking
tables are the events it has passed over and they have not discarded: when somebody retries a workflow there, the
generation finds with its next step what it still has to apply, without reading the log again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psycopg

from engine.events import Delivered
from schemas.dead_letters import STAGE_APPLY
from schemas.errors import FatalError
from schemas.redaction import NOTHING, Redaction
from schemas.topics import EVENTS

from .catalog import TABLES
from .fold import Rows
from .generations import QUERIES
from .kit import Table, hidden_from
from .partial import SomeTables
from .release import Read, Releasing, read_all
from .wire import Array

#: First statement of a transaction whose queries all see one moment.
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a generation has to read of a partition: `start` to `end` (exclusive) without the offsets in `without`."""

    start: int
    end: int
    without: frozenset[int]


def park_as_live(connection: psycopg.Connection[Any], name: str, partition: int, start: int, end: int) -> None:
    """Of the live tables' parked events those from `start` to `end` (exclusive) are the generation's, too."""
    place = {"name": name, "topic": EVENTS, "partition": partition, "start": start, "end": end}
    connection.execute(QUERIES["unpark_events"], place)
    connection.execute(QUERIES["parked_events_as_live"], place)
    connection.execute(QUERIES["unpark_workflows"], place)
    connection.execute(QUERIES["parked_workflows_as_live"], place)


def not_applied(connection: psycopg.Connection[Any], name: str, partition: int) -> frozenset[int]:
    """Offsets that a generation passes over: they wait, or were discarded."""
    place = {"name": name, "topic": EVENTS, "partition": partition, "stage": STAGE_APPLY}
    return frozenset(offset for (offset,) in connection.execute(QUERIES["not_applied"], place).fetchall())


class Following(Releasing):
    """The tables of a generation. One connection, one thread, and one process at a time (`generations.sole`)."""

    def __init__(self, url: str, *, generation: str, tables: Sequence[Table] = TABLES) -> None:
        """`tables`: those that the generation holds; nothing else is written."""
        super().__init__(url, generation=generation)
        self._some = None if len(tables) == len(TABLES) else SomeTables(tables)
        #: Per partition, from which offsets on which fields are hidden.
        self._hidden: dict[int, Sequence[tuple[int, Redaction]]] = {}

    def step(self, partition: int, read: Read) -> Step:
        """Apply what the live tables have let go since, become the partition's owner, and say what to read next.

        FatalError when Postgres refuses what the live tables hold.
        """
        place = {"name": self._generation, "topic": EVENTS, "partition": partition, "stage": STAGE_APPLY}
        with self._transaction() as connection:
            connection.execute(SNAPSHOT)  # where the live tables stand, and what waits there, are of one moment
            found = connection.execute(QUERIES["both_places"], place).fetchone()
            assert found is not None
            start, end = max(found[0], 0), max(found[1], 0)
            connection.execute(QUERIES["hidden_since"], place)
            places = connection.execute(QUERIES["hidden_places"], place).fetchall()
            self._hidden[partition] = [(offset, Redaction(tuple(paths))) for offset, paths in places]
            self._apply_released(connection, {**place, "start": start}, read)
            connection.execute(QUERIES["unpark_applied"], place)
            park_as_live(connection, self._generation, partition, start, max(start, end))
            without = not_applied(connection, self._generation, partition)
        self.claim(partition)
        return Step(start=start, end=end, without=without)

    def claim(self, partition: int) -> int | None:
        """As for live tables, but what is hidden follows these, and nothing waits behind a parked workflow: what the
        live tables let wait is not read."""
        hidden = self._hidden.get(partition)
        self._redaction = hidden[-1][1] if hidden else NOTHING
        try:
            return super().claim(partition)
        finally:
            self._redaction = NOTHING
            self._parking.forget(partition)

    def follow(self, partition: int, events: Sequence[Delivered], *, start: int, end: int) -> None:
        """Apply what the live tables have applied of the records from `start` to `end`. FatalError as `step`."""
        hidden = self._hidden.get(partition, ())
        shown = [hidden_from(event, hidden) for event in events] if hidden else events
        if self.apply(partition, shown, [], start=start, end=end):
            raise _refused(partition)

    def _write_rows(
        self, connection: psycopg.Connection[Any], events: Sequence[Delivered]
    ) -> tuple[Rows, bool, dict[str, dict[str, Array]]]:
        if self._some is None:
            return super()._write_rows(connection, events)
        return self._some.write_rows(connection, events)

    def _apply_released(self, connection: psycopg.Connection[Any], place: dict[str, Any], read: Read) -> None:
        rows = connection.execute(QUERIES["applied_since"], place).fetchall()
        for workflow_id, own in groupby(rows, key=lambda row: str(row[0])):
            waited = [tuple(row[1:]) for row in own]
            events, unread = read_all(place, waited, read)
            if len(events) < len(waited):
                raise FatalError(f"an event of workflow {workflow_id} cannot be read any more: {unread[0]}")
            shown = [hidden_from(event, self._hidden[place["partition"]]) for event in events]
            _, failed = self._apply_first(connection, shown)
            self._forget_rows()
            if failed is not None:
                raise _refused(place["partition"])


def _refused(partition: int) -> FatalError:
    return FatalError(
        f"Postgres refuses a record of partition {partition} that the live tables hold",
        hint="compare the constraints of both; kintsugi projections drop, then rebuild",
    )
