"""Settings of our Kafka clients, and how their errors are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from confluent_kafka import KafkaError

from schemas.errors import ConfigError
from schemas.topics import MESSAGE_SIZE_BYTES_MAX

from .telemetry import log

MAX_POLL_INTERVAL_MS = 120_000
#: Any broker accepts six seconds; the local stack allows less, see ops/stack/kafka.properties.
SESSION_TIMEOUT_MS = 6_000
#: A dead member is noticed after this long where the broker allows it.
SESSION_TIMEOUT_MS_WANTED = 2_000
HEARTBEAT_INTERVAL_MS = 500
#: A record that the broker has not taken after this long is given up, and its batch is done again.
DELIVERY_TIMEOUT_MS = 15_000
#: Records made meanwhile go together. Recovery waits in `flush` only when it is idle, so its repairs wait for this.
LINGER_MS = 1
REPORT_INTERVAL_S = 5.0
_TEXT_MAX = 500
#: Settings that the loop's guarantees rest on.
_OURS = frozenset({"enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "enable.idempotence", "acks"})

_TRANSIENT = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._PARTITION_EOF,
        KafkaError._WAIT_COORD,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,  # it was there when the role started: a broker that has not heard of it yet
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError._MAX_POLL_EXCEEDED,
    }
)


def consumer_settings(servers: str, group: str, extra: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a group member. `extra` are librdkafka's own names; ConfigError for those that are ours to set."""
    _refuse(extra)
    settings: dict[str, Any] = {
        "bootstrap.servers": servers,
        "group.id": group,
        "client.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "fetch.message.max.bytes": MESSAGE_SIZE_BYTES_MAX + 1024 * 1024,
        "queued.max.messages.kbytes": 65_536,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 30_000,
        "allow.auto.create.topics": False,
        "log_level": 4,
        "logger": _lines(),
    }
    if extra.get("group.protocol", "classic") == "classic":
        # With the newer protocol (KIP-848) the broker sets these.
        settings["session.timeout.ms"] = SESSION_TIMEOUT_MS
        settings["heartbeat.interval.ms"] = HEARTBEAT_INTERVAL_MS
        settings["partition.assignment.strategy"] = "cooperative-sticky"
    settings.update({k: v for k, v in extra.items() if not k.startswith("producer.")})
    return settings


def producer_settings(servers: str, client_id: str, extra: Mapping[str, str]) -> dict[str, Any]:
    """Settings of the one idempotent producer of a role. `extra` names begin with "producer."."""
    _refuse({k.removeprefix("producer."): v for k, v in extra.items()})
    return {
        "bootstrap.servers": servers,
        "client.id": client_id,
        "enable.idempotence": True,
        "acks": "all",
        # `Outbox.flush` is not delayed by this.
        "linger.ms": LINGER_MS,
        "message.timeout.ms": DELIVERY_TIMEOUT_MS,
        "message.max.bytes": MESSAGE_SIZE_BYTES_MAX + 1024 * 1024,
        "queue.buffering.max.messages": 100_000,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "log_level": 4,
        "logger": _lines(),
        **{k.removeprefix("producer."): v for k, v in extra.items() if k.startswith("producer.")},
    }


def is_incremental(settings: Mapping[str, Any]) -> bool:
    """Whether assignments come as differences: cooperative-sticky, and always with KIP-848."""
    if settings.get("group.protocol", "classic") == "consumer":
        return True
    return "cooperative-sticky" in str(settings.get("partition.assignment.strategy", ""))


def passes(error: KafkaError) -> bool:
    """Whether a consumer's error goes away by itself; anything else ends the process."""
    return not error.fatal() and (error.retriable() or error.code() in _TRANSIENT)


def describe(error: KafkaError) -> str:
    """One line. Reading a KafkaError raises SystemError while another exception is on its way."""
    try:
        return f"{error.name()}: {error.str()}"
    except SystemError:
        return "a Kafka error that cannot be read"


class _Seldom:
    """Lets each kind of thing through once in REPORT_INTERVAL_S: a broker that is away fails 40 times a second."""

    def __init__(self) -> None:
        self._quiet_until_s: dict[object, float] = {}

    def __call__(self, kind: object) -> bool:
        now_s = time.monotonic()
        if now_s < self._quiet_until_s.get(kind, 0.0):
            return False
        self._quiet_until_s[kind] = now_s + REPORT_INTERVAL_S
        return True


class Reporter:
    """librdkafka's `error_cb`: what it retries by itself is only logged; fatal ones come through poll as well."""

    def __init__(self) -> None:
        self._seldom = _Seldom()

    def __call__(self, error: KafkaError) -> None:
        """Log an error, each kind seldom."""
        if self._seldom(error.code()):
            log().warning("kafka", error=describe(error), fatal=bool(error.fatal()))


class _Lines(logging.Handler):
    """librdkafka's own lines among ours, each kind seldom; left alone, it writes them to stderr as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._seldom = _Seldom()

    def emit(self, record: logging.LogRecord) -> None:
        """`record.args` are librdkafka's facility, the client's name and the text."""
        facility, _, text = record.args if isinstance(record.args, tuple) else ("", "", record.msg)
        if self._seldom(facility):
            log().warning("kafka client", facility=facility, text=str(text)[:_TEXT_MAX])


@cache
def _lines() -> logging.Logger:
    logger = logging.Logger("kintsugi.librdkafka")
    logger.addHandler(_Lines())
    return logger


def _refuse(extra: Mapping[str, str]) -> None:
    for key in extra:
        if key in _OURS:
            raise ConfigError(f"-X {key}: the guarantees of this process rest on it; it cannot be set")
