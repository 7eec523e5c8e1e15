"""The way out: a bounded buffer in front of Kafka.

Records of one workflow keep their order. When Kafka is away they wait in the buffer; when that is full new ones are
refused with BufferFullError, and never dropped. What was not delivered when the client closes is reported.
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

from ._schemas.codec import Codec
from ._schemas.headers import headers_for
from ._schemas.records import Record
from ._schemas.topics import EVENTS, MESSAGE_SIZE_BYTES_MAX
from .errors import BufferFullError, NotDeliveredError

#: Records and bytes that wait for Kafka; at a record a step that is hours of outage, at full checkpoints minutes.
BUFFER_RECORDS_MAX = 20_000
BUFFER_KIB_MAX = 128 * 1024
#: How long a record waits for Kafka before it is given up and counted as undelivered.
DELIVERY_TIMEOUT_MS = 10 * 60 * 1000
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

    __slots__ = ("_event", "error", "offset", "partition", "timestamp_us")

    def __init__(self) -> None:
        self._event = threading.Event()
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
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        """Until the broker has confirmed. NotDeliveredError when it does not in time, or refuses."""
        if not self._event.wait(timeout_s):
            raise NotDeliveredError(f"not confirmed by Kafka within {timeout_s:g} s; it waits in the buffer")
        if self.error is not None:
            raise NotDeliveredError(f"Kafka did not take the record: {self.error.str()}")


class Outbox:
    """One idempotent producer and the thread that serves it. Safe to share between threads."""

    def __init__(
        self, config: Mapping[str, Any], codec: Codec, interceptors: tuple[Interceptor, ...], topic: str = EVENTS
    ) -> None:
        self._producer = Producer(
            {
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 0,
                "queue.buffering.max.messages": BUFFER_RECORDS_MAX,
                "queue.buffering.max.kbytes": BUFFER_KIB_MAX,
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
                "message.max.bytes": MESSAGE_SIZE_BYTES_MAX,
                "log_level": 3,
                **config,
            }
        )
        self._codec = codec
        self._interceptors = interceptors
        self._topic = topic
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._given_up: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kintsugi-outbox", daemon=True)
        self._thread.start()

    def send(self, record: Record, *, parent: str | None = None) -> Delivery:
        """Buffer a record. BufferFullError when there is no room; ValueError for a field its schema does not allow."""
        for intercept in self._interceptors:
            record = intercept(record)
        name = type(record).__name__
        delivery = Delivery()

        def delivered(error: KafkaError | None, message: Message) -> None:
            with self._lock:
                self._waiting[name] -= 1
                if error is not None:
                    self._given_up[name] += 1
                    log.error("kafka did not take a %s: %s", name, error.str())
            delivery.settle(error, message)

        with self._lock:  # the codec's buffer is shared, and order is the order of this lock
            value = self._codec.encode(record)
            try:
                self._producer.produce(
                    self._topic,
                    key=record.workflow_id.encode(),
                    value=value,
                    headers=[*headers_for(record, parent=parent)],
                    on_delivery=delivered,
                )
            except BufferError as error:
                self._refused[name] += 1
                raise BufferFullError(
                    f"the buffer is full ({BUFFER_RECORDS_MAX} records or {BUFFER_KIB_MAX} KiB): {name} refused",
                    hint="Kafka is away or too slow; try again later",
                ) from error
            except KafkaException as error:
                self._refused[name] += 1
                raise NotDeliveredError(f"{name}: {error.args[0].str()}") from error
            self._waiting[name] += 1
        return delivery

    def undelivered(self) -> Undelivered:
        """What is not confirmed so far."""
        with self._lock:
            total: Counter[str] = Counter()
            for part in (self._waiting, self._given_up, self._refused):
                total.update({k: v for k, v in part.items() if v})
            return Undelivered(
                waiting=sum(self._waiting.values()),
                given_up=self._given_up.total(),
                refused=self._refused.total(),
                by_type=dict(total),
            )

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is confirmed, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while self.undelivered().waiting and time.monotonic() < deadline:
            time.sleep(min(0.01, timeout_s))

    def close(self, timeout_s: float) -> Undelivered:
        """Flush, stop, and report what was not delivered."""
        self.flush(timeout_s)
        self._stopping.set()
        self._thread.join()
        report = self.undelivered()
        if report.waiting:
            self._producer.purge()
            self._producer.poll(0)
        return report

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(_POLL_S)
