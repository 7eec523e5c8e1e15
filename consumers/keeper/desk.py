"""How the keeper's facts get into the log: to the partition of the workflow's own records, confirmed."""

from __future__ import annotations

from schemas.codec import Codec
from schemas.headers import headers_for
from schemas.records import Record
from schemas.topics import EVENTS

from .. import telemetry
from ..clock import BrokerClock
from ..crash import crash_point
from ..outbox import Outbox


class Desk:
    """One producer. One thread."""

    def __init__(self, outbox: Outbox, codec: Codec, clock: BrokerClock) -> None:
        self._outbox = outbox
        self._codec = codec
        self._clock = clock

    def now_us(self) -> int:
        """Broker time."""
        return self._clock.now_us()

    def append(self, record: Record, partition: int) -> None:
        """Hand a fact over. What does not get into the log is told by `flush`."""
        telemetry.EFFECTS.labels(type(record).__name__).inc()
        key, value = record.workflow_id.encode(), self._codec.encode(record)
        self._outbox.send(EVENTS, key, value, headers_for(record), cause=partition, partition=partition)
        crash_point("after_append")

    def flush(self) -> None:
        """Wait until the log has everything. RetriableError when it may not."""
        failed = self._outbox.flush()
        for error in failed.values():
            raise error
        crash_point("after_flush")

    def close(self) -> None:
        """Let go of the producer."""
        self._outbox.close()
