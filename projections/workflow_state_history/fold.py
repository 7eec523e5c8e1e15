"""Every version of a workflow's state: what was checkpointed (and verified), persisted or restored."""

from __future__ import annotations

from typing import Any

from engine.events import Delivered
from projections.kit import Table, Touch, columns, once
from projections.values import state_text, text
from schemas.records.events import CheckpointCreated, StatePersisted, StateRestored


def _state(r: CheckpointCreated | StatePersisted | StateRestored) -> str:
    proven = isinstance(r, CheckpointCreated)  # only what verified on arrival gets here
    return state_text(r.state, codec=r.codec, size_bytes=r.size_bytes, digest=r.digest, rejected=None, proven=proven)


def _row(event: Delivered, version: str, source: str, restored_from: str | None, restore_count: int) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointCreated | StatePersisted | StateRestored)
    return (
        r.event_id,
        r.workflow_id,
        text(version),
        text(r.step_id),
        text(r.status),
        _state(r),
        r.occurred_at,
        restored_from,
        restore_count,
        event.timestamp_us,
        source,
        text(r.state_version),
    )


def _checkpointed(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointCreated)
    return _row(event, str(r.sequence), "checkpoint", None, 0)


def _persisted(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, StatePersisted)
    return _row(event, r.version, "persisted", None, 0)


def _restored(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, StateRestored)
    return _row(event, f"r{r.restore_count}", "restored", r.checkpoint_id, r.restore_count)


def _verified_key(event: Delivered) -> str | None:
    r = event.record
    assert isinstance(r, CheckpointCreated)
    return None if event.rejection is not None or r.evidence else r.event_id


def _event_key(event: Delivered) -> str:
    return event.record.event_id


TABLE = Table(
    name="workflow_state_history",
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        version="text",
        step_id="text",
        status="text",
        state_data="jsonb",
        timestamp="time",
        restored_from="uuid->workflow_checkpoints",
        restore_count="int",
        created_at="time",
        source="text",
        state_version="text",
    ),
    touches={
        CheckpointCreated: Touch(_verified_key, once(_checkpointed)),
        StatePersisted: Touch(_event_key, once(_persisted)),
        StateRestored: Touch(_event_key, once(_restored)),
    },
    written_once=True,
    twin="workflow_checkpoints",
)
