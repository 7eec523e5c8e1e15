"""Attempts to repair: decided -> sent -> accepted -> succeeded | failed | unknown. `success` is null until known."""

from __future__ import annotations

from typing import NamedTuple

from engine.events import Delivered
from projections.kit import Table, Touch, change, columns, once
from projections.values import json_text, text, text_or_none
from schemas.ids import derive_id
from schemas.records.events import CommandAcknowledged, RecoveryAttemptFinished, RecoveryDecided, TimerFired

_OPEN = ("decided", "sent", "accepted")
_ACTION_MAX = 255
_DURATION_MS_MAX = 2**31 - 1


class Row(NamedTuple):
    """A row of `workflow_recovery_attempts`."""

    id: str
    workflow_id: str
    error_id: str
    strategy: str
    attempt_number: int
    success: bool | None
    action_taken: str | None
    result_details: str | None
    error_message: str | None
    duration_ms: int | None
    created_at: int
    status: str
    step_id: str
    error_type: str
    rung: int
    command_id: str | None
    command_type: str | None
    policy_version: str
    rule: str
    evidence: str | None
    alternatives: str | None
    execute_after_ms: int
    sent_at: int | None
    accepted_at: int | None
    finished_at: int | None


def _decided(event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryDecided)
    at_once = r.execute_after_ms <= 0
    return Row(
        id=r.attempt_id,
        workflow_id=r.workflow_id,
        error_id=r.error_id,
        strategy=text(r.strategy),
        attempt_number=r.attempt_number,
        success=None,
        action_taken=None,
        result_details=None,
        error_message=None,
        duration_ms=None,
        created_at=event.timestamp_us,
        status="sent" if at_once else "decided",
        step_id=text(r.step_id),
        error_type=text(r.error_type),
        rung=r.rung,
        command_id=r.command_id,
        command_type=text_or_none(r.command_type),
        policy_version=text(r.policy_version)[:64],
        rule=text(r.rule),
        evidence=json_text(r.evidence),
        alternatives=json_text(r.alternatives),
        execute_after_ms=r.execute_after_ms,
        sent_at=event.timestamp_us if at_once else None,
        accepted_at=None,
        finished_at=None,
    )


def _timer(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, TimerFired)
    if row.status != "decided" or event.timestamp_us < r.due_at:
        return row
    return row._replace(status="sent", sent_at=event.timestamp_us)


def _acknowledged(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, CommandAcknowledged)
    if row.status != "sent" or r.command_id != row.command_id or r.status not in ("accepted", "succeeded"):
        return row
    return row._replace(status="accepted", accepted_at=event.timestamp_us)


def _finished(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryAttemptFinished)
    if row.status not in _OPEN:
        return row
    return row._replace(
        status=text(r.outcome)[:20],
        success=None if r.outcome == "unknown" else r.outcome == "succeeded",
        action_taken=text(r.action_taken)[:_ACTION_MAX],
        error_message=text_or_none(r.error_message),
        duration_ms=max(0, min(r.duration_ms, _DURATION_MS_MAX)),
        finished_at=event.timestamp_us,
    )


def _attempt_id(event: Delivered) -> str | None:
    return event.record.attempt_id  # type: ignore[attr-defined, no-any-return]


def _of_timer(event: Delivered) -> str | None:
    r = event.record
    assert isinstance(r, TimerFired)
    return r.subject_id if r.kind == "backoff" and len(r.subject_id) == 36 else None


def _of_acknowledgement(event: Delivered) -> str | None:
    r = event.record
    assert isinstance(r, CommandAcknowledged)
    return None if r.error_id is None else derive_id(r.error_id, "attempt", r.attempt_number)


TABLE = Table(
    name="workflow_recovery_attempts",
    row=Row,
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        error_id="uuid->workflow_errors",
        strategy="text",
        attempt_number="int",
        success="bool",
        action_taken="text",
        result_details="jsonb",
        error_message="text",
        duration_ms="int",
        created_at="time",
        status="text",
        step_id="text",
        error_type="text",
        rung="int",
        command_id="uuid",
        command_type="text",
        policy_version="text",
        rule="text",
        evidence="jsonb",
        alternatives="jsonb",
        execute_after_ms="bigint",
        sent_at="time",
        accepted_at="time",
        finished_at="time",
    ),
    touches={
        RecoveryDecided: Touch(_attempt_id, once(_decided)),
        TimerFired: Touch(_of_timer, change(_timer)),
        CommandAcknowledged: Touch(_of_acknowledgement, change(_acknowledged)),
        RecoveryAttemptFinished: Touch(_attempt_id, change(_finished)),
    },
)
