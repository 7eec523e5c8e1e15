"""Steps that repeat without progress are a loop; whatever gets on is none."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from engine import recent
from engine.decide import decide
from engine.fold import evolve
from engine.policy import Policy, default_policy
from engine.snapshot import dump, load
from engine.state import WorkflowState
from engine.testing import Service, World, saved
from schemas.errors import ConfigError
from schemas.records.commands import RestartWorkflow, ResumeFromCheckpoint
from schemas.records.events import (
    CheckpointCreated,
    RecoveryAttemptFinished,
    StateRestored,
    StepSkipped,
    StepSpec,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

from .kit import Run, do, errors, policy_with, started

TEN = [Run(step=f"s{n}", state=n) for n in range(10)]
AGENT = Run(step="call", given="same question", result="same answer")

LOOPS = {
    "a step whose state stays as it is": ([Run(step="a", state=1)] * 3, ["a"]),
    "an agent that repeats the same successful call": ([AGENT] * 3, ["call"]),
    "the same result, whatever it was given": ([Run(step="a", result="r")] * 3, ["a"]),
    "two steps in turn": ([Run(step="a", state=1), Run(step="b", state=2)] * 3, ["a", "b"]),
    "ten steps in turn, as many as the window has": (TEN * 3, [r.step for r in TEN]),
    "after work that got on": ([*TEN, *[Run(step="a", state=1), Run(step="b", state=1)] * 3], ["a", "b"]),
    "a state saved at one of two steps": ([Run(step="a"), Run(step="b", state=1)] * 3, ["a", "b"]),
    "a state and a result": ([Run(step="a", state=1, result="r")] * 3, ["a"]),
    "heartbeats that always say the same": ([Run(step="a", state=1, token="t", progress=0.5)] * 3, ["a"]),
    "a step with a step between": (
        [Run(step="a", state=1), Run(step="a", state=1), Run(step="b", state=1)] * 3,
        ["a", "a", "b"],
    ),
}

HEALTHY = {
    "twice is not three times": [Run(step="a", state=1)] * 2,
    "a state that changes": [Run(step="a", state=n) for n in range(40)],
    "pages that are turned": [Run(step="page", given=f"page {n}", result="ok", state=1) for n in range(40)],
    "work that is dealt out": [Run(step="work", given=f"item {n}", result="done") for n in range(40)],
    "a poll whose answer changes": [Run(step="poll", result=f"{n} %") for n in range(40)],
    "a poll whose heartbeats get on": [Run(step="poll", state=1, token=f"row {n}") for n in range(40)],
    "a run whose share done grows": [Run(step="poll", state=1, progress=n / 40) for n in range(40)],
    "nothing is known of progress": [Run(step="a")] * 40,
    "what it was given is not what came of it": [Run(step="a", given="g")] * 40,
    "a state saved once, long ago": [Run(step="b", state=1), *[Run(step="a")] * 40],
    "a result of one of two steps": [Run(step="a", result="r"), Run(step="b")] * 20,
    "build and test until it is right": [
        r for n in range(20) for r in (Run(step="build", state=n), Run(step="test", state=n, result="red"))
    ],
    "other steps between": [
        r for n in range(20) for r in (Run(step="a", result="r"), Run(step="b", given=str(n), result="s"))
    ],
    "more steps in turn than the window has": [Run(step=f"s{n}", state=n) for n in range(11)] * 3,
    "a flaky test, run twice on each of many builds": [
        r for n in range(20) for r in (Run(step="test", state=n), Run(step="test", state=n))
    ],
}


@pytest.mark.parametrize("name", LOOPS)
def test_repetition_without_progress_is_a_loop(name: str) -> None:
    runs, cycle = LOOPS[name]
    world, service = started()
    for run in runs[:-1]:
        do(service, run)
    assert not errors(world, "infinite_loop"), "it has not come often enough yet"
    do(service, runs[-1])
    (error,) = errors(world, "infinite_loop")
    assert json.loads(error.context or "") == {"cycle": cycle, "repeats": 3, "window": 10}
    assert (error.error_code, error.step_id, error.step_run_id) == (
        "INFINITE_LOOP",
        cycle[-1],
        service.runs[cycle[-1]],
    )


@pytest.mark.parametrize("name", HEALTHY)
def test_what_gets_on_is_left_alone(name: str) -> None:
    world, service = started()
    for run in HEALTHY[name]:
        do(service, run)
    assert not world.records(WorkflowErrorOccurred)
    assert not world.commands


@pytest.mark.parametrize("others", [(), ("b",)])
def test_a_step_that_is_declared_to_poll_may_repeat(others: Sequence[str]) -> None:
    world, service = started(None, StepSpec(step_id="a", polls=True), StepSpec(step_id="b"))
    for _ in range(40):
        for step in ("a", *others):
            do(service, Run(step=step, state=1))
    assert not errors(world, "infinite_loop")


@pytest.mark.parametrize(
    ("detection", "times", "expected"),
    [
        ("{infinite_loop: {max_repeats: 5}}", 4, 0),
        ("{infinite_loop: {max_repeats: 5}}", 5, 1),
        ("{infinite_loop: {max_repeats: 2, detection_window: 128}}", 2, 1),
        ("{infinite_loop: {enabled: false}}", 40, 0),
    ],
)
def test_the_policy_says_how_often_is_too_often(detection: str, times: int, expected: int) -> None:
    world, service = started(policy_with(detection))
    for _ in range(times):
        do(service, Run(step="a", state=1))
    assert len(errors(world, "infinite_loop")) == expected


def test_a_window_beyond_what_is_remembered_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"infinite_loop.*may be at most 256.*got 26 x 10 = 260"):
        policy_with("{infinite_loop: {max_repeats: 26}}")


def test_the_error_names_the_command_whose_run_looped() -> None:
    world, service = looped()
    command = world.commands[-1]
    service.acknowledge(command)
    for _ in range(3):
        do(service, Run(step="a", state=1), command)
    first, second = errors(world, "infinite_loop")
    assert (first.command_id, second.command_id) == (None, command.command_id)


def test_a_completion_that_comes_again_is_counted_once() -> None:
    world, service = started()
    for _ in range(2):
        do(service, Run(step="a", state=1))
    for _ in range(5):
        world.append(world.log[-1].record)
        world.settle()
    assert not errors(world, "infinite_loop")


def test_deciding_twice_finds_nothing_new_and_folding_twice_nothing() -> None:
    world, service = started()
    for _ in range(3):
        do(service, Run(step="a", state=1))
    (error,) = errors(world, "infinite_loop")
    at = next(n for n, e in enumerate(world.log) if e.record.event_id == error.causation_id)
    state: WorkflowState | None = None
    for event in world.log[: at + 1]:
        state = evolve(state, event)
    assert state is not None
    effects = decide(state, world.log[at], world.policy)
    assert effects == decide(state, world.log[at], world.policy) != ()
    evolve(state, world.log[at])
    assert decide(state, world.log[at], world.policy) == ()


def test_until_the_error_is_read_back_further_rounds_join_it() -> None:
    """The log may hold more completions before the error: they tell of the same loop, at the same step."""
    world, service = started()
    pair = [Run(step="a", state=1), Run(step="b", state=2)]
    for run in pair * 5:
        do_unread(world, service, run)
    world.settle()
    found = errors(world, "infinite_loop")
    assert {e.step_id for e in found} == {"b"}
    assert len(found) == 3  # after the third round, the fourth and the fifth
    assert len(service.state.cases or {}) == 1


def test_a_loop_that_goes_on_does_not_count_as_recovered() -> None:
    _, service = looped()
    do(service, Run(step="a", state=1))
    (case,) = (service.state.cases or {}).values()
    assert case.error_type == "infinite_loop"


def test_a_step_not_come_to_before_shows_that_the_loop_is_left() -> None:
    world, service = looped()
    restarted(world, service)
    do(service, Run(step="b", state=2), world.commands[-1])
    assert not service.state.cases
    assert [f.outcome for f in world.records(RecoveryAttemptFinished)] == ["succeeded"]


def test_another_outcome_of_its_step_shows_that_the_loop_is_left() -> None:
    world, service = started()
    for _ in range(3):
        do(service, AGENT)
    restarted(world, service)
    do(service, AGENT, world.commands[-1])
    assert service.state.cases
    do(service, Run(step="call", given="same question", result="another answer"), world.commands[-1])
    assert not service.state.cases


def test_after_a_restore_a_changed_state_alone_shows_nothing() -> None:
    """A restored state says in itself that it was restored, so it differs from the looping run's in any case."""
    world, service = looped()
    restarted(world, service)
    command = world.commands[-1]
    for _ in range(2):
        do(service, Run(step="a", state=99), command)
        assert service.state.cases
    do(service, Run(step="a", state=99), command)
    assert [f.outcome for f in world.records(RecoveryAttemptFinished)] == ["failed"], "it looped again"


def test_a_run_that_gets_further_than_the_one_that_looped_has_left_the_loop() -> None:
    world, service = looped()
    restarted(world, service)
    command = world.commands[-1]
    for number in range(3):
        do(service, Run(step="a", state=100 + number), command)
        assert service.state.cases
    do(service, Run(step="a", state=200), command)
    assert not service.state.cases


def test_a_workflow_that_completes_has_left_its_loop() -> None:
    world, service = looped()
    restarted(world, service)
    service.emit(WorkflowCompleted)
    assert not service.state.cases
    assert [f.outcome for f in world.records(RecoveryAttemptFinished)] == ["succeeded"]


def test_a_looping_step_that_is_skipped_is_left() -> None:
    world, service = looped()
    service.emit(StepSkipped, step_id="a", reason="an operator said so", command_id=world.commands[-1].command_id)
    assert not service.state.cases


def test_a_loop_that_comes_back_climbs_the_ladder_to_a_human() -> None:
    world, service = started()
    pair = [Run(step="a", state=1), Run(step="b", state=2)]
    for run in pair * 3:
        do(service, run)
    for turn in range(4):
        command = world.commands[-1]
        assert isinstance(command, RestartWorkflow if turn == 3 else ResumeFromCheckpoint)
        restarted(world, service)
        for run in (pair if turn % 2 else pair[::-1]) * 3:  # closed by either of its steps, it is the same loop
            do(service, run, command)
    assert [d.strategy for d in service.decisions] == [
        "restart_from_checkpoint",
        "restart_from_checkpoint",
        "restart_from_checkpoint",
        "complete_restart",
        "manual_intervention",
    ]
    assert len({d.error_id for d in service.decisions}) == 1


def test_a_loop_that_comes_back_in_a_service_that_names_no_commands_ends_the_attempt() -> None:
    world, service = looped()
    restarted(world, service)
    for _ in range(3):
        do(service, Run(step="a", state=7))
    assert [f.outcome for f in world.records(RecoveryAttemptFinished)] == ["failed"]
    assert len(service.state.cases or {}) == 1


def test_the_first_restart_goes_back_to_before_the_loop_and_the_next_further() -> None:
    world, service = started()
    for number in range(4):
        do(service, Run(step="a", state=number))
    healthy = [c.checkpoint_id for c in world.records(CheckpointCreated)]
    for _ in range(3):
        do(service, Run(step="b", state=8))
        do(service, Run(step="c", state=9))
    restarted(world, service)
    for _ in range(3):
        do(service, Run(step="b", state=8), world.commands[0])
    first, second = world.commands
    assert isinstance(first, ResumeFromCheckpoint)
    assert isinstance(second, ResumeFromCheckpoint)
    assert [first.checkpoint_id, second.checkpoint_id] == healthy[:-3:-1]


@pytest.mark.parametrize("runs", [[AGENT] * 3, [Run(step="a", state=1)] * 3])
def test_a_loop_that_began_before_any_other_state_restarts_from_the_newest(runs: list[Run]) -> None:
    world, service = started()
    if runs[0].state is None:
        do(service, Run(step="b", state=5))
    for run in runs:
        do(service, run)
    (command,) = world.commands
    assert isinstance(command, ResumeFromCheckpoint)
    assert command.checkpoint_id == world.records(CheckpointCreated)[-1].checkpoint_id


def test_a_loop_that_its_service_reports_ends_with_the_next_completion() -> None:
    world, service = started()
    service.start("a")
    service.fail("a", "INFINITE_LOOP")
    service.acknowledge(world.commands[-1])
    do(service, Run(step="a", state=1), world.commands[-1])
    assert not service.state.cases


def test_what_was_done_before_a_restore_is_no_part_of_a_loop() -> None:
    world, service = started()
    for _ in range(2):
        do(service, Run(step="a", state=1))
    restore(service)
    for _ in range(2):
        do(service, Run(step="a", state=1))
    assert not errors(world, "infinite_loop")


def test_a_graph_that_comes_late_does_not_mix_up_steps() -> None:
    world = World(default_policy())
    service = Service(world)
    for _ in range(2):
        do(service, Run(step="a", state=1))
    service.emit(WorkflowStarted, workflow_version="1", steps=tuple(StepSpec(step_id=s) for s in "xyza"))
    do(service, Run(step="x", state=1))  # has the number that a had
    assert not errors(world, "infinite_loop")


def test_a_cycle_of_many_steps_is_named_in_short() -> None:
    world, service = started()
    for run in TEN * 3:
        do(service, run)
    (error,) = errors(world, "infinite_loop")
    assert error.error_message.startswith("s0 -> s1 -> ")
    assert error.error_message.endswith("and 2 more: 3 times in a row without progress")


def test_what_is_remembered_is_bounded() -> None:
    _, service = started()
    for number in range(recent.RECENT_MAX + 50):
        do(service, Run(step="a", state=number))
    assert len(service.state.recent) == recent.RECENT_MAX * recent.ENTRY_BYTES
    assert recent.RECENT_MAX * recent.ENTRY_BYTES < 3 * 1024


def test_ten_steps_are_remembered_in_little() -> None:
    _, service = started()
    for run in TEN:
        do(service, run)
    assert len(service.state.recent) <= 120


# -- any loop, any progress ---------------------------------------------------------------------------------------

alphabet = st.sampled_from("abcd")


@settings(max_examples=80, deadline=None)
@drawn(
    before=st.lists(alphabet, max_size=12),
    cycle=st.lists(alphabet, min_size=1, max_size=40),
    repeats=st.integers(2, 6),
    more=st.integers(0, 39),
)
def test_a_planted_cycle_of_any_period_is_found_once(
    before: list[str], cycle: list[str], repeats: int, more: int
) -> None:
    world, service = started(policy_with(f"{{infinite_loop: {{max_repeats: {repeats}, detection_window: 40}}}}"))
    for number, step in enumerate(before):
        do(service, Run(step=step, state=1_000 + number))
    planted = [Run(step=step, state=place) for place, step in enumerate(cycle)]
    for run in planted * repeats + planted[: min(more, len(planted) - 1)]:
        do(service, run)
    (error,) = errors(world, "infinite_loop")
    assert json.loads(error.context or "")["cycle"] == cycle
    assert error.step_id == cycle[-1]


@settings(max_examples=80, deadline=None)
@drawn(st.lists(st.tuples(alphabet, st.booleans(), st.booleans()), max_size=120), st.integers(2, 6))
def test_traces_in_which_something_changes_each_time_are_never_loops(
    made: list[tuple[str, bool, bool]], repeats: int
) -> None:
    world, service = started(policy_with(f"{{infinite_loop: {{max_repeats: {repeats}, detection_window: 40}}}}"))
    for number, (step, changes_state, is_given) in enumerate(made):
        do(
            service,
            Run(
                step=step,
                state=number if changes_state else 0,
                given=str(number) if is_given and not changes_state else None,
                result="r" if changes_state or is_given else str(number),
            ),
        )
    assert not world.records(WorkflowErrorOccurred)
    assert len(service.state.recent) <= recent.RECENT_MAX * recent.ENTRY_BYTES


@settings(max_examples=40, deadline=None)
@drawn(st.lists(st.tuples(alphabet, st.integers(0, 1)), min_size=1, max_size=60), st.integers(0, 1_000))
def test_a_snapshot_remembers_what_was_done(made: list[tuple[str, int]], cut: int) -> None:
    world, service = started()
    for step, number in made:
        do(service, Run(step=step, state=number, token=str(number)))
    at = cut % len(world.log)
    half: WorkflowState | None = None
    for event in world.log[:at]:
        half = evolve(half, event)
    state = load(dump([half]))[0] if half else None
    for event in world.log[at:]:
        state = evolve(state, event)
    assert state is not None
    assert dump([state]) == dump([service.state])
    assert state.recent == service.state.recent


# -- helpers ------------------------------------------------------------------------------------------------------


def looped(policy: Policy | None = None) -> tuple[World, Service]:
    """A workflow whose loop was found."""
    world, service = started(policy)
    for _ in range(3):
        do(service, Run(step="a", state=1))
    assert len(errors(world, "infinite_loop")) == 1
    return world, service


def restarted(world: World, service: Service) -> None:
    """The service accepts the last command and restores a state."""
    service.acknowledge(world.commands[-1])
    restore(service)


def restore(service: Service) -> None:
    service.emit(
        StateRestored,
        step_id="a",
        state_version="1",
        status="running",
        restored_at=service.world.now_us,
        restore_count=1,
        **saved(service.workflow_id, "a"),
    )


def do_unread(world: World, service: Service, run: Run) -> None:
    """The step runs; the engine reads it later."""
    settle, world.settle = world.settle, lambda: None  # type: ignore[method-assign]
    try:
        do(service, run)
    finally:
        world.settle = settle  # type: ignore[method-assign]
