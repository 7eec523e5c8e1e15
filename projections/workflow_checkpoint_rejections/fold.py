"""Every time a checkpoint was found not to be what its service saved: on arrival, on restore, by the scrubber.

A fact of its own beside the checkpoint's row, which is written once. It outlives that row, so it refers to none.
"""

from __future__ import annotations

from typing import Any

from engine.events import Delivered
from projections.kit import Table, Touch, columns, once
from projections.values import text
from schemas.records.events import CheckpointRejected


def _made(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointRejected)
    return (
        r.event_id,
        r.checkpoint_id,
        r.workflow_id,
        text(r.step_id),
        text(r.reason),
        text(r.detail),
        text(r.detected_by),
        event.timestamp_us,
        event.partition,
        event.offset,
    )


def _key(event: Delivered) -> str:
    return event.record.event_id


TABLE = Table(
    name="workflow_checkpoint_rejections",
    columns=columns(
        id="uuid",
        checkpoint_id="uuid",
        workflow_id="uuid",
        step_id="text",
        reason="text",
        detail="text",
        detected_by="text",
        created_at="time",
        log_partition="int",
        log_offset="bigint",
    ),
    touches={CheckpointRejected: Touch(_key, once(_made))},
    written_once=True,
    since=2,
)
