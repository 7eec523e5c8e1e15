"""What an operator does with a parked workflow: apply its events again, or pass over some of them for good.

One transaction, in which the partition is taken from its owner: that one is fenced, claims again and finds the tables
as they are then. Events are applied in their order, as many as can be; from the first that cannot, the workflow stays
parked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from engine.events import Delivered
from schemas.dead_letters import STAGE_APPLY
from schemas.errors import PoisonError
from schemas.log_record import LogRecord
from schemas.redaction import Redaction

from . import copying, parking
from .kit import hidden_from
from .parking import SQL, is_poison
from .store import Store

#: Reads a record that waited, as the projector reads it. PoisonError when it cannot.
Read = Callable[[LogRecord], Delivered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What became of the events of a parked workflow. `offset`, `reason` and `detail`: of the one that still fails."""

    workflow_id: str
    partition: int
    applied: int
    discarded: int
    waiting: int
    offset: int | None = None
    reason: str | None = None
    detail: str | None = None


class _DryRunError(Exception):
    """Undoes the transaction."""


class Releasing(Store):
    """Tables in which parked workflows are let go. One connection, one thread."""

    def release_workflow(
        self,
        partition: int,
        workflow_id: str,
        read: Read,
        *,
        discard: int | None = 0,
        why: str = "",
        dry_run: bool = False,
    ) -> Released | None:
        """Pass over the first `discard` events (None: all of them), and apply what is behind.

        None when the workflow is not parked in this partition. RetriableError when Postgres is away; nothing was done,
        or (COMMIT without an answer) it is not parked any more.
        """
        found: Released | None = None
        try:
            with self._transaction() as connection:
                place = {**self._place(partition), "workflow_id": workflow_id}
                found = self._release(connection, place, read, discard, why)
                if dry_run:
                    raise _DryRunError
        except _DryRunError:
            pass
        finally:
            self._forget_rows()
        return found

    def _release(
        self, connection: psycopg.Connection[Any], place: dict[str, Any], read: Read, discard: int | None, why: str
    ) -> Released | None:
        connection.execute(SQL["take"], place)
        rows = connection.execute(SQL["waiting"], place).fetchall()
        if not rows:
            return None
        passed = rows if discard is None else rows[:discard]
        if passed:
            connection.execute(
                SQL["set_aside"], {**place, "last": passed[-1][0], "stage": STAGE_APPLY, "detail": why[:1000]}
            )
        readable, unread = read_all(place, rows[len(passed) :], read)
        # What was hidden when the log was read there: so do the rows of its neighbours, and so do proofs and rebuilds.
        hidden = [(offset, Redaction(tuple(paths))) for offset, paths in connection.execute(SQL["hidden"], place)]
        events = [hidden_from(event, hidden) for event in readable]
        applied, failed = self._apply_first(connection, events)
        done = len(passed) + applied
        if done:
            connection.execute(SQL["leave"], {**place, "last": rows[done - 1][0]})
        counts: dict[str, Any] = {"applied": applied, "discarded": len(passed), "waiting": len(rows) - done}
        told: dict[str, Any] = {}
        if done == len(rows):
            connection.execute(SQL["free"], place)
        else:
            reason, detail = parking.why(events[applied], failed) if failed is not None else unread
            told = {"offset": rows[done][0], "reason": reason, "detail": detail}
            connection.execute(SQL["stay"], {**place, **told})
        return Released(workflow_id=place["workflow_id"], partition=place["partition"], **counts, **told)

    def _apply_first(
        self, connection: psycopg.Connection[Any], events: Sequence[Delivered]
    ) -> tuple[int, Exception | None]:
        """Apply as many as can be; their number, and why the next one cannot."""
        done, size = 0, len(events)
        while done < len(events):
            try:
                with connection.transaction():
                    for part in copying.parts(events[done : done + size]):
                        self._write_carefully(connection, part)
            except Exception as error:
                if not is_poison(error):
                    raise
                if size == 1:
                    return done, error
                size //= 2
                continue
            done += size
            size = max(1, min(size, len(events) - done))
        return done, None

    def _write_carefully(self, connection: psycopg.Connection[Any], events: Sequence[Delivered]) -> None:
        self._forget_rows()  # what an earlier part wrote, or wrote in vain, is in the tables or nowhere
        self._careful = 1
        changed, _, parameters = self._write_rows(connection, events)
        for name, statement in self._write.items():
            if name in changed:
                connection.execute(statement, parameters[name])


def read_all(
    place: dict[str, Any], rows: Sequence[tuple[Any, ...]], read: Read
) -> tuple[list[Delivered], tuple[str, str]]:
    """The events up to the first that cannot be read, and (reason, detail) of that one."""
    events: list[Delivered] = []
    for offset, kind, key, value, timestamp_us in rows:
        record = LogRecord(place["partition"], offset, timestamp_us // 1000, 2, key, value, ())
        try:
            events.append(read(record))
        except PoisonError as error:
            return events, (error.reason, f"{kind}: cannot be read any more")
    return events, ("", "")
