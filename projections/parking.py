"""Workflows with an event that cannot be applied, and what waits behind it.

Guarantees: later events of such a workflow wait in the order of the log, in the transaction that moves the position
over them; other workflows flow; nothing is dropped: at a bound the partition stops (ParkingFullError) and goes on when
somebody has retried or discarded. What is wrong with a connection or the server parks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from engine.events import Delivered
from schemas.codec import Codec
from schemas.dead_letters import STAGE_APPLY, DeadLetter
from schemas.errors import DiskFullError, KintsugiError, ParkingFullError, RetriableError
from schemas.log_record import LogRecord
from schemas.topics import EVENTS

from .sql import blocks

#: Parked workflows of a partition: so many are no bad records but a broken table, and stopping keeps the others whole.
PARKED_WORKFLOWS_MAX = 100
#: Events that wait of one workflow: it has some hundred in its life, so a service that writes more is in a loop.
PARKED_EVENTS_MAX = 1_000
#: Bytes that wait of a partition: a few thousand events, or twenty of the largest; a retry reads those of one workflow.
PARKED_BYTES_MAX = 256 * 1024 * 1024
#: SQLSTATE class of a value that is too large or too deep for Postgres: the record's fault, whatever psycopg calls it.
_TOO_LARGE = "54"
#: SQLSTATE class of a server's defects. A quota, or a file that may not grow, is counted among them.
_INTERNAL = "XX"
_DETAIL_MAX = 1000

SQL = blocks("projections", "parking.sql")


@dataclass(frozen=True, slots=True)
class Parked:
    """How much of a partition is parked."""

    workflows: int = 0
    events: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Queued:
    """An event that waits, with the record as the log has it."""

    event: Delivered
    record: LogRecord


class Parking:
    """The parked workflows of the partitions of one owner, as the tables have them."""

    def __init__(self) -> None:
        #: Per partition: workflow to (events, bytes).
        self._queues: dict[int, dict[str, tuple[int, int]]] = {}

    def load(self, connection: psycopg.Connection[Any], place: dict[str, Any]) -> None:
        """Read what is parked of a partition."""
        found = connection.execute(SQL["load"], place).fetchall()
        self._queues[place["partition"]] = {workflow_id: (events, size) for workflow_id, events, size in found}

    def forget(self, partition: int) -> None:
        """The partition is no longer ours."""
        self._queues.pop(partition, None)

    def of(self, partition: int) -> Parked:
        """How much of a partition is parked."""
        queues = self._queues.get(partition, {}).values()
        return Parked(len(queues), sum(events for events, _ in queues), sum(size for _, size in queues))

    def split(self, partition: int, events: Sequence[Delivered]) -> tuple[Sequence[Delivered], list[Delivered]]:
        """Events to apply, and events that wait because their workflow is parked."""
        queues = self._queues.get(partition)
        if not queues:
            return events, []
        flowing: list[Delivered] = []
        waiting: list[Delivered] = []
        for event in events:
            (waiting if event.record.workflow_id in queues else flowing).append(event)
        return flowing, waiting

    def check(self, partition: int, added: Iterable[Queued]) -> None:
        """ParkingFullError when these are more than may wait."""
        queues = dict(self._queues.get(partition, {}))
        for queued in added:
            events, _ = self._grown(queues, queued)
            if events > PARKED_EVENTS_MAX:
                raise _full(partition, f"{PARKED_EVENTS_MAX} events of workflow {queued.event.record.workflow_id} wait")
        if len(queues) > PARKED_WORKFLOWS_MAX:
            raise _full(partition, f"{PARKED_WORKFLOWS_MAX} workflows are parked")
        if sum(size for _, size in queues.values()) > PARKED_BYTES_MAX:
            raise _full(partition, f"{PARKED_BYTES_MAX} bytes wait")

    def add(self, partition: int, added: Iterable[Queued]) -> None:
        """Remember what was written."""
        queues = self._queues.setdefault(partition, {})
        for queued in added:
            self._grown(queues, queued)

    def _grown(self, queues: dict[str, tuple[int, int]], queued: Queued) -> tuple[int, int]:
        workflow_id = queued.event.record.workflow_id
        events, size = queues.get(workflow_id, (0, 0))
        queues[workflow_id] = grown = (events + 1, size + len(queued.record.value or b""))
        return grown


def is_poison(error: BaseException) -> bool:
    """Whether an error is the record's fault: a value that Postgres does not take, or that a fold stumbles over."""
    if isinstance(error, psycopg.Error):
        refused = isinstance(error, psycopg.DataError | psycopg.IntegrityError)
        return refused or (error.sqlstate or "").startswith(_TOO_LARGE)
    return isinstance(error, Exception) and not isinstance(error, KintsugiError | MemoryError | OSError)


def trouble(error: psycopg.Error) -> RetriableError:
    """What is wrong with a connection or the server, as an error of ours."""
    full = isinstance(error, psycopg.errors.DiskFull)
    if not full and (error.sqlstate or "").startswith(_INTERNAL):
        full = "disk space" in (error.diag.message_hint or "")
    if full:
        return DiskFullError(f"Postgres: {said(error)}", hint="make room on its disk; nothing else is to be done")
    return RetriableError(f"Postgres: {said(error)}", hint="kintsugi status")


def why(event: Delivered, error: BaseException) -> tuple[str, str]:
    """(reason, detail), neither of which quotes the record."""
    of = f"{type(event.record).__name__} {event.record.event_id}: {type(error).__name__}"
    if isinstance(error, psycopg.Error):
        return "refused_by_postgres", f"{of}: {said(error)}"
    return "not_applicable", of


def said(error: psycopg.Error) -> str:
    """What went wrong, without the value, the details and the context in which Postgres quotes rows."""
    return (error.diag.message_primary or str(error)).split(': "')[0]


def headers_json(headers: Iterable[tuple[str, bytes | None]]) -> Jsonb:
    """A record's headers as text, for people: jsonb takes neither other bytes nor U+0000."""
    told = ((name, (value or b"").decode("utf-8", "replace")) for name, value in headers)
    return Jsonb([[part.replace("\x00", "\ufffd") for part in header] for header in told])


def letter_of(queued: Queued, reason: str, detail: str) -> DeadLetter:
    """The record for which a workflow is parked."""
    record = queued.record
    return DeadLetter(
        topic=EVENTS,
        partition=record.partition,
        offset=record.offset,
        timestamp_us=queued.event.timestamp_us,
        key=record.key,
        value=record.value,
        headers=[(name, value or b"") for name, value in record.headers],
        stage=STAGE_APPLY,
        reason=reason,
        detail=detail[:_DETAIL_MAX].replace("\x00", "\ufffd"),
    )


def encoded(event: Delivered) -> LogRecord:
    """The record of an event whose bytes nobody kept, as single-object Avro."""
    value = Codec().encode(event.record)
    key = event.record.workflow_id.encode()
    return LogRecord(event.partition, event.offset, event.timestamp_us // 1000, 2, key, value, ())


def statements(
    place: dict[str, Any], queued: Sequence[Queued], letter: DeadLetter | None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What puts events into the queue; with a letter, their workflow is parked by the first of them."""
    if letter is not None:
        workflow_id = queued[0].event.record.workflow_id
        told = {"offset": letter.offset, "reason": letter.reason, "detail": letter.detail}
        yield SQL["park"], {**place, "workflow_id": workflow_id, **told}
    for found in queued:
        record = found.record
        yield (
            SQL["queue"],
            {
                **place,
                "offset": record.offset,
                "workflow_id": found.event.record.workflow_id,
                "record_type": type(found.event.record).__name__,
                "key": record.key,
                "value": record.value,
                "headers": headers_json(record.headers),
                "timestamp_us": found.event.timestamp_us,
            },
        )


def _full(partition: int, what: str) -> ParkingFullError:
    return ParkingFullError(
        f"partition {partition}: {what}: no more are parked, the partition stops",
        hint="kintsugi dlq list; then retry or discard",
    )
