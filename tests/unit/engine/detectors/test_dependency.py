"""Steps that run on what has failed, or on what was taken from them."""

from __future__ import annotations

import json

import pytest

from engine.fold_detection import LEASES_MAX
from engine.policy import load_policy
from engine.snapshot import dump, load
from engine.testing import Service, World
from schemas.records.events import (
    InterventionRequested,
    ResourceGranted,
    ResourceReleased,
    ResourceRequested,
    StepSkipped,
    StepSpec,
    WorkflowErrorOccurred,
)

from .kit import errors

#: A human is asked about any error at once: nothing repairs it.
AT_ONCE = load_policy(
    """
workflow_error_handling:
  recovery_strategies: {unknown_error: {strategy: manual_intervention}}
  manual_intervention: {auto_pause: false}
""",
    "test",
)
REPAIRED = load_policy(
    "workflow_error_handling: {recovery_strategies: {unknown_error: {strategy: retry_step}}}", "test"
)
STEPS = (
    StepSpec(step_id="generate", alternative="template"),
    StepSpec(step_id="template"),
    StepSpec(step_id="build", depends_on=("generate",)),
    StepSpec(step_id="test", depends_on=("build", "generate")),
)


@pytest.fixture
def world() -> World:
    return World(AT_ONCE)


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, STEPS)


def act(service: Service, moves: str) -> None:
    """What happens to steps, in order."""
    for kind, step_id in (move.split() for move in moves.split(", ") if move):
        if kind == "skip":
            service.emit(StepSkipped, step_id=step_id, reason="not needed")
            continue
        service.start(step_id)
        if kind == "fail":
            service.fail(step_id)
        elif kind == "complete":
            service.complete(step_id)


def test_a_step_that_begins_although_one_it_needs_has_failed(world: World, service: Service) -> None:
    act(service, "fail generate")
    started = service.start("build")
    (error,) = errors(world, "dependency")
    assert (error.error_code, error.step_id, error.step_run_id) == (
        "DEPENDENCY_FAILURE",
        "build",
        started.step_run_id,
    )
    assert error.error_message == "step 'build' began, but 'generate', which it needs, has failed"
    assert json.loads(error.context or "") == {"failed": "generate"}


def test_of_several_that_failed_the_first_is_named_and_one_error_is_enough(world: World, service: Service) -> None:
    act(service, "fail build")
    act(service, "fail generate")
    service.start("test")
    (error,) = errors(world, "dependency")
    assert json.loads(error.context or "") == {"failed": "build"}


FINE = {
    "all it needs is done": "complete generate",
    "what it needs never ran": "",
    "what it needs still runs": "start generate",
    "what it needs was skipped": "skip generate",
    "what it needs failed once and ran again": "fail generate, complete generate",
    "what it needs runs again": "fail generate, start generate",
    "another path was taken": "fail generate, complete template",
    "a step it does not need failed": "fail template",
}


@pytest.mark.parametrize("name", FINE)
def test_a_step_that_may_begin_is_left_alone(name: str, world: World, service: Service) -> None:
    act(service, FINE[name])
    service.start("build")
    assert not errors(world, "dependency")


def test_what_is_being_repaired_is_no_failure_yet() -> None:
    world = World(REPAIRED)
    service = Service(world, STEPS)
    act(service, "fail generate")
    service.start("build")
    assert not errors(world, "dependency")
    assert not world.records(InterventionRequested)


def test_a_graph_that_names_steps_it_does_not_have_is_borne() -> None:
    world = World(AT_ONCE)
    service = Service(world, (StepSpec(step_id="a", depends_on=("nowhere", "a")),))
    act(service, "fail a")
    act(service, "complete a")
    assert not errors(world, "dependency")


# -- leases -------------------------------------------------------------------------------------------------------


def lease(service: Service, step_id: str, lease_id: str = "") -> str:
    lease_id = lease_id or service.world.new_id()
    service.emit(ResourceRequested, step_id=step_id, resource_id="gpu", lease_id=lease_id)
    return lease_id


def released(service: Service, lease_id: str, reason: str | None) -> None:
    service.emit(ResourceReleased, resource_id="gpu", lease_id=lease_id, reason=reason)


@pytest.mark.parametrize("reason", ["lost", "expired"])
def test_a_step_that_loses_a_lease_while_it_runs(reason: str, world: World, service: Service) -> None:
    service.start("generate")
    lease_id = lease(service, "generate")
    service.emit(ResourceGranted, resource_id="gpu", lease_id=lease_id)
    released(service, lease_id, reason)
    (error,) = errors(world, "dependency")
    assert (error.error_code, error.step_id, error.step_run_id) == (
        "COORDINATION_FAILURE",
        "generate",
        service.runs["generate"],
    )
    assert error.error_message == f"step 'generate' lost 'gpu' while it ran: {reason}"
    assert json.loads(error.context or "") == {"resource_id": "gpu", "lease_id": lease_id, "reason": reason}
    released(service, lease_id, reason)
    assert len(errors(world, "dependency")) == 1


@pytest.mark.parametrize("reason", [None, "", "done", "cancelled"])
def test_a_lease_that_is_given_back_is_no_error(reason: str | None, world: World, service: Service) -> None:
    service.start("generate")
    released(service, lease(service, "generate"), reason)
    assert not world.records(WorkflowErrorOccurred)


def test_a_lease_that_ends_after_its_step_is_no_error(world: World, service: Service) -> None:
    service.start("generate")
    lease_id = lease(service, "generate")
    service.complete("generate")
    service.start("build")
    released(service, lease_id, "lost")
    released(service, "nobody's", "lost")
    assert not world.records(WorkflowErrorOccurred)
    assert service.state.leases is None


def test_leases_are_bounded_and_survive_a_snapshot(service: Service) -> None:
    for _ in range(LEASES_MAX + 10):
        lease(service, "generate")
    assert len(service.state.leases or {}) == LEASES_MAX
    (restored,) = load(dump([service.state]))
    assert restored.leases == service.state.leases
