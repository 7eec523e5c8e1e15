"""How recovery and coordinator put a record where people look for what could not be read or applied."""

from __future__ import annotations

from confluent_kafka import Message

from schemas.topics import DEAD_LETTERS

from . import telemetry
from .dead_letter import dead_letter_headers, raw, reason_of, value_of
from .outbox import Outbox


def set_aside(outbox: Outbox, message: Message, error: Exception, stage: str) -> None:
    """Hand a dead letter to the producer, caused by the record's own partition; counted and logged."""
    partition, reason = message.partition(), reason_of(error)
    telemetry.DEAD_LETTERS.labels(reason).inc()
    telemetry.log().warning("dead letter", partition=partition, offset=message.offset(), reason=reason)
    outbox.send(
        DEAD_LETTERS,
        raw(message.key()),
        value_of(message),
        dead_letter_headers(message, error, stage),
        cause=partition or 0,
        timestamp_ms=max(0, message.timestamp()[1]),
    )
