"""Commands that an open breaker holds: nothing goes out until the coordinator lets it, or it was held too long."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from engine.coordinating import key_of
from engine.fold_stages import BRANCHES
from engine.inforce import BREAKERS_MAX, Breakers
from engine.policy import default_policy, load_policy
from engine.snapshot import dump, load
from engine.testing import Service, World
from engine.timers import HOLD_SPREAD, hold_ms
from schemas.records.commands import RetryStep
from schemas.records.coordination import FailureEnded, FailureSeen, RepairWaiting
from schemas.records.events import BreakerChanged, RepairHeld, RepairReleased, StepSpec, WorkflowErrorOccurred

STEPS = (StepSpec(step_id="pull"),)


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, STEPS)


def breaker(service: Service, state: str, sequence: int, key: str = "dependency:registry") -> None:
    service.emit(BreakerChanged, breaker=key, kind="dependency", state=state, sequence=sequence, reason="test")


def fail(service: Service, dependency: str | None = "registry") -> WorkflowErrorOccurred:
    service.start("pull")
    return service.emit(
        WorkflowErrorOccurred,
        error_id=service.world.new_id(),
        step_id="pull",
        step_run_id=service.runs["pull"],
        error_code="TIMEOUT",
        error_message="no answer",
        detected_by="service",
        dependency=dependency,
    )


def release(service: Service, error: WorkflowErrorOccurred, key: str = "dependency:registry") -> None:
    service.emit(RepairReleased, error_id=error.error_id, breaker=key, wave=0, canary=True)


def test_the_coordinator_hears_of_a_failure_and_of_its_end(world: World, service: Service) -> None:
    error = fail(service)
    (seen,) = world.told
    assert isinstance(seen, FailureSeen)
    assert (seen.error_id, seen.dependency, seen.partition) == (error.error_id, "registry", 0)
    (command,) = world.commands
    service.acknowledge(command)
    service.start("pull", command)
    service.complete("pull", command)
    ended = world.told[-1]
    assert isinstance(ended, FailureEnded)
    assert (seen.strategy, ended.outcome, ended.strategy) == ("", "recovered", service.decisions[0].strategy)


@pytest.mark.parametrize("storms", ["true", "false"])
def test_the_coordinator_hears_of_what_was_tried_in_vain(storms: str) -> None:
    world = World(load_policy(f"workflow_error_handling: {{storms: {{enabled: {storms}}}}}", "test"))
    service = Service(world, STEPS)
    service.start("pull")
    service.fail("pull", "TIMEOUT")
    world.advance(service.decisions[0].execute_after_ms)
    service.acknowledge(world.commands[0])
    service.start("pull", world.commands[0])
    service.fail("pull", "TIMEOUT", world.commands[0])
    seen = [r for r in world.told if isinstance(r, FailureSeen)]
    assert [r.strategy for r in seen if r.strategy] == ["retry_step"]


def test_a_command_is_held_while_the_breaker_of_its_dependency_is_open(world: World, service: Service) -> None:
    breaker(service, "open", 1)
    error = fail(service)
    assert not world.commands
    (held,) = world.records(RepairHeld)
    assert (held.error_id, held.breaker) == (error.error_id, "dependency:registry")
    waiting = world.told[-1]
    assert isinstance(waiting, RepairWaiting)
    assert waiting.breaker == "dependency:registry"
    release(service, error)
    assert [type(c).__name__ for c in world.commands] == ["RetryStep"]
    release(service, error)
    assert len(world.commands) == 1


def test_a_breaker_of_something_else_holds_nothing(world: World, service: Service) -> None:
    breaker(service, "open", 1, "dependency:mail")
    fail(service)
    assert [type(c).__name__ for c in world.commands] == ["RetryStep"]


def test_without_a_dependency_errors_are_held_that_look_alike(world: World, service: Service) -> None:
    error = fail(service, None)
    (seen,) = world.told
    assert isinstance(seen, FailureSeen)
    key = key_of(seen.fingerprint, None)
    other = Service(world, STEPS)
    breaker(other, "open", 1, key)
    fail(other, None)
    assert len(world.commands) == 1
    assert world.commands[0].error_id == error.error_id


def test_a_breaker_that_closes_lets_what_comes_after_go(world: World, service: Service) -> None:
    breaker(service, "open", 1)
    breaker(service, "closed", 2)
    breaker(service, "open", 1)  # late
    fail(service)
    assert len(world.commands) == 1


def test_a_hold_that_nobody_ends_ends_by_itself(world: World, service: Service) -> None:
    breaker(service, "open", 1)
    fail(service)
    (case,) = (service.state.cases or {}).values()
    assert case.attempt is not None
    held_ms = hold_ms(case.attempt, world.policy)
    world.advance(held_ms - 1)
    assert not world.commands
    world.advance(1)
    assert [type(c) for c in world.commands] == [RetryStep]


@pytest.mark.parametrize("hold_ms_max", [1, 2, 1_000, 3_600_000])
def test_holds_that_began_together_end_one_by_one_over_the_last_half_of_the_longest(
    world: World, service: Service, hold_ms_max: int
) -> None:
    breaker(service, "open", 1)
    fail(service)
    (case,) = (service.state.cases or {}).values()
    assert case.attempt is not None
    policy = replace(world.policy, storms=replace(world.policy.storms, hold_ms_max=hold_ms_max))
    ids = [world.new_id() for _ in range(1_000)]
    attempts = [replace(case.attempt, decision=replace(case.attempt.decision, attempt_id=i)) for i in ids]
    ends = [hold_ms(attempt, policy) for attempt in attempts]
    assert hold_ms_max - int(hold_ms_max * HOLD_SPREAD) <= min(ends) and max(ends) <= hold_ms_max
    assert ends == [hold_ms(attempt, policy) for attempt in attempts]
    if hold_ms_max > 1_000:
        tenth = hold_ms_max * HOLD_SPREAD / 10
        counts = Counter(int((end - hold_ms_max * HOLD_SPREAD) / tenth) for end in ends)
        assert max(counts.values()) < 150


def test_what_waits_for_branches_of_its_own_workflow_waits_as_long_as_may_be(world: World, service: Service) -> None:
    breaker(service, "open", 1)
    fail(service)
    (case,) = (service.state.cases or {}).values()
    assert case.attempt is not None
    assert hold_ms(replace(case.attempt, held=BRANCHES), world.policy) == world.policy.storms.hold_ms_max


def test_a_waiting_repair_is_held_when_its_backoff_ends(world: World, service: Service) -> None:
    service.start("pull")
    service.fail("pull", "SomethingElse")
    (decision,) = service.decisions
    assert decision.execute_after_ms > 0
    seen = world.told[0]
    assert isinstance(seen, FailureSeen)
    breaker(service, "open", 1, key_of(seen.fingerprint, None))
    world.advance(decision.execute_after_ms)
    assert not world.commands
    assert world.records(RepairHeld)


def test_a_held_repair_survives_a_snapshot(world: World, service: Service) -> None:
    breaker(service, "open", 1)
    error = fail(service)
    world.states = {s.workflow_id: s for s in load(dump(world.states.values()))}
    release(service, error)
    assert len(world.commands) == 1


def test_breakers_are_bounded_and_the_oldest_is_forgotten(service: Service) -> None:
    breakers = Breakers()
    for number in range(BREAKERS_MAX + 1):
        made = service.build(
            BreakerChanged, breaker=f"dependency:{number}", kind="dependency", state="open", sequence=1, reason=""
        )
        breakers = breakers.after(made)
    assert not breakers.is_open("dependency:0")
    assert breakers.is_open(f"dependency:{BREAKERS_MAX}")
    again = Breakers.load([tuple(row) for row in breakers.dump()])
    assert again.dump() == breakers.dump()
