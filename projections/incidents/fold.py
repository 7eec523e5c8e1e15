"""What people were told of, as it stands now: one row for each incident."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from engine.events import Delivered
from projections.kit import Table, Touch, columns
from projections.values import json_text, text, text_or_none
from schemas.records.events import IncidentChanged


class Row(NamedTuple):
    """A row of `incidents`."""

    id: str
    key: str
    kind: str
    state: str
    severity: str
    title: str
    fingerprint: str | None
    dependency: str | None
    error_type: str
    first_seen_at: int
    last_seen_at: int
    error_count: int
    affected_count: int
    interventions: int
    samples: str
    owner: str | None
    note: str | None
    actor: str | None
    reason: str
    page: bool
    revision: int
    opened_at: int
    updated_at: int
    resolved_at: int | None
    log_partition: int
    log_offset: int
    tried: str


def _changed(row: Row | None, event: Delivered) -> Row:
    """An incident says all of itself each time; only a higher revision counts, whatever the order."""
    r = event.record
    assert isinstance(r, IncidentChanged)
    if row is not None and r.revision <= row.revision:
        return row
    return Row(
        id=r.incident_id,
        key=text(r.key),
        kind=text(r.kind),
        state=text(r.state),
        severity=text(r.severity),
        title=text(r.title),
        fingerprint=text_or_none(r.fingerprint),
        dependency=text_or_none(r.dependency),
        error_type=text(r.error_type),
        first_seen_at=r.first_seen_at,
        last_seen_at=r.last_seen_at,
        error_count=r.error_count,
        affected_count=r.affected_count,
        interventions=r.interventions,
        samples=orjson.dumps([text(workflow_id) for workflow_id in r.samples]).decode(),
        owner=text_or_none(r.owner),
        note=text_or_none(r.note),
        actor=text_or_none(r.actor),
        reason=text(r.reason),
        page=r.page,
        revision=r.revision,
        opened_at=event.timestamp_us if row is None else row.opened_at,
        updated_at=event.timestamp_us,
        resolved_at=event.timestamp_us if r.state == "resolved" else None,
        log_partition=event.partition,
        log_offset=event.offset,
        tried=json_text(r.tried) or "[]",
    )


def _incident_id(event: Delivered) -> str | None:
    r = event.record
    assert isinstance(r, IncidentChanged)
    return r.incident_id if r.incident_id == r.workflow_id else None


TABLE = Table(
    name="incidents",
    row=Row,
    columns=columns(
        id="uuid",
        key="text",
        kind="text",
        state="text",
        severity="text",
        title="text",
        fingerprint="text",
        dependency="text",
        error_type="text",
        first_seen_at="time",
        last_seen_at="time",
        error_count="bigint",
        affected_count="bigint",
        interventions="int",
        samples="jsonb",
        owner="text",
        note="text",
        actor="text",
        reason="text",
        page="bool",
        revision="int",
        opened_at="time",
        updated_at="time",
        resolved_at="time",
        log_partition="int",
        log_offset="bigint",
        tried="jsonb",
    ),
    touches={IncidentChanged: Touch(_incident_id, _changed)},
    since=3,
)
