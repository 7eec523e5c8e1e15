"""What people answer is carried out, once, and whatever else comes changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.invariants import LogCheck
from engine.people import DECISIONS
from engine.policy import Policy, load_policy
from engine.testing import Service, World, saved
from schemas.records import Command
from schemas.records.commands import (
    CancelWorkflow,
    CompensateStep,
    RestartWorkflow,
    RetryStep,
    RunAlternativePath,
    SkipStep,
)
from schemas.records.events import (
    ErrorClassified,
    InterventionClaimed,
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    RecoveryDecided,
    RecoveryRequested,
    StepSkipped,
    StepSpec,
    WorkflowCancelled,
    WorkflowErrorOccurred,
)

HOUR_MS = 3_600_000
STEPS = (
    StepSpec(step_id="reserve", compensation="release"),
    StepSpec(step_id="pay", depends_on=("reserve",), compensation="refund"),
    StepSpec(step_id="ship", depends_on=("pay",), alternative="courier", intervention_point=True),
    StepSpec(step_id="release"),
    StepSpec(step_id="refund"),
    StepSpec(step_id="courier"),
)


def policy(on_timeout: str = "escalate", max_retries: int = 1) -> Policy:
    return load_policy(
        f"""
workflow_error_handling:
  recovery_strategies:
    unknown_error:
      strategy: retry_step
      max_retries: {max_retries}
      backoff_strategy: exponential
  manual_intervention:
    enabled: true
    timeout: 3600
    on_timeout: {on_timeout}
""",
        "test",
    )


def paid(on_timeout: str = "escalate") -> Service:
    """A workflow that has reserved and paid."""
    service = Service(World(policy(on_timeout)), STEPS)
    for step_id in ("reserve", "pay"):
        service.start(step_id)
        service.complete(step_id)
        service.checkpoint(step_id, saved)
    return service


def asked(on_timeout: str = "escalate") -> tuple[Service, InterventionRequested]:
    """Shipping failed, its one retry did too, and a human is asked."""
    service = paid(on_timeout)
    service.start("ship")
    service.fail("ship")
    give_up(service)
    return service, newest(service)


def at_point(on_timeout: str = "escalate") -> tuple[Service, InterventionRequested]:
    """The workflow stands before its intervention point."""
    service = paid(on_timeout)
    service.emit(InterventionPointReached, step_id="ship", reason="more than 1,000 EUR")
    return service, newest(service)


def retried(service: Service) -> None:
    """Wait for the ladder's next command."""
    before = len(service.world.commands)
    while len(service.world.commands) == before:
        service.world.advance(100)


def give_up(service: Service) -> None:
    """The only retry fails."""
    retried(service)
    service.acknowledge(service.world.commands[-1], "failed")


def newest(service: Service) -> InterventionRequested:
    return service.world.records(InterventionRequested)[-1]


def answer(service: Service, request: InterventionRequested, decision: str, **more: Any) -> InterventionResolved:
    fields = {"reason": "looked at it", "actor": "kim", **more}
    return service.emit(
        InterventionResolved,
        intervention_id=request.intervention_id,
        error_id=request.error_id,
        step_id=request.step_id,
        decision=decision,
        **fields,
    )


def last(service: Service) -> Command:
    return service.world.commands[-1]


def sound(world: World) -> bool:
    check = LogCheck(world.policy)
    check.begins_at_zero(0)
    for event in world.log:
        check.event(event)
    for command in world.commands:
        check.command(command, world.now_us)
    return check.findings(world.now_us) == []


def test_a_request_says_what_can_be_done_and_what_it_is_about() -> None:
    _, request = asked()
    assert set(request.options) == set(DECISIONS)
    assert request.fingerprint
    bare = Service(World(policy()))
    bare.start("alone")
    bare.fail("alone")
    give_up(bare)
    assert set(newest(bare).options) == {"retry", "retry_edited", "skip", "cancel", "escalate"}


@pytest.mark.parametrize(
    ("decision", "kind"),
    [
        ("retry", RetryStep),
        ("skip", SkipStep),
        ("alternative", RunAlternativePath),
        ("rollback", CompensateStep),
        ("restart", RestartWorkflow),
        ("cancel", CancelWorkflow),
    ],
)
def test_each_decision_leads_to_its_command(decision: str, kind: type[Command]) -> None:
    service, request = asked()
    answer(service, request, decision)
    command = last(service)
    assert type(command) is kind
    decided = service.decisions[-1]
    assert (decided.rule, decided.ladder) == (f"operator kim: {decision}", "operator")
    assert command.command_id == decided.command_id
    finished = service.world.records(RecoveryAttemptFinished)[-1]
    assert (finished.strategy, finished.outcome) == ("manual_intervention", "succeeded")
    assert sound(service.world)


def test_an_edit_travels_to_the_step() -> None:
    service, request = asked()
    answer(service, request, "retry_edited", edit='{"address": "Main St"}')
    command = last(service)
    assert isinstance(command, RetryStep)
    assert (command.edit, command.sealed, command.approved) == ('{"address": "Main St"}', None, False)


def test_a_sealed_edit_travels_as_it_is() -> None:
    service, request = asked()
    answer(service, request, "retry_edited", sealed=b"\x00sealed\xff")
    command = last(service)
    assert isinstance(command, RetryStep)
    assert (command.edit, command.sealed) == (None, b"\x00sealed\xff")


def test_a_supplied_result_stands_for_the_step() -> None:
    service, request = asked()
    answer(service, request, "skip", result='{"tracking": "by hand"}')
    command = last(service)
    assert isinstance(command, SkipStep)
    assert (command.step_id, command.result) == ("ship", '{"tracking": "by hand"}')
    assert command.checkpoint_id is not None
    service.acknowledge(command)
    service.emit(StepSkipped, step_id="ship", reason="by hand", command_id=command.command_id)
    assert not service.state.cases
    assert sound(service.world)


def test_a_rollback_goes_to_the_step_that_was_named() -> None:
    service, request = asked()
    answer(service, request, "rollback", parameters='{"to_step": "pay"}')
    assert isinstance(last(service), CompensateStep)
    assert last(service).step_id == "pay"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("decision", "more", "why"),
    [
        ("retry_edited", {}, "needs an edit"),
        ("retry_edited", {"edit": "[1]"}, "no JSON object"),
        ("retry_edited", {"edit": "{" * 100_000}, "no JSON object"),
        ("retry_edited", {"edit": '{"a": "' + "x" * 300_000 + '"}'}, "no JSON object"),
        ("skip", {"result": "nothing"}, "no JSON object"),
        ("skip", {"edit": "{}"}, "takes no edit"),
        ("retry", {"result": "{}"}, "takes no result"),
        ("cancel", {"sealed": b"s"}, "takes no edit and no result"),
        ("retry", {"parameters": "[]"}, "parameters are no JSON object"),
        ("rollback", {"parameters": '{"to_step": "nowhere"}'}, "no step 'nowhere'"),
        ("rollback", {"parameters": '{"to_step": 7}'}, "out of range"),
        ("rollback", {"parameters": '{"command_id": "x"}'}, "is no parameter"),
    ],
)
def test_an_answer_that_cannot_be_carried_out_asks_again_and_says_why(
    decision: str, more: dict[str, Any], why: str
) -> None:
    service, request = asked()
    commands = len(service.world.commands)
    answer(service, request, decision, **more)
    again = newest(service)
    assert again.intervention_id != request.intervention_id
    assert again.trigger == "answer_not_possible"
    assert why in again.reason
    assert len(service.world.commands) == commands
    answer(service, again, "retry")
    assert isinstance(last(service), RetryStep)
    assert sound(service.world)


def test_an_alternative_that_is_not_declared_is_refused() -> None:
    service = Service(World(policy()), (StepSpec(step_id="a"),))
    service.start("a")
    service.fail("a")
    give_up(service)
    answer(service, newest(service), "alternative")
    assert "declares no alternative" in newest(service).reason
    assert "alternative" not in newest(service).options


def test_of_two_answers_the_first_in_the_log_counts() -> None:
    service, request = asked()
    fields = {"intervention_id": request.intervention_id, "error_id": request.error_id, "step_id": "ship"}
    for decision, actor in (("skip", "ann"), ("cancel", "bob")):  # both are written before either is read
        service.world.append(service.build(InterventionResolved, decision=decision, reason="r", actor=actor, **fields))
    service.world.settle()
    assert isinstance(last(service), SkipStep)
    assert [d.rule for d in service.decisions if d.ladder == "operator"] == ["operator ann: skip"]
    answer(service, request, "restart")
    assert isinstance(last(service), SkipStep)
    assert sound(service.world)


def test_an_answer_after_the_deadline_changes_nothing() -> None:
    service, request = asked()
    service.world.advance(2 * HOUR_MS)
    commands = len(service.world.commands)
    answer(service, request, "retry")
    assert len(service.world.commands) == commands
    answer(service, newest(service), "retry")
    assert len(service.world.commands) == commands + 1


def test_an_answer_to_a_workflow_that_ended_changes_nothing() -> None:
    service, request = asked()
    service.emit(WorkflowCancelled, reason="by hand", actor="ann")
    commands = len(service.world.commands)
    answer(service, request, "retry")
    assert len(service.world.commands) == commands


@given(decision=st.text(max_size=20), parameters=st.none() | st.text(max_size=20))
def test_a_decision_that_nobody_knows_changes_nothing(decision: str, parameters: str | None) -> None:
    if decision in (*DECISIONS, "expired", "restore", "recover"):
        return
    service, request = asked()
    before = len(service.world.log)
    answer(service, request, decision, parameters=parameters)
    assert len(service.world.log) == before + 1
    assert next(iter(service.state.cases.values())).intervention_id == request.intervention_id  # type: ignore[union-attr]


def test_escalation_asks_again_at_once() -> None:
    service, request = asked()
    answer(service, request, "escalate", reason="not my system")
    again = newest(service)
    assert (again.trigger, again.reason) == ("escalated", "kim: not my system")
    answer(service, again, "retry")
    assert isinstance(last(service), RetryStep)
    assert sound(service.world)


def test_a_claim_lasts_until_the_next_question() -> None:
    service, request = asked()
    (case,) = (service.state.cases or {}).values()
    for actor in ("ann", "bob"):
        service.emit(InterventionClaimed, intervention_id=request.intervention_id, actor=actor)
    service.emit(InterventionClaimed, intervention_id=request.error_id or "", actor="eve")
    assert case.claimed_by == "bob"
    service.world.advance(HOUR_MS + HOUR_MS // 2)
    assert (case.claimed_by, case.interventions) == ("", 2)


@pytest.mark.parametrize(
    ("on_timeout", "kind"),
    [("retry", RetryStep), ("skip", SkipStep), ("alternative", RunAlternativePath), ("cancel", CancelWorkflow)],
)
def test_a_deadline_that_passes_applies_the_default(on_timeout: str, kind: type[Command]) -> None:
    service, _ = asked(on_timeout)
    service.world.advance(2 * HOUR_MS)
    (resolved,) = service.world.records(InterventionResolved)
    assert (resolved.decision, resolved.actor) == (on_timeout, "engine")
    assert type(last(service)) is kind or kind in {type(c) for c in service.world.commands}
    assert sound(service.world)


def test_a_default_that_cannot_be_carried_out_waits_for_a_human_at_last() -> None:
    service = Service(World(policy("alternative")), (StepSpec(step_id="a"),))
    service.start("a")
    service.fail("a")
    service.world.advance(90 * 24 * HOUR_MS)
    requests = service.world.records(InterventionRequested)
    assert requests[-1].trigger == "answer_not_possible"
    assert len(requests) < 10
    answer(service, requests[-1], "skip")
    assert isinstance(last(service), SkipStep)


def test_an_answer_that_fails_leads_back_to_a_human() -> None:
    service, request = asked()
    answer(service, request, "retry")
    service.acknowledge(last(service), "failed")
    assert newest(service).intervention_id != request.intervention_id
    assert service.decisions[-1].strategy == "manual_intervention"
    assert sound(service.world)


def test_a_point_asks_without_an_error_and_tries_nothing() -> None:
    service, request = at_point()
    assert (request.trigger, request.reason, request.step_id) == ("intervention_point", "more than 1,000 EUR", "ship")
    assert "approve" in request.options
    assert "retry" not in request.options
    for kind in (ErrorClassified, WorkflowErrorOccurred, RecoveryDecided):
        assert service.world.records(kind) == []
    assert service.world.commands == []
    assert sound(service.world)


def test_an_approved_step_runs_and_its_end_closes_the_point() -> None:
    service, request = at_point()
    answer(service, request, "approve")
    command = last(service)
    assert isinstance(command, RetryStep)
    assert command.approved
    service.acknowledge(command)
    service.start("ship", command)
    service.complete("ship", command)
    assert not service.state.cases
    (finished,) = service.world.records(RecoveryAttemptFinished)
    assert finished.outcome == "succeeded"
    assert sound(service.world)


def test_an_approved_step_that_fails_is_an_error_of_its_own_and_stays_approved() -> None:
    service, request = at_point()
    answer(service, request, "approve")
    command = last(service)
    service.acknowledge(command)
    service.start("ship", command)
    error = service.fail("ship", command=command)
    (classified,) = service.world.records(ErrorClassified)
    assert (classified.root_error_id, classified.disposition) == (error.error_id, "opened")
    (case,) = (service.state.cases or {}).values()
    assert (case.error_id, case.approved) == (error.error_id, True)
    retried(service)
    again = last(service)
    assert isinstance(again, RetryStep)
    assert (again.error_id, again.approved) == (error.error_id, True)
    assert sound(service.world)


@pytest.mark.parametrize("decision", ["skip", "cancel", "rollback", "alternative", "restart"])
def test_a_point_can_be_answered_otherwise(decision: str) -> None:
    service, request = at_point()
    answer(service, request, decision)
    assert service.decisions[-1].rule == f"operator kim: {decision}"
    assert sound(service.world)


def test_a_point_is_not_passed_by_a_retry_nor_by_a_default() -> None:
    service, request = at_point("retry")
    answer(service, request, "retry")
    assert "approve does that" in newest(service).reason
    service.world.advance(30 * 24 * HOUR_MS)
    assert service.world.commands == []


def test_a_point_that_is_told_twice_asks_once() -> None:
    service = paid()
    record = service.emit(InterventionPointReached, step_id="ship")
    service.world.append(record)
    service.emit(InterventionPointReached, step_id="ship")
    assert len(service.world.records(InterventionRequested)) == 1


def test_a_restart_that_leads_to_the_point_again_asks_again() -> None:
    service, request = at_point()
    answer(service, request, "restart")
    service.acknowledge(last(service))
    service.emit(InterventionPointReached, step_id="ship")
    assert newest(service).intervention_id != request.intervention_id
    (finished,) = service.world.records(RecoveryAttemptFinished)
    assert (finished.outcome, "point again" in (finished.error_message or "")) == ("failed", True)
    answer(service, newest(service), "approve")
    assert isinstance(last(service), RetryStep)
    assert sound(service.world)


def test_a_workflow_before_a_point_is_not_overdue() -> None:
    service, _ = at_point()
    service.world.advance(60 * 24 * HOUR_MS)
    assert service.world.records(WorkflowErrorOccurred) == []


def test_too_many_points_are_said_to_be_too_many() -> None:
    service = Service(World(policy()), tuple(StepSpec(step_id=f"s{n}") for n in range(65)))
    for number in range(65):
        service.emit(InterventionPointReached, step_id=f"s{number}")
    (error,) = service.world.records(WorkflowErrorOccurred)
    assert (error.error_code, error.step_id) == ("INTERVENTION_POINT", "s64")
    (classified,) = service.world.records(ErrorClassified)
    assert classified.disposition == "ignored"


def test_the_parameters_of_an_answer_are_in_the_evidence() -> None:
    service, request = asked()
    answer(service, request, "rollback", parameters='{"to_step": "pay"}')
    evidence = json.loads(service.decisions[-1].evidence)
    assert evidence["asked"] == {"to_step": "pay"}
    assert evidence["intervention_id"] == request.intervention_id


@pytest.mark.parametrize("ends", ["the workflow", "the step"])
def test_a_question_about_what_is_over_is_closed(ends: str) -> None:
    service, request = asked()
    if ends == "the workflow":
        service.emit(WorkflowCancelled, reason="by hand", actor="ann")
    else:
        service.start("ship")
        service.complete("ship")
    (resolved,) = service.world.records(InterventionResolved)
    assert (resolved.intervention_id, resolved.decision) == (request.intervention_id, "closed")
    assert sound(service.world)


@pytest.mark.parametrize("kind", [WorkflowCancelled, StepSkipped])
def test_a_question_that_comes_too_late_is_closed(kind: type[WorkflowCancelled] | type[StepSkipped]) -> None:
    service = paid()
    fields: dict[str, Any] = {"actor": "ann"} if kind is WorkflowCancelled else {"step_id": "ship"}
    service.world.append(service.build(InterventionPointReached, step_id="ship"))
    service.world.append(service.build(kind, reason="meanwhile", **fields))
    service.world.settle()
    (request,) = service.world.records(InterventionRequested)
    (resolved,) = service.world.records(InterventionResolved)
    assert (resolved.intervention_id, resolved.decision) == (request.intervention_id, "closed")
    assert sound(service.world)


def test_an_answer_while_a_request_is_decided_comes_after_it() -> None:
    service, request = asked()
    fields = {"error_id": request.error_id, "reason": "r"}
    service.world.append(
        service.build(
            RecoveryRequested, strategy="retry_step", request_id=service.world.new_id(), actor="bob", **fields
        )
    )
    service.world.append(
        service.build(
            InterventionResolved,
            intervention_id=request.intervention_id,
            step_id="ship",
            decision="skip",
            actor="ann",
            **fields,
        )
    )
    service.world.settle()
    assert [type(c).__name__ for c in service.world.commands[-2:]] == ["RetryStep", "SkipStep"]
    assert sound(service.world)
