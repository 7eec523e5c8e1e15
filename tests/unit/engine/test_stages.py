"""Strategies of several commands: scale and retry, undo and go on, undo and give up; each command is an attempt."""

from __future__ import annotations

import pytest

from engine.policy import Policy, Rung, load_policy
from engine.strategies import STRATEGIES, Plan, Situation, Unavailable
from engine.testing import Service, World, saved
from schemas.records import Command
from schemas.records.commands import (
    CancelWorkflow,
    CompensateStep,
    PauseWorkflow,
    RestartWorkflow,
    ResumeFromCheckpoint,
    RetryStep,
    RollbackTo,
    RunAlternativePath,
    ScaleResources,
)
from schemas.records.events import (
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    StepCompensated,
    StepSkipped,
    StepSpec,
)

STEPS = (
    StepSpec(step_id="reserve", compensation="release"),
    StepSpec(step_id="pay", depends_on=("reserve",), compensation="refund"),
    StepSpec(step_id="note", depends_on=("pay",)),
    StepSpec(step_id="ship", depends_on=("note",), alternative="courier"),
    StepSpec(step_id="release"),
    StepSpec(step_id="refund"),
    StepSpec(step_id="courier"),
)


def policy(strategy: str, **more: object) -> Policy:
    """One rung for unknown errors, tried twice; then a human."""
    keys = "".join(f"\n      {key}: {value}" for key, value in more.items())
    return load_policy(
        f"""
workflow_error_handling:
  recovery_strategies:
    unknown_error:
      strategy: {strategy}
      max_retries: 2{keys}
    resource_exhaustion:
      strategy: scale_resources_and_retry
      scaling_factor: 2.0
      max_scaling_attempts: 3
  resource_scaling:
    settle_time: 5000
    factor_max: 8
  compensation:
    attempts: 2
""",
        "test",
    )


def at_ship(strategy: str, **more: object) -> Service:
    """A workflow that has reserved, paid and noted, with a checkpoint for each, and whose shipping has failed."""
    service = Service(World(policy(strategy, **more)), STEPS)
    for step_id in ("reserve", "pay", "note"):
        service.start(step_id)
        service.checkpoint(step_id, saved)
        service.complete(step_id)
    service.start("ship")
    service.fail("ship")
    return service


def last(service: Service) -> Command:
    return service.world.commands[-1]


def undone(service: Service, command: Command) -> None:
    """The service undoes the step that the command names, and says so."""
    assert isinstance(command, CompensateStep)
    service.acknowledge(command)
    service.emit(StepCompensated, step_id=command.step_id, command_id=command.command_id, duration_ms=1)
    service.acknowledge(command, "succeeded")


def names(service: Service) -> list[str]:
    """Commands sent so far, with the step of those that are about one."""
    whole = (CancelWorkflow, PauseWorkflow)
    steps = ["" if isinstance(c, whole) else getattr(c, "step_id", None) or "" for c in service.world.commands]
    return [f"{type(c).__name__} {step}".strip() for c, step in zip(service.world.commands, steps, strict=True)]


def resolve(service: Service, asked: InterventionRequested, decision: str, **more: object) -> None:
    """A human answers."""
    service.emit(
        InterventionResolved,
        intervention_id=asked.intervention_id,
        error_id=asked.error_id,
        step_id=asked.step_id,
        decision=decision,
        reason="looked at it",
        actor="ada",
        **more,
    )


# -- scaling ----------------------------------------------------------------------------------------------------------


def scaled(service: Service) -> None:
    command = last(service)
    assert isinstance(command, ScaleResources)
    service.acknowledge(command)
    service.acknowledge(command, "succeeded", result=str(command.factor))


def test_scaling_waits_for_its_answer_and_the_settling_time_then_retries() -> None:
    service = Service(World(policy("retry_step")), STEPS)
    service.start("reserve")
    service.fail("reserve", "OUT_OF_MEMORY")
    command = last(service)
    assert isinstance(command, ScaleResources)
    assert (command.resource, command.factor, command.step_id) == ("memory", 2.0, "reserve")
    scaled(service)
    service.world.advance(4_999)
    assert names(service) == ["ScaleResources reserve"]
    service.world.advance(1)
    assert names(service) == ["ScaleResources reserve", "RetryStep reserve"]
    first, second = service.decisions
    assert (first.rung, first.stage) == (second.rung, "scale")
    outcomes = [r.outcome for r in service.world.records(RecoveryAttemptFinished)]
    assert outcomes == ["succeeded"]


def test_each_scaling_builds_on_the_one_before_and_ends_at_the_maximum() -> None:
    service = Service(World(policy("retry_step")), STEPS)
    service.start("reserve")
    service.fail("reserve", "OUT_OF_MEMORY")
    for _ in range(3):
        scaled(service)
        service.world.advance(5_000)
        retry = last(service)
        service.acknowledge(retry)
        service.start("reserve", retry)
        service.fail("reserve", "OUT_OF_MEMORY", retry)
    factors = [c.factor for c in service.world.commands if isinstance(c, ScaleResources)]
    assert factors == [2.0, 4.0, 8.0]
    assert service.decisions[-1].strategy == "manual_intervention"


def test_the_size_that_worked_is_where_the_next_scaling_of_the_workflow_begins() -> None:
    service = Service(World(policy("retry_step")), STEPS)
    service.start("reserve")
    service.fail("reserve", "OUT_OF_MEMORY")
    scaled(service)
    service.world.advance(5_000)
    retry = last(service)
    service.acknowledge(retry)
    service.start("reserve", retry)
    service.complete("reserve", retry)
    service.start("pay")
    service.fail("pay", "OUT_OF_MEMORY")
    command = last(service)
    assert isinstance(command, ScaleResources)
    assert command.factor == 4.0


# -- other paths ------------------------------------------------------------------------------------------------------


def test_an_alternative_that_completes_ends_the_error_of_the_step_it_stands_for() -> None:
    service = at_ship("alternative_path")
    command = last(service)
    assert isinstance(command, RunAlternativePath)
    assert (command.step_id, command.alternative_step_id) == ("ship", "courier")
    service.acknowledge(command)
    service.start("courier", command)
    service.complete("courier", command)
    service.emit(StepSkipped, step_id="ship", reason="courier ran", command_id=command.command_id)
    assert not service.state.cases
    assert [r.outcome for r in service.world.records(RecoveryAttemptFinished)] == ["succeeded"]


def test_a_step_without_an_alternative_passes_that_rung_over() -> None:
    service = Service(World(policy("alternative_path")), STEPS)
    service.start("reserve")
    service.fail("reserve")
    (decision,) = service.decisions
    assert decision.strategy == "manual_intervention"
    assert "declares no alternative" in decision.alternatives


# -- undoing ----------------------------------------------------------------------------------------------------------


def test_a_rollback_undoes_in_reverse_order_of_completion_and_goes_on_from_the_checkpoint() -> None:
    service = at_ship("rollback", to_step="pay")
    undone(service, last(service))
    command = last(service)
    assert names(service) == ["CompensateStep pay", "RollbackTo"]
    assert isinstance(command, RollbackTo)
    before_pay = next(iter(service.state.all_checkpoints()))
    assert command.checkpoint_id == before_pay.checkpoint_id


def test_a_rollback_to_before_the_first_step_undoes_everything_and_starts_from_the_beginning() -> None:
    service = at_ship("rollback", to_step="reserve")
    for _ in range(2):
        undone(service, last(service))
    command = last(service)
    assert names(service) == ["CompensateStep pay", "CompensateStep reserve", "RestartWorkflow"]
    assert isinstance(command, RestartWorkflow)
    assert (command.started_partition, command.started_offset) == (0, service.state.started_offset)
    service.acknowledge(command)
    for step_id in ("reserve", "pay", "note", "ship"):
        service.start(step_id, command)
        service.complete(step_id, command)
    assert service.state.cases is None


def test_a_second_rollback_to_the_beginning_undoes_what_the_first_made_run_again() -> None:
    service = at_ship("rollback", to_step="reserve")
    for _ in range(2):
        undone(service, last(service))
    command = last(service)
    service.acknowledge(command)
    service.start("reserve", command)
    service.complete("reserve", command)
    service.start("pay", command)
    service.fail("pay", "ValueError", command)
    assert names(service)[3:] == ["CompensateStep reserve"]
    undone(service, last(service))
    assert names(service)[4:] == ["RestartWorkflow"]


def test_without_any_checkpoint_a_rollback_goes_to_the_beginning() -> None:
    service = Service(World(policy("rollback")), STEPS)
    service.start("reserve")
    service.complete("reserve")
    service.start("pay")
    service.fail("pay")
    undone(service, last(service))
    assert names(service) == ["CompensateStep reserve", "RestartWorkflow"]


def test_a_restart_at_the_end_of_a_rollback_that_nobody_answers_is_sent_again_and_nothing_is_undone_again() -> None:
    service = at_ship("rollback", to_step="reserve")
    for _ in range(2):
        undone(service, last(service))
    for _ in range(2):
        service.world.advance(service.world.policy.timeouts.acknowledge_ms)
    assert names(service)[2:4] == ["RestartWorkflow", "RestartWorkflow"]


def test_a_failed_compensation_on_the_way_to_the_beginning_is_visible_and_resumable() -> None:
    service = at_ship("rollback", to_step="reserve")
    undone(service, last(service))
    for _ in range(2):
        service.acknowledge(last(service), "failed", detail="the shop is closed")
        service.world.advance(1_000)
    (asked,) = service.world.records(InterventionRequested)
    assert asked.trigger == "compensation_failed"
    resolve(service, asked, "retry")
    undone(service, last(service))
    assert names(service)[-2:] == ["CompensateStep reserve", "RestartWorkflow"]


def test_a_human_may_have_a_rollback_that_failed_on_the_way_go_further_back() -> None:
    service = at_ship("rollback", to_step="pay")
    for _ in range(2):
        service.acknowledge(last(service), "failed", detail="the bank is closed")
        service.world.advance(1_000)
    (asked,) = service.world.records(InterventionRequested)
    resolve(service, asked, "rollback", parameters='{"to_step": "reserve"}')
    for _ in range(2):
        undone(service, last(service))
    assert names(service)[-3:] == ["CompensateStep pay", "CompensateStep reserve", "RestartWorkflow"]


def test_a_human_who_names_no_step_lets_the_rollback_go_on_to_where_it_was_going() -> None:
    service = at_ship("rollback", to_step="pay")
    service.acknowledge(last(service), "failed", reason="no_compensation")
    (asked,) = service.world.records(InterventionRequested)
    resolve(service, asked, "rollback")
    undone(service, last(service))
    assert names(service)[-2:] == ["CompensateStep pay", "RollbackTo"]


@pytest.mark.parametrize(("to_step", "why"), [("ship_it", "has not begun"), ("courier", "has not begun")])
def test_a_rollback_to_a_step_that_never_began_is_passed_over(to_step: str, why: str) -> None:
    service = at_ship("rollback", to_step=to_step)
    assert why in service.decisions[-1].alternatives
    assert names(service) == ["PauseWorkflow"]


def test_there_is_no_beginning_to_go_back_to_when_the_log_does_not_hold_it() -> None:
    service = at_ship("retry_step")
    (case,) = (service.state.cases or {}).values()
    rung = Rung(strategy="rollback", attempts_max=1, to_step="reserve")
    situation = Situation(service.state, case, rung, service.world.policy, "attempt", 1)
    assert isinstance(STRATEGIES["rollback"](situation), Plan)
    service.state.started_offset = -1
    assert STRATEGIES["rollback"](situation) == Unavailable("the workflow's start is not in the log")


def test_what_a_branch_at_work_leaves_behind_is_waited_for_before_the_restart_of_a_rollback() -> None:
    steps = (StepSpec(step_id="label", compensation="tear"), StepSpec(step_id="pack"), StepSpec(step_id="tear"))
    service = Service(World(policy("rollback", to_step="pack")), steps)
    service.start("label")
    service.start("pack")
    service.fail("pack")
    assert names(service) == []
    service.complete("label")
    undone(service, last(service))
    assert names(service) == ["CompensateStep label", "RestartWorkflow"]


def test_compensating_undoes_everything_that_completed_and_cancels() -> None:
    service = at_ship("compensate")
    undone(service, last(service))
    undone(service, last(service))
    assert names(service) == ["CompensateStep pay", "CompensateStep reserve", "CancelWorkflow"]
    assert isinstance(last(service), CancelWorkflow)


def test_what_never_completed_is_not_compensated() -> None:
    service = Service(World(policy("compensate")), STEPS)
    service.start("reserve")
    service.complete("reserve")
    service.start("pay")
    service.fail("pay")
    undone(service, last(service))
    assert names(service) == ["CompensateStep reserve", "CancelWorkflow"]


def test_a_step_is_compensated_once_however_often_its_end_is_told() -> None:
    service = at_ship("compensate")
    command = last(service)
    undone(service, command)
    undone(service, command)
    assert names(service) == ["CompensateStep pay", "CompensateStep reserve"]


def test_a_compensation_whose_acknowledgement_is_lost_counts_by_its_event() -> None:
    service = at_ship("compensate")
    command = last(service)
    service.acknowledge(command)
    service.emit(StepCompensated, step_id="pay", command_id=command.command_id, duration_ms=1)
    assert names(service) == ["CompensateStep pay", "CompensateStep reserve"]


def test_a_failed_compensation_has_tries_of_its_own_then_a_human_is_asked_and_can_resume_it() -> None:
    service = at_ship("compensate")
    service.acknowledge(last(service), "failed", detail="the bank is closed")
    service.world.advance(1_000)
    assert names(service) == ["CompensateStep pay", "CompensateStep pay"]
    service.acknowledge(last(service), "failed", detail="the bank is closed")
    (asked,) = service.world.records(InterventionRequested)
    assert asked.trigger == "compensation_failed"
    assert "'pay' failed 2 times" in asked.reason
    resolve(service, asked, "retry")
    assert names(service)[3:] == ["CompensateStep pay"]
    undone(service, last(service))
    assert names(service)[4:] == ["CompensateStep reserve"]


@pytest.mark.parametrize("reason", ["no_compensation", "never_ran"])
def test_a_compensation_that_cannot_help_is_not_tried_again(reason: str) -> None:
    service = at_ship("compensate")
    service.acknowledge(last(service), "failed", reason=reason)
    assert names(service) == ["CompensateStep pay", "PauseWorkflow"]


def test_a_service_that_cannot_be_asked_cannot_tell() -> None:
    service = unsure(StepSpec(step_id="pay", idempotent=False, reconcilable=True))
    service.acknowledge(last(service), "failed", reason="not_reconcilable")
    assert names(service)[1:] == ["ReconcileStep pay", "PauseWorkflow"]


def test_an_error_while_a_step_is_undone_is_a_failure_of_the_compensation() -> None:
    service = at_ship("compensate")
    command = last(service)
    service.acknowledge(command)
    service.start("refund", command)
    service.fail("refund", "BankClosed", command)
    assert len(service.state.cases or {}) == 1
    service.world.advance(1_000)
    assert names(service) == ["CompensateStep pay", "CompensateStep pay"]


def test_what_a_branch_at_work_does_is_undone_too_when_it_has_ended() -> None:
    steps = (StepSpec(step_id="reserve", compensation="release"), StepSpec(step_id="label", compensation="tear"))
    service = Service(World(policy("compensate")), (*steps, StepSpec(step_id="pack"), *STEPS[4:]))
    service.start("reserve")
    service.complete("reserve")
    service.start("label")
    service.start("pack")
    service.fail("pack")
    assert names(service) == []
    service.complete("label")
    undone(service, last(service))
    undone(service, last(service))
    assert names(service) == ["CompensateStep label", "CompensateStep reserve", "CancelWorkflow"]


def test_a_branch_that_does_not_end_is_waited_for_as_long_as_it_may_take_then_a_human_is_asked() -> None:
    steps = (StepSpec(step_id="mail", idempotent=False, timeout_ms=60_000), StepSpec(step_id="pack"))
    service = Service(World(policy("complete_restart")), steps)
    service.start("mail", timeout_ms=600_000)
    service.start("pack")
    service.fail("pack")
    service.world.advance(59_999)
    assert names(service) == []
    service.world.advance(1)
    assert names(service) == ["PauseWorkflow"]


def test_steps_are_resumed_from_an_earlier_one_without_undoing() -> None:
    service = at_ship("resume_from_step", to_step="pay")
    command = last(service)
    assert isinstance(command, ResumeFromCheckpoint)
    assert command.checkpoint_id == next(iter(service.state.all_checkpoints())).checkpoint_id


# -- outcomes that nobody saw -----------------------------------------------------------------------------------------


def unsure(spec: StepSpec) -> Service:
    """A step whose run nobody saw end."""
    service = Service(World(policy("retry_step")), (spec,))
    service.start(spec.step_id)
    service.fail(spec.step_id)
    retry = last(service)
    service.acknowledge(retry)
    service.start(spec.step_id, retry)
    service.acknowledge(retry, "unknown", detail="the process died")
    return service


def test_an_idempotent_step_runs_again_without_being_asked_about() -> None:
    assert names(unsure(StepSpec(step_id="pay"))) == ["RetryStep pay", "RetryStep pay"]


@pytest.mark.parametrize(
    ("result", "then"), [("no_effect", "RetryStep pay"), ("took_effect", "SkipStep pay"), ("cannot_tell", None)]
)
def test_a_reconcilable_step_is_asked_about_before_it_runs_again(result: str, then: str | None) -> None:
    service = unsure(StepSpec(step_id="pay", idempotent=False, reconcilable=True))
    assert names(service) == ["RetryStep pay", "ReconcileStep pay"]
    command = last(service)
    service.acknowledge(command)
    service.acknowledge(command, "succeeded", result=result)
    if then is not None:
        assert names(service)[2:] == [then]
    else:
        assert service.world.records(InterventionRequested)[0].trigger == "outcome_unknown"


def test_a_step_that_is_neither_goes_to_a_human_rather_than_running_twice() -> None:
    service = unsure(StepSpec(step_id="pay", idempotent=False))
    assert names(service) == ["RetryStep pay", "PauseWorkflow"]
    (asked,) = service.world.records(InterventionRequested)
    assert asked.trigger == "outcome_unknown"


def test_a_reported_failure_of_such_a_step_is_known_and_it_runs_again() -> None:
    service = Service(World(policy("retry_step")), (StepSpec(step_id="pay", idempotent=False),))
    service.start("pay")
    service.fail("pay")
    assert names(service) == ["RetryStep pay"]


def test_a_restart_does_not_repeat_a_completed_step_that_is_not_idempotent() -> None:
    steps = (StepSpec(step_id="pay", idempotent=False), StepSpec(step_id="ship", depends_on=("pay",)))
    service = Service(World(policy("complete_restart")), steps)
    service.start("pay")
    service.complete("pay")
    service.start("ship")
    service.fail("ship")
    (decision,) = service.decisions
    assert decision.strategy == "manual_intervention"
    assert "'pay' a second time" in decision.alternatives


def test_a_checkpoint_made_by_a_steps_completion_knows_of_it() -> None:
    steps = (StepSpec(step_id="pay", idempotent=False), StepSpec(step_id="ship", depends_on=("pay",)))
    service = Service(World(policy("retry_step")), steps)
    service.start("pay")
    service.checkpoint("pay", saved)
    service.complete("pay")
    service.start("ship")
    service.fail("ship")
    assert isinstance(last(service), RetryStep)
