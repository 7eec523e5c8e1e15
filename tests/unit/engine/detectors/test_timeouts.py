"""Whatever passes its deadline is found at that moment, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from engine.policy import load_policy
from engine.testing import Service, World
from schemas.records.commands import RetryStep
from schemas.records.events import (
    RecoveryAttemptFinished,
    StepProgressed,
    StepSpec,
    WorkflowErrorOccurred,
    WorkflowPaused,
)

from .kit import errors

POLICY = load_policy(
    """
workflow_error_handling:
  checkpoints: {critical_steps: [deploy]}
  error_detection:
    timeouts:
      default_step_timeout: 10000
      critical_step_timeout: 20000
      default_workflow_timeout: 60000
      stall_timeout: 5000
  commands: {acknowledge_timeout: 3000, attempt_timeout: 30000}
""",
    "test",
)
STEPS = (
    StepSpec(step_id="build"),
    StepSpec(step_id="test", timeout_ms=4_000, heartbeat_timeout_ms=1_000),
    StepSpec(step_id="review", critical=True),
    StepSpec(step_id="deploy"),
)


class Case(NamedTuple):
    """What is done, how long it may take, and the error's code, step and whether it has a run."""

    do: Callable[[Service], object]
    limit_ms: int
    code: str
    step_id: str
    of_run: bool = True


def silent_after_a_word(service: Service) -> None:
    service.start("build", heartbeat_timeout_ms=2_000)
    service.world.advance(1_500)
    service.emit(StepProgressed, step_id="build", step_run_id=service.runs["build"])


def busy_without_end(service: Service) -> None:
    """Steps follow one another, each in time; the workflow as a whole does not end."""
    for _ in range(11):
        service.start("build")
        service.world.advance(5_000)
        service.complete("build")
    service.start("build")


OVERDUE = {
    "a step, by the policy": Case(lambda s: s.start("build"), 10_000, "TIMEOUT", "build"),
    "a step, by its graph": Case(lambda s: s.start("test"), 4_000, "TIMEOUT", "test"),
    "a step, by its start": Case(lambda s: s.start("test", timeout_ms=7_000), 7_000, "TIMEOUT", "test"),
    "a step declared critical": Case(lambda s: s.start("review"), 20_000, "TIMEOUT", "review"),
    "a step that the policy lists as critical": Case(lambda s: s.start("deploy"), 20_000, "TIMEOUT", "deploy"),
    "a heartbeat that never came": Case(
        lambda s: s.start("build", heartbeat_timeout_ms=2_000), 2_000, "HEARTBEAT_TIMEOUT", "build"
    ),
    "a heartbeat after the last one": Case(silent_after_a_word, 2_000, "HEARTBEAT_TIMEOUT", "build"),
    "a workflow that never ends": Case(busy_without_end, 5_000, "WORKFLOW_TIMEOUT", "build", of_run=False),
    "a workflow left between steps": Case(
        lambda s: (s.start("build"), s.complete("build")), 5_000, "STALLED", "test", of_run=False
    ),
    "a workflow that never began a step": Case(lambda s: None, 5_000, "STALLED", "build", of_run=False),
}


@pytest.mark.parametrize("name", OVERDUE)
def test_what_is_overdue_is_found_at_its_deadline_and_not_before(name: str) -> None:
    case = OVERDUE[name]
    world = World(POLICY)
    service = Service(world, STEPS)
    case.do(service)
    world.advance(case.limit_ms - 1)
    assert not world.records(WorkflowErrorOccurred)
    world.advance(1)
    (error,) = errors(world, "timeout")
    assert (error.error_code, error.step_id) == (case.code, case.step_id)
    assert error.step_run_id == (service.runs[case.step_id] if case.of_run else None)
    what = f"step {case.step_id!r}" if case.of_run else "the workflow"
    assert error.error_message == f"{what} passed its deadline ({case.code})"


def at_the_last_moment(service: Service) -> None:
    service.start("build")
    service.world.advance(9_999)
    service.complete("build")


def saying_that_it_is_alive(service: Service) -> None:
    service.start("build", heartbeat_timeout_ms=2_000)
    for _ in range(5):
        service.world.advance(1_900)
        service.emit(StepProgressed, step_id="build", step_run_id=service.runs["build"])
    service.complete("build")


def paused(service: Service) -> None:
    service.start("build")
    service.emit(WorkflowPaused, reason="a break", actor="test")
    service.world.advance(3_600_000)


@pytest.mark.parametrize("do", [at_the_last_moment, saying_that_it_is_alive, paused])
def test_what_is_in_time_is_left_alone(do: Callable[[Service], None]) -> None:
    world = World(POLICY)
    do(Service(world, STEPS))
    assert not world.records(WorkflowErrorOccurred)


@pytest.mark.parametrize(
    ("answer", "limit_ms", "detail"),
    [
        ("", 3_000, "no service accepted the command in time"),
        ("accepted", 30_000, "accepted, but the step did not complete in time"),
    ],
)
def test_a_command_that_is_overdue_ends_its_attempt_and_is_no_error(answer: str, limit_ms: int, detail: str) -> None:
    world = World(POLICY)
    service = Service(world, STEPS)
    service.start("build")
    service.fail("build")
    world.advance(1_000)  # the backoff
    (command,) = world.commands
    assert isinstance(command, RetryStep)
    if answer:
        service.acknowledge(command, answer)
    sent_us = world.now_us
    while not world.records(RecoveryAttemptFinished):
        world.advance(1)
    (finished,) = world.records(RecoveryAttemptFinished)
    assert (finished.outcome, finished.error_message) == ("unknown", detail)
    assert limit_ms - 1_000 <= (world.now_us - sent_us) // 1_000 <= limit_ms
    assert not errors(world, "timeout")
