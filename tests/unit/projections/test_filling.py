"""Filling folds workflow by workflow to the rows that the whole log gives, and hides what is hidden at each place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy import default_policy
from engine.testing import Service, World
from ops.spool import bucket_of
from projections.catalog import TABLES
from projections.filling import fold_part
from projections.fold import Folded
from projections.kit import hidden_from, redaction_of
from schemas.records.events import StepSpec, WorkflowErrorOccurred
from schemas.redaction import Redaction

from ..engine.test_properties import POLICY, moves, play

STEPS = (StepSpec(step_id="a"), StepSpec(step_id="b"), StepSpec(step_id="c"))


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, min_size=1, max_size=4), st.integers(1, 5))
def test_parts_by_workflow_come_to_the_rows_of_the_log(made: list[list[tuple[object, ...]]], parts: int) -> None:
    world = World(POLICY)
    for moves_of_one in made:
        play(world, Service(world, STEPS), moves_of_one)
    whole = Folded(TABLES)
    for event in world.log:
        whole.remove(event)
        whole.add(event)
    found: dict[str, dict[str, object]] = {table.name: {} for table in TABLES}
    for part in range(parts):
        events = [e for e in world.log if bucket_of(e.record.workflow_id.encode()) % parts == part]
        for name, rows in fold_part(events, ()).rows.items():
            assert not found[name].keys() & rows.keys()
            found[name].update(rows)
    assert found == whole.rows


@pytest.mark.parametrize("since", [0, 1, 10**6])
def test_a_field_is_hidden_from_its_place_on(since: int) -> None:
    world = World(default_policy())
    service = Service(world, (StepSpec(step_id="build"),))
    service.start("build")
    service.emit(
        WorkflowErrorOccurred,
        error_id=world.new_id(),
        step_id="build",
        error_code="X",
        error_message="x",
        detected_by="reported",
        context='{"card":"4711"}',
    )
    place = next(e.offset for e in world.log if isinstance(e.record, WorkflowErrorOccurred))
    (row,) = fold_part(world.log, [(place - 1 + since, ("card",))]).rows["workflow_errors"].values()
    assert ("4711" in str(row)) == (since > 1)


def test_of_several_places_the_last_before_an_event_counts() -> None:
    world = World(default_policy())
    Service(world, (StepSpec(step_id="build"),)).start("build")
    places = [(0, Redaction(["a"])), (1, Redaction(["b"])), (10**6, Redaction(["c"]))]
    hidden = [redaction_of(hidden_from(event, places)).paths for event in world.log]
    assert hidden == [("a",), *[("b",)] * (len(world.log) - 1)]
    assert len(world.log) > 1
