"""Who holds or held what of the resources that workflows share, and who waits."""

from __future__ import annotations

from typing import NamedTuple

from engine.events import Delivered
from projections.kit import Table, Touch, change, columns
from projections.values import text
from schemas.ids import derive_id
from schemas.records.events import ResourceGranted, ResourceReleased, ResourceRequested


class Row(NamedTuple):
    """A row of `resource_leases`."""

    id: str
    workflow_id: str
    workflow_type: str
    lease_id: str
    resource_id: str
    step_id: str
    amount: int
    priority: int
    status: str
    requested_at: int
    granted_at: int | None
    released_at: int | None
    reason: str | None


def _requested(row: Row | None, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, ResourceRequested)
    if row is not None and row.status != "released":
        return row  # asked again
    return Row(
        id=_key(event),
        workflow_id=r.workflow_id,
        workflow_type=text(r.workflow_type),
        lease_id=text(r.lease_id),
        resource_id=text(r.resource_id),
        step_id=text(r.step_id),
        amount=r.amount,
        priority=r.priority,
        status="waiting",
        requested_at=event.timestamp_us,
        granted_at=None,
        released_at=None,
        reason=None,
    )


def _granted(row: Row, event: Delivered) -> Row:
    if row.status != "waiting":
        return row  # given up before the grant was there, or told twice
    return row._replace(status="granted", granted_at=event.timestamp_us)


def _released(row: Row, event: Delivered) -> Row:
    r = event.record
    assert isinstance(r, ResourceReleased)
    if row.status == "released":
        return row
    reason = None if r.reason is None else text(r.reason)
    return row._replace(status="released", released_at=event.timestamp_us, reason=reason)


def _key(event: Delivered) -> str:
    """A service chooses the ids of its leases; another workflow's may be the same."""
    record = event.record
    return derive_id(record.workflow_id, f"lease {record.lease_id}")  # type: ignore[attr-defined]


TABLE = Table(
    name="resource_leases",
    row=Row,
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        workflow_type="text",
        lease_id="text",
        resource_id="text",
        step_id="text",
        amount="int",
        priority="int",
        status="text",
        requested_at="time",
        granted_at="time",
        released_at="time",
        reason="text",
    ),
    touches={
        ResourceRequested: Touch(_key, _requested),
        ResourceGranted: Touch(_key, change(_granted)),
        ResourceReleased: Touch(_key, change(_released)),
    },
    since=3,
)
