"""When a human was asked, why, who looks after it, and what they answered.

`options`: decisions that could be carried out when it was asked. `edited`: the answer came with an edit of the state or
a result of the step; what it says is in the log alone.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from engine.events import Delivered
from engine.people import KNOWN
from projections.kit import Table, Touch, change, columns, once
from projections.values import text, text_or_none
from schemas.records.events import InterventionClaimed, InterventionRequested, InterventionResolved

#: Postgres' last timestamp that `datetime` can hold too.
_TIME_MAX_US = 253_402_300_799_000_000


class Row(NamedTuple):
    """A row of `workflow_interventions`."""

    id: str
    workflow_id: str
    error_id: str | None
    step_id: str
    trigger: str
    reason: str
    status: str
    requested_at: int
    deadline_at: int
    resolved_at: int | None
    decision: str | None
    actor: str | None
    resolution: str | None
    claimed_by: str | None
    claimed_at: int | None
    options: str
    fingerprint: str | None
    dependency: str | None
    edited: bool


def _requested(event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionRequested)
    return Row(
        id=r.intervention_id,
        workflow_id=r.workflow_id,
        error_id=r.error_id,
        step_id=text(r.step_id),
        trigger=text(r.trigger),
        reason=text(r.reason),
        status="open",
        requested_at=event.timestamp_us,
        deadline_at=max(0, min(event.timestamp_us + r.deadline_ms * 1000, _TIME_MAX_US)),
        resolved_at=None,
        decision=None,
        actor=None,
        resolution=None,
        claimed_by=None,
        claimed_at=None,
        options=orjson.dumps([text(option) for option in r.options]).decode(),
        fingerprint=text_or_none(r.fingerprint),
        dependency=text_or_none(r.dependency),
        edited=False,
    )


def _claimed(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionClaimed)
    if row.status != "open":
        return row
    return row._replace(claimed_by=text(r.actor), claimed_at=event.timestamp_us)


def _resolved(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, InterventionResolved)
    if row.status != "open" or r.decision not in KNOWN:
        return row
    return row._replace(
        status="expired" if r.decision == "expired" else "resolved",
        resolved_at=event.timestamp_us,
        decision=text(r.decision),
        actor=text(r.actor),
        resolution=text(r.reason),
        edited=r.edit is not None or r.result is not None or r.sealed is not None,
    )


def _intervention_id(event: Delivered) -> str:
    return event.record.intervention_id  # type: ignore[attr-defined, no-any-return]


TABLE = Table(
    name="workflow_interventions",
    row=Row,
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        error_id="uuid->workflow_errors",
        step_id="text",
        trigger="text",
        reason="text",
        status="text",
        requested_at="time",
        deadline_at="time",
        resolved_at="time",
        decision="text",
        actor="text",
        resolution="text",
    )
    + columns(
        3,
        claimed_by="text",
        claimed_at="time",
        options="jsonb",
        fingerprint="text",
        dependency="text",
        edited="bool",
    ),
    touches={
        InterventionRequested: Touch(_intervention_id, once(_requested)),
        InterventionClaimed: Touch(_intervention_id, change(_claimed)),
        InterventionResolved: Touch(_intervention_id, change(_resolved)),
    },
)
