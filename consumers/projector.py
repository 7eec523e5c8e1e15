"""The projector role: reads the log and hands it to the tables, batch by batch.

The tables keep their own position, in the transaction that writes their rows; the group's position is only for those
who watch its lag. A batch that finds the position moved by someone else writes nothing (FencedError).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from confluent_kafka import Message

from engine.events import Delivered
from engine.inspection import Inspector
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.dead_letters import STAGE_DECODE, DeadLetter
from schemas.errors import AdmissionError, DiskFullError, KintsugiError, ParkingFullError, PoisonError
from schemas.log_record import LogRecord
from schemas.records import Command
from schemas.topics import EVENTS

from . import telemetry
from .crash import crash_point
from .dead_letter import headers_of, raw
from .deadline import Deadline
from .handler import LogRange
from .log_reader import record_of

ROLE = "projector"
#: More than other roles take at once: while it is behind, a workflow's row is then written a quarter as often, in a
#: quarter of the transactions. 2,000 events take some 60 ms, so whoever reads the tables sees no difference.
BATCH_RECORDS_MAX = 2_000


class Parked(Protocol):
    """How much of a partition is parked."""

    @property
    def workflows(self) -> int:
        """Workflows with an event that could not be applied."""

    @property
    def events(self) -> int:
        """Their events that wait."""


class Projection(Protocol):
    """The tables, as this role sees them. All methods raise RetriableError when the database is away."""

    def claim(self, partition: int) -> int | None:
        """Become the owner of a partition. Returns the next offset to apply; None when nothing was applied yet."""

    def apply(
        self,
        partition: int,
        events: Sequence[Delivered],
        dead: Sequence[DeadLetter],
        *,
        start: int,
        end: int,
        raw: Callable[[Delivered], LogRecord],
    ) -> Sequence[DeadLetter]:
        """Write what follows from the records `start` to `end` (exclusive), and `end` as position, in one transaction.
        Returns the records that could not be applied, for which their workflows were parked: later events of these
        wait. `raw` gives an event's record as the log has it.

        FencedError, with nothing written, when the position is not `start` or another process claimed the partition.
        ParkingFullError when no more may be parked.
        """

    def parked(self, partition: int) -> Parked:
        """How much of a partition is parked."""

    def release(self, partitions: Sequence[int]) -> None:
        """Forget what is kept in memory of partitions; does not raise."""


class Projector:
    """Handler of the projector role."""

    def __init__(self, projection: Projection, codec: Codec) -> None:
        self._projection = projection
        self._codec = codec
        # Without keys, whatever keys there are: rows are the same for everybody, and hold nothing that was encrypted.
        self._inspector = Inspector(keep_states=False)
        self._positions: dict[int, int] = {}

    def assigned(self, log: LogRange) -> int | None:
        """Start where the tables stand; at the beginning of the log when they are empty."""
        found = self._projection.claim(log.partition)
        start = self._positions[log.partition] = log.low if found is None else found
        self._show_parked(log.partition)
        return start

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Decode a batch and apply it."""
        events: list[Delivered] = []
        dead: list[DeadLetter] = []
        for message in messages:
            self._read(partition, message, events, dead)
        crash_point("after_fold")
        start, end = self._positions[partition], (messages[-1].offset() or 0) + 1
        by_offset = {message.offset(): message for message in messages}
        before = self._projection.parked(partition).events
        try:
            refused = self._projection.apply(
                partition, events, dead, start=start, end=end, raw=lambda event: record_of(by_offset[event.offset])
            )
        except ParkingFullError:
            telemetry.PARKING_FULL.inc()
            telemetry.log().error("parking is full", partition=partition)
            raise
        except DiskFullError as error:
            telemetry.DISK_FULL.inc()
            telemetry.log().error("disk is full", partition=partition, error=error, hint=error.hint)
            raise
        self._positions[partition] = end
        crash_point("after_write")
        parked = self._show_parked(partition) - before
        telemetry.EVENTS_PROCESSED.labels(ROLE, "applied").inc(len(events) - parked)
        telemetry.EVENTS_PROCESSED.labels(ROLE, "parked").inc(parked)
        for letter in refused:
            telemetry.log().error(
                "workflow parked",
                partition=partition,
                offset=letter.offset,
                reason=letter.reason,
                workflow_id=(letter.key or b"").decode("ascii", "replace"),
            )
        telemetry.EVENTS_PROCESSED.labels(ROLE, "dead_letter").inc(len(dead))
        for letter in (*dead, *refused):
            telemetry.DEAD_LETTERS.labels(letter.reason).inc()
            telemetry.log().warning("dead letter", partition=partition, offset=letter.offset, reason=letter.reason)

    def flush(self) -> Mapping[int, KintsugiError]:
        """Nothing is left undone by `handle`."""
        return {}

    def committed(self, partition: int, next_offset: int) -> None:
        """Nothing to do: the position is in the tables."""

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        """No timers."""
        return None

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        """Let go."""
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Let go."""
        for partition in partitions:
            self._positions.pop(partition, None)
            for gauge in (telemetry.PARKED_WORKFLOWS, telemetry.PARKED_EVENTS):
                with suppress(KeyError):
                    gauge.remove(str(partition))
        self._projection.release(partitions)

    def _show_parked(self, partition: int) -> int:
        parked = self._projection.parked(partition)
        telemetry.PARKED_WORKFLOWS.labels(str(partition)).set(parked.workflows)
        telemetry.PARKED_EVENTS.labels(str(partition)).set(parked.events)
        return parked.events

    def _read(self, partition: int, message: Message, events: list[Delivered], dead: list[DeadLetter]) -> None:
        offset, key, value = message.offset(), raw(message.key()), raw(message.value())
        assert offset is not None
        timestamp_us = message.timestamp()[1] * 1000
        try:
            record = admit(self._codec, key, value)
            if isinstance(record, Command):
                raise AdmissionError("wrong_topic", f"{type(record).__name__} is a command, this is the event topic")
        except PoisonError as error:
            dead.append(
                DeadLetter(
                    topic=EVENTS,
                    partition=partition,
                    offset=offset,
                    timestamp_us=timestamp_us,
                    key=key,
                    value=value,
                    headers=headers_of(message),
                    stage=STAGE_DECODE,
                    reason=error.reason,
                    detail=str(error),
                )
            )
            return
        if isinstance(record, Unknown):
            telemetry.EVENTS_PROCESSED.labels(ROLE, "unknown_type").inc()
            return
        events.append(self._inspector.deliver(record, partition, offset, timestamp_us))
