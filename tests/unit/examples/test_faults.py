"""The fault plan: the same for the same seed, complete in every block, and remembered across processes."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path

import pytest

from examples.development.faults import (
    BLOCK_SIZE,
    CORRUPT_CHECKPOINT,
    CRASH,
    FLAKY,
    FLAKY_TIMES,
    KINDS,
    OUT_OF_MEMORY,
    PERMANENT,
    STEPS,
    Fault,
    Strikes,
    fault_of,
)

SEEDS = (0, 1, 7, 4711)


def plan(seed: int, count: int = 10 * BLOCK_SIZE) -> list[Fault | None]:
    return [fault_of(index, seed) for index in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_plan_is_a_function_of_seed_and_index(seed: int) -> None:
    assert plan(seed) == plan(seed)
    assert [fault_of(index, seed) for index in (37, 3, 12)] == [plan(seed)[index] for index in (37, 3, 12)]


def test_another_seed_gives_another_plan() -> None:
    assert len({tuple(plan(seed)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_block_is_mostly_healthy_and_holds_every_kind(seed: int) -> None:
    whole = plan(seed)
    for start in range(0, len(whole), BLOCK_SIZE):
        kinds = Counter(fault.kind for fault in whole[start : start + BLOCK_SIZE] if fault is not None)
        assert set(kinds) == set(KINDS)
        assert BLOCK_SIZE - kinds.total() == 12


@pytest.mark.parametrize("seed", SEEDS)
def test_only_permanent_faults_are_beyond_repair(seed: int) -> None:
    for fault in filter(None, plan(seed)):
        assert fault.step_id in STEPS
        assert fault.recoverable == (fault.kind != PERMANENT)
        assert fault.times == {PERMANENT: None, FLAKY: FLAKY_TIMES}.get(fault.kind, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_checkpoint_is_spoiled_that_has_none_before_it(seed: int) -> None:
    spoiled = [fault for fault in plan(seed) if fault is not None and fault.kind == CORRUPT_CHECKPOINT]
    assert spoiled
    assert all(fault.step_id != STEPS[0] for fault in spoiled)


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_runs_out_where_tools_are_run(seed: int) -> None:
    hungry = [fault for fault in plan(seed) if fault is not None and fault.kind == OUT_OF_MEMORY]
    assert {fault.step_id for fault in hungry} == {"build", "test"}


def test_a_fault_strikes_as_often_as_planned_whichever_process_it_hits(tmp_path: Path) -> None:
    workflow_id = str(uuid.uuid4())
    fault = Fault(kind=FLAKY, step_id="test", times=2)
    taken = [Strikes(tmp_path / "strikes").take(workflow_id, fault) for _ in range(4)]
    assert taken == [1, 2, None, None]


def test_a_permanent_fault_never_stops(tmp_path: Path) -> None:
    strikes = Strikes(tmp_path)
    fault = Fault(kind=PERMANENT, step_id="build", times=None)
    assert [strikes.take("w", fault) for _ in range(5)] == [1, 2, 3, 4, 5]


def test_workflows_are_struck_independently(tmp_path: Path) -> None:
    strikes = Strikes(tmp_path)
    fault = Fault(kind=CRASH, step_id="build")
    assert strikes.take("one", fault) == 1
    assert strikes.take("another", fault) == 1
    assert strikes.take("one", fault) is None
