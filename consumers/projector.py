"""The projector role: reads the log and hands it to the tables, batch by batch.

The tables keep their own position, in the transaction that writes their rows; the group's position is only for those
who watch its lag. A batch that finds the position moved by someone else writes nothing (FencedError).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import Message

from engine.events import Delivered
from engine.inspection import Inspector
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.dead_letters import STAGE_DECODE, DeadLetter
from schemas.errors import AdmissionError, KintsugiError, PoisonError
from schemas.records import Command
from schemas.topics import EVENTS

from . import telemetry
from .crash import crash_point
from .dead_letter import headers_of, raw
from .deadline import Deadline
from .handler import LogRange

ROLE = "projector"


class Projection(Protocol):
    """The tables, as this role sees them. All methods raise RetriableError when the database is away."""

    def claim(self, partition: int) -> int | None:
        """Become the owner of a partition. Returns the next offset to apply; None when nothing was applied yet."""

    def apply(
        self, partition: int, events: Sequence[Delivered], dead: Sequence[DeadLetter], *, start: int, end: int
    ) -> Sequence[DeadLetter]:
        """Write what follows from the records `start` to `end` (exclusive), and `end` as position, in one transaction.
        Returns the records that the database refused, which were set aside.

        FencedError, with nothing written, when the position is not `start` or another process claimed the partition.
        """

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
        return start

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Decode a batch and apply it."""
        events: list[Delivered] = []
        dead: list[DeadLetter] = []
        for message in messages:
            self._read(partition, message, events, dead)
        crash_point("after_fold")
        start, end = self._positions[partition], (messages[-1].offset() or 0) + 1
        refused = self._projection.apply(partition, events, dead, start=start, end=end)
        self._positions[partition] = end
        crash_point("after_write")
        telemetry.EVENTS_PROCESSED.labels(ROLE, "applied").inc(len(events) - len(refused))
        for letter in (*dead, *refused):
            telemetry.EVENTS_PROCESSED.labels(ROLE, "dead_letter").inc()
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
        self._projection.release(partitions)

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
