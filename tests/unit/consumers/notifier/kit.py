"""Incidents and facts, as the coordinator and the notifier write them."""

from __future__ import annotations

import uuid
from typing import Any

from schemas.records.events import IncidentChanged, NotificationDelivered

INCIDENT = "00000000-0000-4000-8000-00000000000a"


def incident(revision: int = 1, incident_id: str = INCIDENT, **fields: Any) -> IncidentChanged:
    """An incident that is open and pages on all channels."""
    values: dict[str, Any] = {
        "key": "payments",
        "kind": "dependency",
        "state": "open",
        "page": True,
        "severity": "high",
        "title": "payments does not answer",
        "dependency": "payments",
        "error_type": "dependency_failure",
        "first_seen_at": 1_800_000_000_000_000,
        "last_seen_at": 1_800_000_060_000_000,
        "error_count": 10_000,
        "affected_count": 9_000,
        "interventions": 2,
        "samples": ("00000000-0000-4000-8000-0000000000b1",),
        "channels": ("slack", "email", "pagerduty"),
        "reason": "opened",
        "tried": '[{"strategy": "retry_step", "succeeded": 2, "failed": 38}]',
    }
    return IncidentChanged(
        event_id=str(uuid.uuid4()),
        workflow_id=incident_id,
        workflow_type="incident",
        occurred_at=1_800_000_000_000_000,
        producer="test",
        incident_id=incident_id,
        revision=revision,
        **{**values, **fields},
    )


def fact(notification_id: str, channel: str, kind: str, outcome: str = "delivered", **fields: Any) -> Any:
    """What the notifier writes of a notification."""
    return NotificationDelivered(
        event_id=str(uuid.uuid4()),
        workflow_id=fields.pop("incident_id", INCIDENT),
        workflow_type="incident",
        occurred_at=1_800_000_000_000_000,
        producer="test",
        notification_id=notification_id,
        incident_id=INCIDENT,
        channel=channel,
        kind=kind,
        outcome=outcome,
        tries=fields.pop("tries", 1),
        detail=None,
    )
