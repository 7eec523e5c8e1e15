"""Errors and how their repair goes.

status: open, recovering, waiting_for_human, recovered, failed, joined (belongs to the repair of `root_error_id`), or
ignored (the workflow had ended, or too many errors were open).
`recovery_successful` is null while a repair is in flight. Texts that are sealed stay so: "(sealed)" stands for the
message, and `sealed` holds the bytes for who has the key.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.events import Delivered
from projections.kit import Table, Touch, change, columns, once, redaction_of
from projections.values import json_text, text, text_or_none
from schemas.records.events import (
    ErrorClassified,
    InterventionRequested,
    RecoveryAttemptFinished,
    RecoveryDecided,
    WorkflowErrorOccurred,
)

_DETECTED_BY_MAX = 100
_STATUS_MAX = 20


class Row(NamedTuple):
    """A row of `workflow_errors`."""

    id: str
    workflow_id: str
    step_id: str
    error_type: str
    error_severity: str
    error_message: str
    stack_trace: str | None
    context: str | None
    checkpoint_id: str | None
    recovery_strategy: str | None
    recovery_successful: bool | None
    recovery_attempts: int
    created_at: int
    status: str
    error_code: str
    detected_by: str
    fingerprint: str | None
    root_error_id: str | None
    workflow_type: str
    updated_at: int
    reason: str | None
    sealed: bytes | None
    dependency: str | None


def _occurred(event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, WorkflowErrorOccurred)
    return Row(
        id=r.error_id,
        workflow_id=r.workflow_id,
        step_id=text(r.step_id),
        error_type="unclassified",
        error_severity="medium",
        error_message=text(r.error_message),
        stack_trace=text_or_none(r.stack_trace),
        context=json_text(r.context, redaction_of(event)),
        checkpoint_id=r.checkpoint_id,
        recovery_strategy=None,
        recovery_successful=None,
        recovery_attempts=0,
        created_at=event.timestamp_us,
        status="open",
        error_code=text(r.error_code),
        detected_by=text(r.detected_by)[:_DETECTED_BY_MAX],
        fingerprint=None,
        root_error_id=None,
        workflow_type=text(r.workflow_type),
        updated_at=event.timestamp_us,
        reason=text_or_none(r.reason),
        sealed=r.sealed,
        dependency=text_or_none(r.dependency),
    )


def _classified(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, ErrorClassified)
    if row.fingerprint is not None:
        return row
    return row._replace(
        error_type=text(r.error_type),
        error_severity=text(r.severity),
        fingerprint=text(r.fingerprint)[:64],
        root_error_id=r.root_error_id,
        status=row.status if r.disposition == "opened" else text(r.disposition)[:_STATUS_MAX],
        updated_at=event.timestamp_us,
    )


def _decided(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryDecided)
    if r.attempt_number <= row.recovery_attempts:
        return row  # the first decision of an attempt counts
    return row._replace(
        recovery_strategy=text(r.strategy),
        recovery_attempts=r.attempt_number,
        recovery_successful=None,
        status="waiting_for_human" if r.strategy == "manual_intervention" else "recovering",
        updated_at=event.timestamp_us,
    )


def _finished(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, RecoveryAttemptFinished)
    if r.attempt_number < row.recovery_attempts:
        return row
    succeeded = r.outcome == "succeeded"
    return row._replace(
        recovery_successful=succeeded,
        status="recovered" if succeeded else "failed",
        updated_at=event.timestamp_us,
    )


def _asked(row: Row, event: Delivered) -> Row:
    if row.status == "recovered":
        return row
    return row._replace(status="waiting_for_human", updated_at=event.timestamp_us)


def _error_id(event: Delivered) -> str | None:
    return event.record.error_id  # type: ignore[attr-defined, no-any-return]


TABLE = Table(
    name="workflow_errors",
    row=Row,
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        step_id="text",
        error_type="text",
        error_severity="text",
        error_message="text",
        stack_trace="text",
        context="jsonb",
        checkpoint_id="uuid->workflow_checkpoints",
        recovery_strategy="text",
        recovery_successful="bool",
        recovery_attempts="int",
        created_at="time",
        status="text",
        error_code="text",
        detected_by="text",
        fingerprint="text",
        root_error_id="uuid",
        workflow_type="text",
        updated_at="time",
    )
    + columns(2, reason="text", sealed="bytea")
    + columns(3, dependency="text"),
    touches={
        WorkflowErrorOccurred: Touch(_error_id, once(_occurred)),
        ErrorClassified: Touch(_error_id, change(_classified)),
        RecoveryDecided: Touch(_error_id, change(_decided)),
        RecoveryAttemptFinished: Touch(_error_id, change(_finished)),
        InterventionRequested: Touch(_error_id, change(_asked)),
    },
)
