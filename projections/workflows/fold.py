"""Workflows as people ask for them: where they stand, since when, and whether somebody has to look.

status, the first that holds: completed, failed, cancelled; waiting_for_human; paused; recovering; running. No event
moves a row twice: what is counted is kept as a set, and what opens and closes a repair, or pauses, is known by its id,
so that one which comes again after it was undone changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from engine.events import Delivered
from engine.graph import STEPS_MAX
from engine.people import ASKS_AGAIN, CLOSED, KNOWN
from engine.state import CASES_MAX
from projections.kit import Fold, Table, Touch, columns
from projections.values import text, text_or_none
from schemas.records.events import (
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    RecoveryDecided,
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
_WAITS = "waiting_for_human"
_INT_MAX = 2**31 - 1
#: Facts known by their ids: more than the budgets of a workflow make of them (30 attempts, by default).
_KNOWN_MAX = 128
#: Of an id so many hexadecimal digits are kept, and a comma.
_KNOWN_CHARS = 17


class Row(NamedTuple):
    """A row of `workflows`. JSON: `completed`, a list of step ids; `repairs`, error id to how its repair stands.

    `known`: beginnings of the ids of the last facts that were folded by `_first_time`.
    """

    id: str
    workflow_type: str
    external_id: str | None
    version: str | None
    status: str
    current_step: str | None
    steps: int
    completed: str
    repairs: str
    paused: bool
    restores: int
    reason: str | None
    started_at: int | None
    ended_at: int | None
    updated_at: int
    log_partition: int
    first_offset: int
    known: str


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
        completed="[]",
        repairs="{}",
        paused=False,
        restores=0,
        reason=None,
        started_at=None,
        ended_at=None,
        updated_at=event.timestamp_us,
        log_partition=event.partition,
        first_offset=event.offset,
        known="",
    )


def _seen(row: Row, event: Delivered) -> Row:
    return row


def _started(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, WorkflowStarted)
    if row.started_at is not None:
        return row
    return row._replace(version=text(r.workflow_version), steps=len(r.steps), started_at=event.timestamp_us)


def _step_started(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, StepStarted)
    return row._replace(current_step=text(r.step_id), paused=False)


def _step_completed(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, StepCompleted)
    done: list[str] = orjson.loads(row.completed)
    step_id = text(r.step_id)
    if step_id in done or len(done) >= STEPS_MAX:
        return row
    return row._replace(completed=orjson.dumps([*done, step_id]).decode())


def _repair(row: Row, error_id: str, state: str | None, reason: str | None = None) -> Row:
    """Note how the repair of an error stands; None when it is over."""
    repairs: dict[str, str] = orjson.loads(row.repairs)
    if state is None:
        repairs.pop(error_id, None)
    elif error_id in repairs or len(repairs) < CASES_MAX:
        repairs[error_id] = state
    return row._replace(repairs=orjson.dumps(repairs).decode(), reason=reason)


def _decided(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryDecided)
    waits = r.strategy == "manual_intervention"
    return _repair(row, r.error_id, _WAITS if waits else "recovering", text(r.rule) if waits else None)


def _recovered(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryAttemptFinished)
    return _repair(row, r.error_id, None) if r.outcome == "succeeded" else row


def _asked(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionRequested)
    return row if r.error_id is None else _repair(row, r.error_id, _WAITS, text(r.reason))


def _answered(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionResolved)
    if r.decision in ASKS_AGAIN or r.decision not in KNOWN or r.error_id is None:
        return row
    return _repair(row, r.error_id, None if r.decision == CLOSED else "recovering")


def _restored(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, StateRestored)
    return row._replace(restores=max(row.restores, min(r.restore_count, _INT_MAX)))


def _paused(row: Row, event: Delivered) -> Row:
    return row._replace(paused=True)


def _resumed(row: Row, event: Delivered) -> Row:
    return row._replace(paused=False)


def _ended(status: str) -> Fold:
    def fold(row: Row, event: Delivered) -> Row:
        reason = getattr(event.record, "reason", None)
        return row._replace(status=status, reason=text_or_none(reason), ended_at=event.timestamp_us)

    return fold


def _standing(row: Row) -> str:
    if row.status in _TERMINAL:
        return row.status
    if _WAITS in row.repairs:
        return _WAITS
    if row.paused:
        return "paused"
    return "running" if row.repairs == "{}" else "recovering"


def _live(update: Fold) -> Fold:
    """Any event makes the row; nothing changes one that has ended."""

    def fold(row: Row | None, event: Delivered) -> Row:
        if row is None:
            row = _first(event)
        if row.status in _TERMINAL:
            return row
        changed: Row = update(row, event)
        return changed._replace(status=_standing(changed), updated_at=event.timestamp_us)

    return fold


def _first_time(update: Fold) -> Fold:
    """A fact counts once, however often it comes."""

    def fold(row: Row, event: Delivered) -> Row:
        digits = event.record.event_id.replace("-", "")[: _KNOWN_CHARS - 1] + ","
        if digits in row.known:
            return row
        changed: Row = update(row, event)
        return changed._replace(known=(row.known + digits)[-_KNOWN_MAX * _KNOWN_CHARS :])

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
        completed="jsonb",
        repairs="jsonb",
        paused="bool",
        restores="int",
        reason="text",
        started_at="time",
        ended_at="time",
        updated_at="time",
        log_partition="int",
        first_offset="bigint",
    )
    + columns(2, known="text"),
    touches={
        kind: Touch(_workflow_id, _live(fold))
        for kind, fold in (
            (WorkflowStarted, _started),
            (StepStarted, _step_started),
            (StepCompleted, _step_completed),
            (WorkflowErrorOccurred, _seen),
            (RecoveryDecided, _first_time(_decided)),
            (RecoveryAttemptFinished, _first_time(_recovered)),
            (InterventionRequested, _first_time(_asked)),
            (InterventionResolved, _first_time(_answered)),
            (StateRestored, _restored),
            (WorkflowPaused, _first_time(_paused)),
            (WorkflowResumed, _first_time(_resumed)),
            (WorkflowCompleted, _ended("completed")),
            (WorkflowFailed, _ended("failed")),
            (WorkflowCancelled, _ended("cancelled")),
        )
    },
)
