"""Settings of the client's Kafka connections, and how their errors are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from ._schemas.errors import ConfigError
from ._schemas.topics import MESSAGE_SIZE_BYTES_MAX

#: Records and bytes that wait for Kafka: at a record a step that is hours of outage, at full checkpoints minutes.
BUFFER_RECORDS_MAX = 20_000
BUFFER_KIB_MAX = 128 * 1024
_RECORDS_KEY = "queue.buffering.max.messages"
_KIB_KEY = "queue.buffering.max.kbytes"
#: Settings that the client's promises rest on.
_OURS = frozenset(
    {
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "message.timeout.ms",
        "partition.assignment.strategy",
        "request.required.acks",
    }
)
#: The group's defaults of the older protocol; with KIP-848 the broker sets these.
_CLASSIC = {
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 6_000,
    "heartbeat.interval.ms": 1_500,
}
#: A broker that is away fails many times a second, and refuses as much; it is said this often.
_REPORT_INTERVAL_S = 30.0

T = TypeVar("T")
log = logging.getLogger("kintsugi_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """librdkafka settings as the service gave them; each connection adds its own."""

    kafka: str
    service: str
    common: Mapping[str, Any]
    of_producer: Mapping[str, Any]
    of_consumer: Mapping[str, Any]

    def __post_init__(self) -> None:
        for given in (self.common, self.of_producer, self.of_consumer):
            for key in given:
                if key in _OURS:
                    raise ConfigError(f"{key}: the client's promises rest on it; it cannot be set")

    def producer(self) -> dict[str, Any]:
        """The outbox: nothing is given up while it waits, the buffer's bound is what limits it."""
        return {
            **self._base(),
            _RECORDS_KEY: BUFFER_RECORDS_MAX,
            _KIB_KEY: BUFFER_KIB_MAX,
            "message.max.bytes": MESSAGE_SIZE_BYTES_MAX,
            "linger.ms": 0,
            **self.common,
            **self.of_producer,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": 0,
        }

    def reader(self) -> dict[str, Any]:
        """A consumer that belongs to no group: it is told where to read."""
        given = {**self.common, **self.of_consumer}
        kept = {k: v for k, v in given.items() if not k.startswith(("group.", *_CLASSIC))}
        return {
            **self._base(),
            **kept,
            "group.id": f"{self.service}-unused",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "fetch.wait.max.ms": 50,
        }

    def member(self) -> dict[str, Any]:
        """The member of the service's group that commands are given to."""
        given = {**self.common, **self.of_consumer}
        classic = {} if given.get("group.protocol") == "consumer" else _CLASSIC
        return {
            **self._base(),
            **classic,
            "group.id": f"{self.service}-commands",
            "fetch.wait.max.ms": 50,
            **given,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
        }

    def _base(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.kafka,
            "client.id": f"kintsugi-client-{self.service}",
            "allow.auto.create.topics": False,
            "topic.metadata.refresh.interval.ms": 30_000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            # Errors come by `error_cb`. Below them librdkafka would only say that the settings meant for one kind of
            # connection are ignored by the other.
            "log_level": 2,
            "error_cb": Reporter(),
        }


def buffer_limits(producer: Mapping[str, Any]) -> tuple[int, int]:
    """Records and bytes that may wait, as configured."""
    try:
        records, kib = int(producer[_RECORDS_KEY]), int(producer[_KIB_KEY])
    except (TypeError, ValueError):
        raise ConfigError(f"{_RECORDS_KEY}, {_KIB_KEY}: whole numbers, above 0") from None
    if records < 1 or kib < 1:
        raise ConfigError(f"{_RECORDS_KEY}, {_KIB_KEY}: whole numbers, above 0")
    return records, kib * 1024


def connected(kind: Callable[[dict[str, Any]], T], settings: dict[str, Any]) -> T:
    """Make a producer or consumer. ConfigError with librdkafka's words, which name the setting it refuses."""
    try:
        return kind(settings)
    except KafkaException as error:
        raise ConfigError(f"Kafka settings: {describe_error(error.args[0])}") from error


def describe_error(error: KafkaError) -> str:
    """One line. Reading a KafkaError raises SystemError while another exception is on its way."""
    try:
        return f"{error.name()}: {error.str()}"
    except SystemError:
        return "a Kafka error that cannot be read"


class Seldom:
    """Says of each kind of news once in a while that it is due: what happens in a loop must not fill the log."""

    def __init__(self) -> None:
        self._quiet_until_s: dict[object, float] = {}

    def due(self, kind: object) -> bool:
        """Whether it may be said now. Kinds are few: error codes, names of records."""
        now_s = time.monotonic()
        if now_s < self._quiet_until_s.get(kind, 0.0):
            return False
        self._quiet_until_s[kind] = now_s + _REPORT_INTERVAL_S
        return True


class Reporter:
    """librdkafka's `error_cb`: what it retries by itself is only logged."""

    def __init__(self) -> None:
        self._seldom = Seldom()

    def __call__(self, error: KafkaError) -> None:
        """Log it, unless the same was said a moment ago."""
        if self._seldom.due(error.code()):
            log.warning("kafka: %s", describe_error(error))
