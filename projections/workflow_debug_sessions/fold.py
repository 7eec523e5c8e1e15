"""Sessions in which somebody looked into a workflow: replay, inspection, tracing."""

from __future__ import annotations

from typing import NamedTuple

from engine.events import Delivered
from projections.kit import Table, Touch, change, columns, once
from projections.values import json_text, text
from schemas.records.events import DebugSessionFinished, DebugSessionStarted


class Row(NamedTuple):
    """A row of `workflow_debug_sessions`."""

    id: str
    workflow_id: str
    session_type: str
    start_time: int
    end_time: int | None
    status: str
    config: str | None
    results: str | None
    created_at: int
    actor: str


def _started(event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, DebugSessionStarted)
    return Row(
        id=r.session_id,
        workflow_id=r.workflow_id,
        session_type=text(r.session_type),
        start_time=event.timestamp_us,
        end_time=None,
        status="running",
        config=json_text(r.config),
        results=None,
        created_at=event.timestamp_us,
        actor=text(r.actor),
    )


def _finished(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, DebugSessionFinished)
    if row.end_time is not None:
        return row
    return row._replace(end_time=event.timestamp_us, status=text(r.status), results=json_text(r.results))


def _session_id(event: Delivered) -> str:
    return event.record.session_id  # type: ignore[attr-defined, no-any-return]


TABLE = Table(
    name="workflow_debug_sessions",
    row=Row,
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        session_type="text",
        start_time="time",
        end_time="time",
        status="text",
        config="jsonb",
        results="jsonb",
        created_at="time",
        actor="text",
    ),
    touches={
        DebugSessionStarted: Touch(_session_id, once(_started)),
        DebugSessionFinished: Touch(_session_id, change(_finished)),
    },
)
