"""Every version of a workflow's state: what was checkpointed (and verified), persisted or restored.

Versions go with their retention, like checkpoints. `reason` and `restored_at`: why and when a state was restored.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from engine.events import Delivered
from projections.kit import Table, Touch, columns, once, redaction_of
from projections.values import rejection_of, state_text, text, text_or_none
from schemas.records.events import CheckpointCreated, CheckpointsExpired, StatePersisted, StateRestored


def _row(
    event: Delivered,
    version: str,
    source: str,
    *,
    restored_from: str | None = None,
    restore_count: int = 0,
    epoch: int | None = None,
    restored_at: int | None = None,
    reason: str | None = None,
    proven: bool = False,
) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointCreated | StatePersisted | StateRestored)
    state, hidden = state_text(r, proven=proven, redaction=redaction_of(event))
    return (
        r.event_id,
        r.workflow_id,
        text(version),
        text(r.step_id),
        text(r.status),
        state,
        r.occurred_at,
        restored_from,
        restore_count,
        event.timestamp_us,
        source,
        text(r.state_version),
        epoch,
        text(r.codec),
        text(r.protection),
        text_or_none(r.claim_uri),
        restored_at,
        text_or_none(reason),
        hidden,
    )


def _checkpointed(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointCreated)
    # Only checkpoints that verified on arrival, or could not be looked into, get here.
    return _row(event, str(r.sequence), "checkpoint", epoch=r.epoch, proven=event.unreadable is None)


def _persisted(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, StatePersisted)
    return _row(event, r.version, "persisted")


def _restored(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, StateRestored)
    return _row(
        event,
        f"r{r.restore_count}",
        "restored",
        restored_from=r.checkpoint_id,
        restore_count=r.restore_count,
        epoch=r.epoch,
        restored_at=r.restored_at,
        reason=r.reason,
    )


def _verified_key(event: Delivered) -> str | None:
    r = event.record
    assert isinstance(r, CheckpointCreated)
    return None if r.evidence or rejection_of(event) is not None else r.event_id


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
    )
    + columns(
        2,
        epoch="int",
        codec="text",
        protection="text",
        claim_uri="text",
        restored_at="time",
        reason="text",
        redacted="bool",
    ),
    touches={
        CheckpointCreated: Touch(_verified_key, once(_checkpointed)),
        StatePersisted: Touch(_event_key, once(_persisted)),
        StateRestored: Touch(_event_key, once(_restored)),
    },
    removes={CheckpointsExpired: attrgetter("event_ids")},
    written_once=True,
    twin="workflow_checkpoints",
)
