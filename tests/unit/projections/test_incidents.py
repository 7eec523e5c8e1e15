"""The table of incidents: what an incident says last, whatever the order in which it is read."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import orjson

from engine.events import Delivered
from projections.catalog import TABLES
from projections.fold import Rows, fold, touched
from projections.incidents.fold import Row
from schemas.ids import derive_id
from schemas.records.events import IncidentChanged

PLAN = touched(TABLES)
INCIDENT_ID = derive_id("incident", "test")


def changed(revision: int, **fields: object) -> IncidentChanged:
    base = IncidentChanged(
        event_id=derive_id("changed", "test", revision),
        workflow_id=INCIDENT_ID,
        workflow_type="kintsugi.incident",
        occurred_at=revision,
        producer="test",
        incident_id=INCIDENT_ID,
        revision=revision,
        key="dependency:pay\x00ments",
        kind="dependency",
        state="open",
        severity="medium",
        title="timeout: payments, 5 workflows",
        dependency="payments",
        error_type="timeout",
        first_seen_at=1_000,
        last_seen_at=2_000,
        error_count=5,
        affected_count=5,
        samples=(derive_id("workflow", "test"),),
        channels=("slack",),
        reason="its breaker is open",
        tried='[{"strategy": "retry_step", "succeeded": 0, "failed": 2}]',
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def row_of(*records: IncidentChanged) -> Row | None:
    rows: Rows = {}
    events = [Delivered(r, 3, n, 1_000_000 * r.revision) for n, r in enumerate(records)]
    fold(rows, events, PLAN)
    found: Row | None = rows.get("incidents", {}).get(INCIDENT_ID)
    return found


def test_an_incident_is_one_row_that_says_its_last_revision() -> None:
    row = row_of(changed(1), changed(2, state="recovering", page=True), changed(3, state="resolved", owner="ada"))
    assert row is not None
    assert (row.state, row.owner, row.page, row.revision) == ("resolved", "ada", False, 3)
    assert (row.opened_at, row.updated_at, row.resolved_at) == (1_000_000, 3_000_000, 3_000_000)
    assert orjson.loads(row.samples) == [derive_id("workflow", "test")]
    assert row.key == "dependency:pay\ufffdments"
    assert orjson.loads(row.tried) == [{"strategy": "retry_step", "succeeded": 0, "failed": 2}]


def test_an_older_revision_changes_nothing() -> None:
    records = (changed(1), changed(2, state="recovering"), changed(3, state="resolved"))
    for order in permutations(records):
        row = row_of(*order)
        assert row is not None
        assert (row.state, row.revision) == ("resolved", 3)


def test_the_same_revision_twice_counts_once() -> None:
    row = row_of(changed(1), changed(1, note="another"))
    assert row is not None
    assert row.note is None


def test_an_incident_speaks_only_for_itself() -> None:
    assert row_of(changed(1, workflow_id=derive_id("another", "test"))) is None
