"""Workflows as people ask for them: where they stand, since when, and whether somebody has to look.

status: running, recovering, waiting_for_human, paused, completed, failed, cancelled.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.events import Delivered
from projections.kit import Fold, Table, Touch, columns
from projections.values import text, text_or_none
from schemas.records.events import (
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    StateRestored,
    StepCompleted,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowFailed,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
)

_TERMINAL = frozenset({"completed", "failed", "cancelled"})


class Row(NamedTuple):
    """A row of `workflows`."""

    id: str
    workflow_type: str
    external_id: str | None
    version: str | None
    status: str
    current_step: str | None
    steps: int
    steps_completed: int
    errors: int
    restores: int
    reason: str | None
    started_at: int | None
    ended_at: int | None
    updated_at: int
    log_partition: int
    first_offset: int


def _first(event: Delivered) -> Row:
    r = event.record
    return Row(
        id=r.workflow_id,
        workflow_type=text(r.workflow_type),
        external_id=text_or_none(r.external_id),
        version=None,
        status="running",
        current_step=None,
        steps=0,
        steps_completed=0,
        errors=0,
        restores=0,
        reason=None,
        started_at=None,
        ended_at=None,
        updated_at=event.timestamp_us,
        log_partition=event.partition,
        first_offset=event.offset,
    )


def _started(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, WorkflowStarted)
    if row.started_at is not None:
        return row
    return row._replace(version=text(r.workflow_version), steps=len(r.steps), started_at=event.timestamp_us)


def _step_started(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, StepStarted)
    return row._replace(current_step=text(r.step_id))


def _step_completed(row: Row, event: Delivered) -> Row:
    return row._replace(steps_completed=row.steps_completed + 1)


def _error(row: Row, event: Delivered) -> Row:
    return row._replace(errors=row.errors + 1, status="recovering")


def _recovered(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryAttemptFinished)
    over = r.outcome == "succeeded" and row.status in ("recovering", "waiting_for_human")
    return row._replace(status="running") if over else row


def _asked(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionRequested)
    return row._replace(status="waiting_for_human", reason=text(r.reason))


def _answered(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionResolved)
    return row if r.decision == "expired" else row._replace(status="recovering", reason=None)


def _restored(row: Row, event: Delivered) -> Row:
    return row._replace(restores=row.restores + 1)


def _paused(row: Row, event: Delivered) -> Row:
    return row if row.status == "waiting_for_human" else row._replace(status="paused")


def _resumed(row: Row, event: Delivered) -> Row:
    return row._replace(status="running")


def _ended(status: str) -> Fold:
    def fold(row: Row, event: Delivered) -> Row:
        reason = getattr(event.record, "reason", None)
        return row._replace(status=status, reason=text_or_none(reason), ended_at=event.timestamp_us)

    return fold


def _live(update: Fold) -> Fold:
    """Any event makes the row; nothing changes one that has ended."""

    def fold(row: Row | None, event: Delivered) -> Row:
        if row is None:
            row = _first(event)
        if row.status in _TERMINAL:
            return row
        changed: Row = update(row, event)
        return changed._replace(updated_at=event.timestamp_us)

    return fold


def _workflow_id(event: Delivered) -> str:
    return event.record.workflow_id


TABLE = Table(
    name="workflows",
    row=Row,
    columns=columns(
        id="uuid",
        workflow_type="text",
        external_id="text",
        version="text",
        status="text",
        current_step="text",
        steps="int",
        steps_completed="int",
        errors="int",
        restores="int",
        reason="text",
        started_at="time",
        ended_at="time",
        updated_at="time",
        log_partition="int",
        first_offset="bigint",
    ),
    touches={
        kind: Touch(_workflow_id, _live(fold))
        for kind, fold in (
            (WorkflowStarted, _started),
            (StepStarted, _step_started),
            (StepCompleted, _step_completed),
            (WorkflowErrorOccurred, _error),
            (RecoveryAttemptFinished, _recovered),
            (InterventionRequested, _asked),
            (InterventionResolved, _answered),
            (StateRestored, _restored),
            (WorkflowPaused, _paused),
            (WorkflowResumed, _resumed),
            (WorkflowCompleted, _ended("completed")),
            (WorkflowFailed, _ended("failed")),
            (WorkflowCancelled, _ended("cancelled")),
        )
    },
)
