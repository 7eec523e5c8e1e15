"""What a failed step means for others: dependants wait, siblings go on, are stopped, or are waited for."""

from __future__ import annotations

import pytest

from engine.policy import Policy, load_policy
from engine.testing import Service, World
from schemas.records.commands import CancelStep, RetryStep, SkipStep
from schemas.records.events import (
    DependantsHeld,
    DependantsReleased,
    RepairHeld,
    StepSkipped,
    StepSpec,
    WorkflowCancelled,
    WorkflowStarted,
)

STEPS = (
    StepSpec(step_id="build"),
    StepSpec(step_id="lint"),
    StepSpec(step_id="scan"),
    StepSpec(step_id="package", depends_on=("build",)),
    StepSpec(step_id="deploy", depends_on=("package", "lint")),
)


def policy(**keys: str) -> Policy:
    lines = "".join(f"\n    {key}: {value}" for key, value in keys.items())
    return load_policy(f"workflow_error_handling:\n  coordination:{lines or ' {}'}\n", "test")


def running(**keys: str) -> Service:
    """Three branches at work."""
    service = Service(World(policy(**keys)), STEPS)
    for step_id in ("build", "lint", "scan"):
        service.start(step_id)
    return service


def retried(service: Service, step_id: str) -> None:
    service.world.advance(1_000)
    command = next(c for c in service.world.commands if isinstance(c, RetryStep) and c.step_id == step_id)
    service.acknowledge(command)
    service.start(step_id, command)
    service.complete(step_id, command)


def test_dependants_near_and_far_are_held_while_a_step_is_repaired_and_released_after() -> None:
    service = running()
    service.fail("build")
    (held,) = service.world.records(DependantsHeld)
    assert (held.step_id, held.dependants) == ("build", ("package", "deploy"))
    retried(service, "build")
    (released,) = service.world.records(DependantsReleased)
    assert (released.dependants, released.outcome) == (("package", "deploy"), "released")


def test_a_step_that_nothing_needs_holds_nobody() -> None:
    service = running()
    service.fail("scan")
    assert not service.world.records(DependantsHeld)


def test_dependants_of_a_step_that_is_given_up_have_failed() -> None:
    service = running()
    service.fail("build")
    service.emit(WorkflowCancelled, reason="enough", actor="ada")
    (released,) = service.world.records(DependantsReleased)
    assert released.outcome == "failed"


def test_siblings_go_on_by_themselves() -> None:
    service = running()
    service.fail("build")
    assert not [c for c in service.world.commands if isinstance(c, CancelStep)]


def test_failing_fast_stops_the_branches_that_run() -> None:
    service = running(branches="fail_fast")
    service.fail("build")
    stopped = [c for c in service.world.commands if isinstance(c, CancelStep)]
    assert [(c.step_id, c.step_run_id) for c in stopped] == [
        ("lint", service.runs["lint"]),
        ("scan", service.runs["scan"]),
    ]
    for command in stopped:
        service.acknowledge(command, "succeeded", step_id=command.step_id)
    assert not service.state.runs


def test_a_repair_waits_until_every_branch_has_ended_when_the_policy_says_so() -> None:
    service = running(branches="wait_for_all")
    service.fail("build")
    service.world.advance(60_000)
    assert not service.world.commands
    assert [r.breaker for r in service.world.records(RepairHeld)] == ["branches"]
    service.complete("lint")
    assert not service.world.commands
    service.complete("scan")
    assert [type(c).__name__ for c in service.world.commands] == ["RetryStep"]


def test_a_branch_that_never_ends_holds_a_repair_no_longer_than_its_own_deadline() -> None:
    service = running(branches="wait_for_all")
    service.fail("build")
    service.complete("lint")
    service.world.advance(2 * 3_600_000)
    assert "build" in {getattr(c, "step_id", None) for c in service.world.commands}


def given_up(dependants: str) -> Service:
    """A step whose ladder has come to its end."""
    text = f"""
workflow_error_handling:
  coordination:
    dependants: {dependants}
  recovery_strategies:
    unknown_error:
      strategy: retry_step
      max_retries: 1
"""
    service = Service(World(load_policy(text, "test")), STEPS)
    service.start("build")
    service.fail("build")
    (retry,) = service.world.commands
    service.acknowledge(retry)
    service.start("build", retry)
    service.fail("build", command=retry)
    return service


def test_a_step_that_cannot_be_repaired_is_left_out_with_its_dependants() -> None:
    service = given_up("skip")
    command = service.world.commands[-1]
    assert isinstance(command, SkipStep)
    assert (command.step_id, command.dependants) == ("build", ("package", "deploy"))
    service.acknowledge(command)
    for step_id in ("package", "deploy", "build"):
        service.emit(StepSkipped, step_id=step_id, reason="left out", command_id=command.command_id)
    assert not service.state.cases
    (released,) = service.world.records(DependantsReleased)
    assert released.outcome == "skipped"


def test_leaving_out_is_tried_once_then_a_human_is_asked() -> None:
    service = given_up("skip")
    service.acknowledge(service.world.commands[-1], "failed", detail="cannot")
    assert [d.strategy for d in service.decisions] == ["retry_step", "skip_dependants", "manual_intervention"]


def test_dependants_that_fail_with_their_step_end_the_workflow() -> None:
    service = given_up("fail")
    assert [type(c).__name__ for c in service.world.commands] == ["RetryStep", "CancelWorkflow"]


@pytest.mark.parametrize(
    "steps",
    [
        (StepSpec(step_id="a", depends_on=("b",)), StepSpec(step_id="b", depends_on=("a",))),
        (StepSpec(step_id="a", depends_on=("a",)),),
        (StepSpec(step_id="a", depends_on=("nobody",)),),
        tuple(StepSpec(step_id=f"s{n}", depends_on=(f"s{n + 1}",)) for n in range(10_000)),
        tuple(StepSpec(step_id=f"s{n}", depends_on=("s0",)) for n in range(10_000)),
    ],
    ids=["cycle", "itself", "unknown", "a chain of 10,000 declared backwards", "10,000 behind one"],
)
def test_no_graph_is_too_odd(steps: tuple[StepSpec, ...]) -> None:
    service = Service(World(policy()), ())
    service.emit(WorkflowStarted, workflow_version="1", steps=steps)
    first = steps[-1].step_id if len(steps) > 2 else steps[0].step_id
    for step_id in (first, "s0"):
        service.start(step_id)
        service.fail(step_id)
    assert service.decisions
    assert all(len(h.dependants) <= 1_000 for h in service.world.records(DependantsHeld))
