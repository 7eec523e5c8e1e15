"""The check of the tables finds every row and column that is not as the log says."""

from __future__ import annotations

from typing import Any

import pytest

from engine.policy import default_policy
from engine.testing import Service, World
from projections.catalog import TABLES
from projections.fold import Rows, fold, touched
from projections.verify import Drift, TableCheck
from schemas.ids import derive_id
from schemas.records.events import CheckpointRejected, StepSpec

from ..engine.test_ladders import damaged, saved

ERRORS = next(t for t in TABLES if t.name == "workflow_errors")
CHECKPOINTS = next(t for t in TABLES if t.name == "workflow_checkpoints")


@pytest.fixture
def world() -> World:
    world = World(default_policy())
    for _ in range(3):
        service = Service(world, (StepSpec(step_id="build"),))
        service.start("build")
        service.checkpoint("build", saved)
        service.fail("build", "TIMEOUT")
    return world


def folded(world: World) -> tuple[TableCheck, Rows]:
    check, rows = TableCheck(), Rows()
    for event in world.log:
        check.add(event)
    fold(rows, world.log, touched(TABLES))
    return check, rows


def changed(row: Any, column: str, value: object) -> tuple[Any, ...]:
    values = list(row)
    values[[c.name for c in ERRORS.columns].index(column)] = value
    return tuple(values)


def test_tables_as_the_log_says_have_no_drift(world: World) -> None:
    check, rows = folded(world)
    for table in TABLES:
        assert list(check.compare(table.name, [tuple(r) for r in rows.get(table.name, {}).values()])) == []
    assert check.rows("workflow_errors") == 3


def test_a_row_that_is_gone_is_found(world: World) -> None:
    check, rows = folded(world)
    gone, *kept = rows["workflow_errors"].values()
    assert list(check.compare("workflow_errors", kept)) == [
        Drift(table="workflow_errors", key=gone[0], column="", expected="a row", found="no row")
    ]


def test_a_row_that_nothing_made_is_found(world: World) -> None:
    check, rows = folded(world)
    extra = changed(next(iter(rows["workflow_errors"].values())), "id", derive_id("no", "such"))
    (drift,) = check.compare("workflow_errors", [*rows["workflow_errors"].values(), extra])
    assert (drift.key, drift.expected, drift.found) == (extra[0], "no row", "a row")


@pytest.mark.parametrize("column", [c.name for c in ERRORS.columns if c.name != "id"])
def test_a_column_that_was_changed_is_found(world: World, column: str) -> None:
    check, rows = folded(world)
    first, *others = rows["workflow_errors"].values()
    other = {"context": '{"changed":true}', "sealed": b"changed"}.get(column, "changed")
    (drift,) = check.compare("workflow_errors", [changed(first, column, other), *others])
    assert (drift.key, drift.column) == (first[0], column)


def test_a_state_that_was_changed_is_found(world: World) -> None:
    check, rows = folded(world)
    first, *others = rows["workflow_checkpoints"].values()
    values = list(first)
    index = [c.name for c in CHECKPOINTS.columns].index("state_data")
    values[index] = values[index].replace('"running"', '"runninh"')
    (drift,) = check.compare("workflow_checkpoints", [tuple(values), *others])
    assert drift.column == "state_data"


def test_a_reference_to_what_came_later_may_be_empty(world: World) -> None:
    service = Service(world, (StepSpec(step_id="build"),))
    service.start("build")
    error = service.fail("build", "Boom")
    later = world.new_id()
    for n, event in enumerate(world.log):
        if event.record is error:
            fields = {name: getattr(error, name) for name in error.__dataclass_fields__}
            record = type(error)(**{**fields, "checkpoint_id": later})
            world.log[n] = type(event)(record, event.partition, event.offset, event.timestamp_us)
    check, rows = folded(world)
    row = rows["workflow_errors"][error.error_id]
    others = [r for k, r in rows["workflow_errors"].items() if k != error.error_id]
    assert list(check.compare("workflow_errors", [row, *others])) == []
    assert list(check.compare("workflow_errors", [changed(row, "checkpoint_id", None), *others])) == []
    (drift,) = check.compare("workflow_errors", [changed(row, "checkpoint_id", derive_id("x", "y")), *others])
    assert drift.column == "checkpoint_id"


def test_workflows_whose_beginning_is_gone_are_counted_and_not_judged(world: World) -> None:
    rows = folded(world)[1]
    cut = world.log[len(world.log) // 3 :]  # the first workflow's beginning is not in it
    check = TableCheck()
    check.begins_late(0)
    for event in cut:
        check.add(event)
    found = [d for t in TABLES for d in check.compare(t.name, [tuple(r) for r in rows.get(t.name, {}).values()])]
    assert found == []
    assert check.unproven > 0
    last = list(rows["workflow_errors"].values())[-1]
    (drift,) = check.compare(
        "workflow_errors", [*list(rows["workflow_errors"].values())[:-1], changed(last, "status", "x")]
    )
    assert (drift.key, drift.column) == (last[0], "status")


def test_tables_of_a_release_are_expected_from_where_its_projector_began(world: World) -> None:
    """A table of version 2 holds what a projector of version 2 applied, though version 3 came later."""
    service = Service(world, (StepSpec(step_id="build"),))
    service.checkpoint("build", damaged)
    end = len(world.log)
    at = next(e.offset for e in world.log if isinstance(e.record, CheckpointRejected))
    for began, expected in (({2: 0, 3: end}, 1), ({2: at, 3: end}, 1), ({2: at + 1, 3: end}, 0), ({3: end}, 0)):
        check = TableCheck(beginnings={(0, version): offset for version, offset in began.items()})
        for event in world.log:
            check.add(event)
        assert check.rows("workflow_checkpoint_rejections") == expected
