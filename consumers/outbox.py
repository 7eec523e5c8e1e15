"""The one idempotent producer of a role. What it takes is in the log when `flush` says nothing against it.

Each record names the partition that caused it: when a record is not delivered, that partition's batch is done again.
`end_batch` and `durable` tell how far a partition's effects have arrived while later ones are still on their way.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import partial
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.errors import FatalError, KintsugiError, RetriableError
from schemas.headers import Headers

from .clock import BrokerClock
from .deadline import Deadline
from .kafka import DELIVERY_TIMEOUT_MS, Reporter, describe

#: librdkafka gives every record up after DELIVERY_TIMEOUT_MS, so a flush ends by itself shortly after.
FLUSH_TIMEOUT_S = DELIVERY_TIMEOUT_MS / 1000 + 5.0

#: Records on their way before the next are made: more would wait in the producer, where no lane overtakes another.
IN_FLIGHT_RECORDS_MAX = 500
#: Longest wait for one of them to arrive, before the loop looks after its other duties.
CROWDED_POLL_S = 0.005


class _Batch:
    """Records caused by one batch: how many are on their way, and where the batch ends (None: it is in hand)."""

    __slots__ = ("next_offset", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.next_offset: int | None = None


class Outbox:
    """Sends records in the order given. One thread."""

    def __init__(self, settings: dict[str, Any], clock: BrokerClock) -> None:
        self._report = Reporter()
        self._settings = {**settings, "error_cb": self._on_error}
        self._clock = clock
        self._producer = Producer(self._settings)
        self._broken = False
        #: Records handed over so far.
        self.taken = 0
        self._waiting: Counter[int] = Counter()
        #: By cause, oldest first; ended ones are taken out by `durable`.
        self._batches: dict[int, deque[_Batch]] = {}
        self._failed: dict[int, KintsugiError] = {}
        self._generation = 0

    @property
    def on_its_way(self) -> int:
        """Records handed over of which nothing was heard yet."""
        return self._waiting.total()

    @property
    def crowded(self) -> bool:
        """Whether no more should be handed over before some have arrived."""
        return self.on_its_way >= IN_FLIGHT_RECORDS_MAX

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        cause: int,
        partition: int = -1,
        timestamp_ms: int = 0,
    ) -> None:
        """Hand one record over. `cause` is the partition that is done again when it is lost.

        RetriableError when the queue stays full; FatalError for a record that can never be sent.
        """
        batch = self._in_hand(cause)
        delivered = partial(self._delivered, self._generation, cause, batch)
        deadline = Deadline(FLUSH_TIMEOUT_S)
        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    partition,
                    on_delivery=delivered,
                    timestamp=timestamp_ms,
                    headers=cast(Any, headers),
                )
                self._waiting[cause] += 1
                batch.waiting += 1
                self.taken += 1
                return
            except BufferError:
                if deadline.passed:
                    raise RetriableError("the producer's queue stays full") from None
                self._producer.poll(0.05)
            except KafkaException as error:
                code = error.args[0]
                if code.fatal() or code.code() == KafkaError._FATAL:
                    self._broken = True
                    raise RetriableError(f"the producer broke: {describe(code)}") from error
                raise FatalError(f"{topic} refuses a record: {describe(code)}") from error

    def end_batch(self, cause: int, next_offset: int) -> None:
        """All records caused by what comes before `next_offset` were handed over."""
        self._in_hand(cause).next_offset = next_offset

    def durable(self, cause: int) -> int | None:
        """End of the newest batch that is in the log with all before it; None when none has ended since last asked."""
        batches, found = self._batches.get(cause, ()), None
        while batches and not batches[0].waiting and batches[0].next_offset is not None:
            found = batches.popleft().next_offset
        return found

    def forget(self, cause: int) -> None:
        """The partition is begun anew, or is another's: what is on its way tells nothing any more."""
        self._batches.pop(cause, None)

    def poll(self) -> dict[int, KintsugiError]:
        """As `flush`, of what has been heard so far; when too much is on its way, a moment passes until more is."""
        self._producer.poll(CROWDED_POLL_S if self.crowded else 0)
        if self._broken:
            return self.flush()
        failed, self._failed = self._failed, {}
        return failed

    def flush(self) -> dict[int, KintsugiError]:
        """Wait for the broker. Returns, by causing partition, why something is not in the log."""
        if self._waiting:
            self._producer.flush(FLUSH_TIMEOUT_S)
        else:
            self._producer.poll(0)
        for cause in self._waiting:
            self._failed.setdefault(cause, RetriableError("the broker did not answer in time"))
        if self._waiting or self._broken:
            self._renew()
        failed, self._failed = self._failed, {}
        return failed

    def close(self) -> None:
        """Send what is left, within the delivery time."""
        self._producer.flush(FLUSH_TIMEOUT_S)

    def _in_hand(self, cause: int) -> _Batch:
        batches = self._batches.setdefault(cause, deque())
        if not batches or batches[-1].next_offset is not None:
            batches.append(_Batch())
        return batches[-1]

    def _renew(self) -> None:
        """A producer with a fatal error, or with records of unknown fate, is not used again."""
        self._producer.purge()
        self._producer.flush(1.0)
        self._producer = Producer(self._settings)
        self._generation += 1
        self._waiting.clear()
        self._broken = False

    def _delivered(
        self, generation: int, cause: int, batch: _Batch, error: KafkaError | None, message: Message
    ) -> None:
        if generation != self._generation:
            return
        self._waiting[cause] -= 1
        if self._waiting[cause] <= 0:
            del self._waiting[cause]
        if error is None:
            batch.waiting -= 1
            self._clock.acknowledged(message.timestamp()[1] * 1000)
            return
        self._failed[cause] = RetriableError(f"{message.topic()}: {describe(error)}")

    def _on_error(self, error: KafkaError) -> None:
        self._report(error)
        if error.fatal():
            self._broken = True
