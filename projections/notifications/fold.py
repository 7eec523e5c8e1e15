"""Whom was told of which incident, through which channel; or could not be, and why."""

from __future__ import annotations

from typing import Any

from engine.events import Delivered
from projections.kit import Table, Touch, columns, once
from projections.values import text, text_or_none
from schemas.records.events import NotificationDelivered


def _made(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, NotificationDelivered)
    return (
        r.notification_id,
        r.incident_id,
        text(r.channel),
        text(r.kind),
        text(r.outcome),
        r.tries,
        text_or_none(r.detail),
        event.timestamp_us,
        event.partition,
        event.offset,
    )


def _key(event: Delivered) -> str:
    return event.record.notification_id  # type: ignore[attr-defined, no-any-return]


TABLE = Table(
    name="notifications",
    columns=columns(
        id="uuid",
        incident_id="uuid",
        channel="text",
        kind="text",
        outcome="text",
        tries="int",
        detail="text",
        created_at="time",
        log_partition="int",
        log_offset="bigint",
    ),
    touches={NotificationDelivered: Touch(_key, once(_made))},
    written_once=True,
    since=3,
)
