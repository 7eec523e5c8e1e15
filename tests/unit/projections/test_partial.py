"""Some tables alone: which belong together, what a fold of them comes to, and which are live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.testing import Service, World
from projections.catalog import TABLES, chosen, with_references
from projections.filling import fold_part
from projections.generations import NAMES, Generation, live
from schemas.records.events import StepSpec

from ..engine.test_properties import POLICY, moves, play

STEPS = (StepSpec(step_id="a"), StepSpec(step_id="b"))


def test_tables_are_chosen_by_name_in_their_own_order() -> None:
    assert chosen(None) == TABLES
    assert [t.name for t in chosen(["workflow_state_history", "workflow_checkpoints"])] == [
        "workflow_checkpoints",
        "workflow_state_history",
    ]
    with pytest.raises(ValueError, match="no table workflow_error; there are workflow_checkpoints, "):
        chosen(["workflow_error"])


def test_what_they_refer_to_is_folded_with_them() -> None:
    found = with_references(chosen(["workflow_recovery_attempts"]))
    assert [t.name for t in found] == ["workflow_checkpoints", "workflow_errors", "workflow_recovery_attempts"]
    assert with_references(TABLES) == TABLES


@settings(max_examples=30, deadline=None)
@given(st.lists(moves, min_size=1, max_size=3), st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_fold_of_some_tables_has_the_rows_that_a_fold_of_all_has(
    made: list[list[tuple[object, ...]]], names: set[str]
) -> None:
    world = World(POLICY)
    for moves_of_one in made:
        play(world, Service(world, STEPS), moves_of_one)
    every, some = fold_part(world.log, ()).rows, fold_part(world.log, (), chosen(names)).rows
    assert {name: some[name] for name in names} == {name: every[name] for name in names}


def line(number: int, state: str, *tables: str) -> Generation:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    return Generation(
        name=f"g{number}",
        number=number,
        state=state,
        tables=tables or None,
        tables_version=3,
        built_by=None,
        differing=None,
        actor="ann",
        reason="a test",
        created_at=at,
        changed_at=at,
    )


def test_live_is_what_nobody_took_the_place_of() -> None:
    lines = [
        line(2, "promoted"),
        line(3, "retired"),
        line(4, "promoted", "workflows"),
        line(5, "promoted", "workflows", "incidents"),
        line(6, "ready", "incidents"),
        line(7, "dropped", "incidents"),
    ]
    rest = [name for name in NAMES if name not in ("workflows", "incidents")]
    assert live(lines) == {"g2": rest, "g5": ["workflows", "incidents"]}
    assert live([*lines, line(8, "promoted")]) == {"g8": NAMES}
    assert live([]) == {}
