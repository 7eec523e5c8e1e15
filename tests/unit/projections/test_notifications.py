"""Whom was told what, as rows."""

from __future__ import annotations

from engine.events import Delivered
from projections.catalog import TABLES
from projections.fold import Rows, fold, touched
from schemas.records.events import NotificationDelivered

NOTIFICATION = "00000000-0000-4000-8000-00000000000c"
INCIDENT = "00000000-0000-4000-8000-00000000000a"
(TABLE,) = (table for table in TABLES if table.name == "notifications")


def told(outcome: str, detail: str | None, offset: int) -> Delivered:
    record = NotificationDelivered(
        event_id="00000000-0000-4000-8000-00000000000e",
        workflow_id=INCIDENT,
        workflow_type="incident",
        occurred_at=1,
        producer="test",
        notification_id=NOTIFICATION,
        incident_id=INCIDENT,
        channel="slack",
        kind="trigger",
        outcome=outcome,
        tries=3,
        detail=detail,
    )
    return Delivered(record, 2, offset, 1_000_000 + offset)


def test_a_message_is_one_row_and_what_was_written_down_first_stays() -> None:
    rows: Rows = {}
    fold(rows, [told("delivered", "200 \x00ok", 5), told("given_up", None, 6)], touched(TABLES))
    (row,) = rows["notifications"].values()
    assert dict(zip((column.name for column in TABLE.columns), row, strict=True)) == {
        "id": NOTIFICATION,
        "incident_id": INCIDENT,
        "channel": "slack",
        "kind": "trigger",
        "outcome": "delivered",
        "tries": 3,
        "detail": "200 \ufffdok",
        "created_at": 1_000_005,
        "log_partition": 2,
        "log_offset": 5,
    }
