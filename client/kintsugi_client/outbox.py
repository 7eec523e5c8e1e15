"""The way out: a bounded buffer in front of Kafka.

Records of one workflow keep their order. While Kafka is away they wait in the buffer, as long as it takes; what does
not fit is refused with BufferFullError, and never dropped. As the buffer fills, what matters least is refused first:
heartbeats and usage reports, then saved states and new workflows, and at its end everything, so that completions,
errors and answers to commands find room longest. What was not delivered when the client closes is reported.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ._schemas.catalog import shipped
from ._schemas.codec import Codec
from ._schemas.errors import RetriableError
from ._schemas.headers import headers_for
from ._schemas.records import Record
from ._schemas.topics import EVENTS
from .errors import BufferFullError, ClosedError, NotDeliveredError
from .schema_ids import SchemaIds
from .settings import Settings, buffer_limits, connected, describe_error

#: Share of the buffer up to which a record is taken; those not named may use all of it.
_SHARES: Mapping[str, float] = {
    "StepProgressed": 0.8,
    "ResourceUsageReported": 0.8,
    "CheckpointCreated": 0.9,
    "StatePersisted": 0.9,
    "StateRestored": 0.9,
    "WorkflowStarted": 0.9,
}
_POLL_S = 0.05

log = logging.getLogger("kintsugi_client")

Interceptor = Callable[[Record], Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """What Kafka never confirmed: records still waiting, given up, and refused because the buffer was full."""

    waiting: int
    given_up: int
    refused: int
    by_type: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.waiting or self.given_up or self.refused)


class Delivery:
    """The fate of one record."""

    __slots__ = ("_event", "_follow", "_lock", "error", "offset", "partition", "timestamp_us")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._follow: list[Callable[[], None]] = []
        self.error: KafkaError | None = None
        self.partition = -1
        self.offset = -1
        self.timestamp_us = 0

    def settle(self, error: KafkaError | None, message: Message) -> None:
        """Called once, by the delivery report."""
        self.error = error
        if error is None:
            self.partition = message.partition() or 0
            self.offset = message.offset() or 0
            self.timestamp_us = message.timestamp()[1] * 1000
        with self._lock:
            self._event.set()
            follow, self._follow = self._follow, []
        for call in follow:
            call()

    def then(self, call: Callable[[], None]) -> None:
        """Call when the fate is known: at once, or from the thread that learns it."""
        with self._lock:
            if not self._event.is_set():
                self._follow.append(call)
                return
        call()

    @property
    def known(self) -> bool:
        """Whether the broker has confirmed or refused."""
        return self._event.is_set()

    def wait_known(self, timeout_s: float) -> bool:
        """Until the broker has confirmed or refused; whether it has."""
        return self._event.wait(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Until the broker has confirmed. NotDeliveredError when it does not in time, or refuses."""
        self._event.wait(timeout_s)
        self.check(timeout_s)

    def check(self, waited_s: float) -> None:
        """NotDeliveredError when the broker has not confirmed so far."""
        if not self._event.is_set():
            raise NotDeliveredError(f"not confirmed by Kafka within {waited_s:g} s; it waits in the buffer")
        if self.error is not None:
            raise NotDeliveredError(f"Kafka did not take the record: {describe_error(self.error)}")


class Outbox:
    """One idempotent producer and the thread that serves it. Safe to share between threads."""

    def __init__(
        self, settings: Settings, ids: SchemaIds | None, interceptors: tuple[Interceptor, ...] = (), topic: str = EVENTS
    ) -> None:
        self._settings = settings.producer()
        self._records_max, self._bytes_max = buffer_limits(self._settings)
        self._producer = connected(Producer, self._settings)
        self._ids = ids
        self._codec = Codec(ids)
        self._plain_codec = Codec()
        self._interceptors = interceptors
        self._topic = topic
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._waiting_bytes = 0
        self._given_up: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._closed = False
        self._report: Undelivered | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kintsugi-outbox", daemon=True)
        self._thread.start()
        if ids is not None:
            ids.start()

    def send(self, record: Record, *, parent: str | None = None) -> Delivery:
        """Buffer a record.

        BufferFullError when there is no room, NotDeliveredError when it can never be sent, ClosedError after `close`;
        ValueError or TypeError for a field its schema does not allow.
        """
        for intercept in self._interceptors:
            record = intercept(record)
        codec = self._codec_for(record)
        with self._lock:  # a codec's buffer is shared, and order is the order of this lock
            if self._closed:
                raise ClosedError(f"the client is closed: {type(record).__name__} not recorded")
            return self._buffer(record, codec.encode(record), parent)

    def _codec_for(self, record: Record) -> Codec:
        if self._ids is None:
            return self._plain_codec
        try:
            self._ids.id_of(shipped()[type(record).__name__])
        except RetriableError:
            return self._plain_codec
        return self._codec

    def _buffer(self, record: Record, value: bytes, parent: str | None) -> Delivery:
        name, size_bytes = type(record).__name__, len(value)
        share = _SHARES.get(name, 1.0)
        full = self._waiting.total() >= share * self._records_max
        if full or self._waiting_bytes + size_bytes > share * self._bytes_max:
            raise self._full(name)
        delivery = Delivery()

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered(name, size_bytes, error)
            delivery.settle(error, message)

        try:
            self._produce(record, value, parent, delivered)
        except BufferError:
            raise self._full(name) from None
        except KafkaException as error:
            self._refused[name] += 1
            raise NotDeliveredError(f"{name}: {describe_error(error.args[0])}") from error
        self._waiting[name] += 1
        self._waiting_bytes += size_bytes
        return delivery

    def _produce(
        self, record: Record, value: bytes, parent: str | None, delivered: Callable[[KafkaError | None, Message], None]
    ) -> None:
        def produce() -> None:
            headers: Any = headers_for(record, parent=parent)
            key = record.workflow_id.encode()
            self._producer.produce(self._topic, value, key, on_delivery=delivered, headers=headers)

        try:
            produce()
        except KafkaException as error:
            if error.args[0].code() != KafkaError._FATAL:
                raise
            # An idempotent producer that cannot keep its promise refuses everything from then on: take a new one.
            # What the old one held is given up, and counted as such.
            log.error("kafka: the producer broke and is replaced: %s", describe_error(error.args[0]))
            broken, self._producer = self._producer, connected(Producer, self._settings)
            threading.Thread(target=_end, args=(broken,), name="kintsugi-outbox-end", daemon=True).start()
            produce()

    def _full(self, name: str) -> BufferFullError:
        self._refused[name] += 1
        return BufferFullError(
            f"the buffer is full ({self._records_max} records or {self._bytes_max // 1024} KiB): {name} refused",
            hint="Kafka is away or too slow; try again later",
        )

    def _delivered(self, name: str, size_bytes: int, error: KafkaError | None) -> None:
        with self._lock:
            self._waiting[name] -= 1
            self._waiting_bytes -= size_bytes
            if error is not None:
                self._given_up[name] += 1
        if error is not None and not self._stopping.is_set():
            log.error("kafka did not take a %s: %s", name, describe_error(error))

    def undelivered(self) -> Undelivered:
        """What is not confirmed so far."""
        with self._lock:
            by_type: Counter[str] = Counter()
            for part in (self._waiting, self._given_up, self._refused):
                by_type.update({k: v for k, v in part.items() if v})
            return Undelivered(
                waiting=self._waiting.total(),
                given_up=self._given_up.total(),
                refused=self._refused.total(),
                by_type=dict(by_type),
            )

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is confirmed, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while self.undelivered().waiting and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, timeout_s: float) -> Undelivered:
        """Flush, take nothing more, and report what was not delivered. A second call reports the same."""
        if self._report is None:
            self.flush(timeout_s)
            with self._lock:
                self._closed = True
            self._report = self.undelivered()
            self._stopping.set()
            self._thread.join()
            if self._report.waiting:
                _end(self._producer)
            if self._ids is not None:
                self._ids.close()
        return self._report

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._producer.poll(_POLL_S)
            except Exception:  # raised by a callback; without this thread nobody would learn of any delivery
                log.exception("a delivery could not be told")


def _end(producer: Producer) -> None:
    """Give up what a producer holds; its delivery reports are served, so that everybody who waits is told."""
    producer.purge()
    producer.flush(1.0)
