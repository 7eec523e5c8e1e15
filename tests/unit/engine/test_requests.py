"""Repairs that operators ask for: carried out at once, or refused in the log with nothing changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.by_hand import CHOICES
from engine.people import DECISIONS
from engine.testing import Service, World, saved
from schemas.records.commands import ResumeFromCheckpoint, RetryStep, RollbackTo, ScaleResources, SkipStep
from schemas.records.events import (
    CommandAcknowledged,
    InterventionClaimed,
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    RecoveryRefused,
    RecoveryRequested,
    RestoreRequested,
    StepCompensated,
    StepSpec,
    WorkflowErrorOccurred,
)

from .test_people import asked, last, newest, paid, policy, retried, sound


def ask(service: Service, strategy: str, error_id: str | None = None, **more: Any) -> RecoveryRequested:
    """An operator asks for one repair of the open error."""
    case = next(iter((service.state.cases or {}).values()), None)
    fields = {"request_id": service.world.new_id(), "reason": "seen it before", "actor": "kim", **more}
    return service.emit(
        RecoveryRequested, error_id=error_id or (case.error_id if case else "none"), strategy=strategy, **fields
    )


def failed(*steps: StepSpec) -> Service:
    service = paid() if not steps else Service(World(policy(max_retries=3)), steps)
    service.start(steps[0].step_id if steps else "ship")
    service.fail(steps[0].step_id if steps else "ship")
    return service


def refusals(world: World) -> list[str]:
    return [r.reason for r in world.records(RecoveryRefused)]


def test_a_request_ends_what_is_being_tried_and_goes_out_at_once() -> None:
    service = failed()
    retried(service)
    first = last(service)
    request = ask(service, "alternative_path")
    command = last(service)
    assert command is not first
    decided = service.decisions[-1]
    assert (decided.rule, decided.strategy) == ("operator kim: alternative_path", "alternative_path")
    assert json.loads(decided.evidence)["request_id"] == request.request_id
    (finished,) = service.world.records(RecoveryAttemptFinished)
    assert (finished.strategy, finished.outcome) == ("retry_step", "failed")
    service.acknowledge(first)  # too late: it counts for nothing
    (case,) = (service.state.cases or {}).values()
    assert case.attempt is not None
    assert case.attempt.status == "sent"
    assert sound(service.world)


def test_a_request_does_not_wait_for_the_backoff() -> None:
    service = failed()
    assert service.world.commands == []
    ask(service, "retry_step")
    assert isinstance(last(service), RetryStep)
    assert sound(service.world)


def test_a_request_answers_the_open_intervention() -> None:
    service, request = asked()
    ask(service, "skip_step", parameters='{"result": "{}"}')
    (resolved,) = service.world.records(InterventionResolved)
    assert (resolved.intervention_id, resolved.decision) == (request.intervention_id, "recover")
    assert isinstance(last(service), SkipStep)
    service.world.advance(3_600_000 * 48)
    assert sound(service.world)


@pytest.mark.parametrize(
    ("strategy", "more", "why"),
    [
        ("restart_from_the_moon", {}, "there is no strategy"),
        ("manual_intervention", {}, "there is no strategy"),
        ("scale_resources_and_retry", {}, "names no resource"),
        ("retry_step", {"parameters": "no JSON"}, "no JSON object"),
        ("retry_step", {"parameters": '{"delay_ms": true}'}, "out of range"),
        ("increase_timeout_and_retry", {"parameters": '{"timeout_multiplier": 1e999}'}, "out of range"),
        ("rollback", {"parameters": '{"to_step": "nowhere"}'}, "no step 'nowhere'"),
        ("retry_step", {"error_id": "0"}, "not open"),
    ],
)
def test_a_repair_that_cannot_be_carried_out_is_refused_and_nothing_changes(
    strategy: str, more: dict[str, Any], why: str
) -> None:
    service = failed()
    retried(service)
    (case,) = (service.state.cases or {}).values()
    attempt, commands = case.attempt, len(service.world.commands)
    ask(service, strategy, **more)
    (reason,) = refusals(service.world)
    assert why in reason
    assert case.attempt is attempt
    assert len(service.world.commands) == commands
    assert sound(service.world)


@given(strategy=st.sampled_from(CHOICES) | st.text(max_size=9), parameters=st.none() | st.text(max_size=30))
def test_no_request_is_too_odd(strategy: str, parameters: str | None) -> None:
    service = failed()
    ask(service, strategy, parameters=parameters)
    taken = [d for d in service.decisions if d.ladder == "operator"]
    assert len(taken) + len(refusals(service.world)) == 1
    assert sound(service.world)


@given(
    parameters=st.dictionaries(
        st.sampled_from(["to_step", "delay_ms", "timeout_multiplier", "timeout_ms_max", "scaling_factor", "else"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers()),
        max_size=3,
    ),
    strategy=st.sampled_from(CHOICES),
)
def test_no_parameter_is_too_odd(parameters: dict[str, Any], strategy: str) -> None:
    service = failed()
    ask(service, strategy, parameters=json.dumps(parameters))
    taken = [d for d in service.decisions if d.ladder == "operator"]
    assert len(taken) + len(refusals(service.world)) == 1


def test_of_two_requests_at_once_one_is_carried_out() -> None:
    service = failed()
    (case,) = (service.state.cases or {}).values()
    for actor in ("ann", "bob"):
        service.world.append(
            service.build(
                RecoveryRequested,
                error_id=case.error_id,
                strategy="retry_step",
                request_id=service.world.new_id(),
                reason="r",
                actor=actor,
            )
        )
    service.world.settle()
    assert len(service.world.commands) == 1
    assert "ann" in service.world.commands[0].reason
    assert refusals(service.world) == ["another request is being decided"]
    ask(service, "retry_step")
    assert len(service.world.commands) == 2
    assert sound(service.world)


def test_a_request_comes_after_a_decision_that_is_on_its_way() -> None:
    service = Service(World(policy(max_retries=3)), (StepSpec(step_id="a"),))
    service.start("a")
    error = service.build(
        WorkflowErrorOccurred,
        error_id=service.world.new_id(),
        step_id="a",
        step_run_id=service.runs["a"],
        error_code="ValueError",
        error_message="no",
        detected_by="service",
    )
    request = service.build(
        RecoveryRequested,
        error_id=error.error_id,
        strategy="complete_restart",
        request_id=service.world.new_id(),
        reason="r",
        actor="kim",
    )
    for record in (error, request):  # all are in the log before the ladder's first decision is
        service.world.append(record)
    service.world.settle()
    assert [type(c).__name__ for c in service.world.commands] == ["RestartWorkflow"]
    assert [d.attempt_number for d in service.decisions] == [1, 2]
    assert sound(service.world)


def test_a_strategy_of_several_commands_is_carried_to_its_end() -> None:
    service = Service(World(policy()), (StepSpec(step_id="a"),))
    service.start("a")
    service.fail("a", "OUT_OF_MEMORY")
    ask(service, "scale_resources_and_retry", parameters='{"scaling_factor": 4}')
    scale = last(service)
    assert isinstance(scale, ScaleResources)
    assert scale.factor == 4
    service.acknowledge(scale, "succeeded")
    retried(service)
    assert isinstance(last(service), RetryStep)
    assert service.decisions[-1].ladder == "operator"
    service.acknowledge(last(service))
    service.start("a", last(service))
    service.complete("a", last(service))
    assert not service.state.cases
    assert sound(service.world)


def test_a_rollback_that_was_asked_for_is_carried_to_its_end() -> None:
    service = failed()
    ask(service, "rollback", parameters='{"to_step": "pay"}')
    undo = last(service)
    service.acknowledge(undo)
    service.emit(StepCompensated, step_id="pay", command_id=undo.command_id, duration_ms=1)
    assert isinstance(last(service), RollbackTo)
    assert sound(service.world)


def test_a_repair_that_was_asked_for_and_fails_goes_on_with_the_ladder() -> None:
    service = failed()
    ask(service, "alternative_path")
    service.acknowledge(last(service), "failed")
    assert service.decisions[-1].strategy == "retry_step"
    assert service.world.records(InterventionRequested) == []
    retried(service)
    service.acknowledge(last(service), "failed")
    assert newest(service).trigger == "all_recovery_strategies_failed"
    assert sound(service.world)


def test_a_restore_comes_after_a_decision_that_is_on_its_way() -> None:
    service = paid()
    checkpoint = service.checkpoint("pay", saved)
    service.start("ship")
    error = service.build(
        WorkflowErrorOccurred,
        error_id=service.world.new_id(),
        step_id="ship",
        step_run_id=service.runs["ship"],
        error_code="ValueError",
        error_message="no",
        detected_by="service",
    )
    restore = service.build(
        RestoreRequested,
        request_id=service.world.new_id(),
        checkpoint_id=checkpoint.checkpoint_id,
        checkpoint_partition=0,
        checkpoint_offset=next(e.offset for e in service.world.log if e.record is checkpoint),
        checkpoint_digest=checkpoint.digest,
        reason="r",
        actor="kim",
    )
    for record in (error, restore):
        service.world.append(record)
    service.world.settle()
    assert isinstance(last(service), ResumeFromCheckpoint)
    assert [d.attempt_number for d in service.decisions] == [1, 2]
    assert sound(service.world)


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "run", "refuse", "point", "ask", "answer", "claim", "restore", "wait", "settle"]),
        st.integers(0, 11),
    ),
    max_size=14,
)


@settings(deadline=None)
@given(actions=_ACTIONS)
def test_whatever_people_do_at_whatever_moment_the_log_is_sound(actions: list[tuple[str, int]]) -> None:
    """Records are written whether or not what stands before them was read: two operators, and an engine behind."""
    service = paid()
    world = service.world
    checkpoint = service.checkpoint("pay", saved)
    offset = next(e.offset for e in world.log if e.record is checkpoint)
    for action, number in actions:
        _act(service, action, number, {"checkpoint_id": checkpoint.checkpoint_id, "checkpoint_partition": 0,
             "checkpoint_offset": offset, "checkpoint_digest": checkpoint.digest})  # fmt: skip
    world.settle()
    world.advance(60_000)
    assert sound(world)
    numbers = [(d.error_id, d.attempt_number) for d in service.decisions]
    assert len(numbers) == len(set(numbers)), "two decisions for one attempt"


def _act(service: Service, action: str, number: int, place: dict[str, Any]) -> None:
    world = service.world
    who = {"reason": "r", "actor": f"operator {number % 2}"}
    if action == "settle":
        world.settle()
    elif action == "wait":
        world.advance(number * 10_000)
    elif action == "fail":
        service.start("ship")
        service.fail("ship")
    elif action in ("run", "refuse") and world.commands:
        command = last(service)
        if any(a.command_id == command.command_id for a in world.records(CommandAcknowledged)):
            return  # a service answers once
        service.acknowledge(command, "failed" if action == "refuse" else "accepted")
        if action == "run" and isinstance(command, RetryStep):
            service.start("ship", command)
            service.complete("ship", command)
    elif action == "point":
        world.append(service.build(InterventionPointReached, step_id="ship"))
    elif action == "ask":
        cases = list(service.state.cases or {}) or ["none"]
        strategy = CHOICES[number % len(CHOICES)]
        fields = {"error_id": cases[0], "strategy": strategy, "request_id": world.new_id(), **who}
        world.append(service.build(RecoveryRequested, **fields))
    elif action == "restore":
        world.append(service.build(RestoreRequested, request_id=world.new_id(), **place, **who))
    elif action in ("answer", "claim"):
        for request in world.records(InterventionRequested)[-1:]:
            if action == "claim":
                fields = {"intervention_id": request.intervention_id, **who}
                world.append(service.build(InterventionClaimed, **fields))
                continue
            decision = DECISIONS[number % len(DECISIONS)]
            about: dict[str, Any] = {"error_id": request.error_id, "step_id": "ship", **who}
            record = {"intervention_id": request.intervention_id, "decision": decision, **about}
            world.append(service.build(InterventionResolved, **record))
