"""Given events, when folded, then these decisions."""

from __future__ import annotations

import pytest

from engine.policy import default_policy, load_policy
from engine.testing import Service, World, saved
from schemas.records.commands import PauseWorkflow, RestartWorkflow, ResumeFromCheckpoint, RetryStep, ScaleResources
from schemas.records.events import (
    CheckpointRejected,
    ErrorClassified,
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    RecoveryDecided,
    StepCompleted,
    StepSpec,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
)

STEPS = (StepSpec(step_id="generate"), StepSpec(step_id="build", depends_on=("generate",)), StepSpec(step_id="test"))
HOUR_MS = 3_600_000


def damaged(workflow_id: str, step_id: str) -> dict[str, object]:
    state = saved(workflow_id, step_id)
    assert isinstance(state["state"], bytes)
    return {**state, "state": state["state"].replace(b"running", b"runninh")}


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, STEPS)


def finished(world: World) -> list[tuple[int, str]]:
    return [(f.attempt_number, f.outcome) for f in world.records(RecoveryAttemptFinished)]


def test_reported_timeout_is_retried_at_once_with_twice_the_deadline(world: World, service: Service) -> None:
    service.start("generate")
    service.fail("generate", "TIMEOUT")
    (command,) = world.commands
    assert isinstance(command, RetryStep)
    assert (command.step_id, command.timeout_ms, command.attempt_number) == ("generate", 600_000, 1)
    service.acknowledge(command)
    service.start("generate", command, timeout_ms=command.timeout_ms)
    service.complete("generate", command)
    assert finished(world) == [(1, "succeeded")]
    assert not service.state.cases


def test_deadline_grows_to_the_maximum_and_then_a_human_is_asked(world: World, service: Service) -> None:
    service.start("generate")
    service.fail("generate", "TIMEOUT")
    for _ in range(3):
        command = world.commands[-1]
        service.acknowledge(command)
        service.start("generate", command)
        service.fail("generate", "TIMEOUT", command)
    assert [d.timeout_ms for d in service.decisions] == [600_000, 1_200_000, 1_800_000, None]
    assert service.decisions[-1].strategy == "manual_intervention"
    assert isinstance(world.commands[-1], PauseWorkflow)
    (request,) = world.records(InterventionRequested)
    assert request.trigger == "all_recovery_strategies_failed"
    assert finished(world) == [(1, "failed"), (2, "failed"), (3, "failed")]


def test_hung_step_is_found_at_its_deadline_and_not_before(world: World, service: Service) -> None:
    service.start("generate", timeout_ms=5_000)
    world.advance(4_999)
    assert not world.commands
    world.advance(1)
    (error,) = world.records(WorkflowErrorOccurred)
    assert (error.error_code, error.detected_by) == ("TIMEOUT", "detector:timeout")
    (command,) = world.commands
    assert isinstance(command, RetryStep)
    assert command.timeout_ms == 600_000


def test_silent_step_is_found_by_its_missing_heartbeat(world: World, service: Service) -> None:
    service.start("generate", heartbeat_timeout_ms=2_000)
    world.advance(2_000)
    assert [e.error_code for e in world.records(WorkflowErrorOccurred)] == ["HEARTBEAT_TIMEOUT"]


def test_workflow_left_between_steps_is_taken_up_again(world: World, service: Service) -> None:
    service.start("generate")
    service.complete("generate")
    service.checkpoint("generate", saved)
    world.advance(300_000)
    (command,) = world.commands
    assert isinstance(command, RetryStep)
    assert command.step_id == "build"
    assert command.checkpoint_offset is not None


def test_unknown_error_backs_off_with_jitter_that_is_the_same_every_time(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "Boom")
    (decision,) = service.decisions
    assert (decision.strategy, decision.error_type) == ("retry_step", "unknown_error")
    assert 0 <= decision.execute_after_ms <= 1_000
    again = World(default_policy())
    other = Service(again, STEPS)
    other.start("build")
    other.fail("build", "Boom")
    assert other.decisions == [decision]
    assert not world.commands
    world.advance(decision.execute_after_ms)
    assert len(world.commands) == 1


def test_a_service_that_cannot_scale_moves_the_ladder_on_to_the_queue(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "OUT_OF_MEMORY")
    (scale,) = world.commands
    assert isinstance(scale, ScaleResources)
    service.acknowledge(scale, "failed", reason="unsupported")
    assert [d.strategy for d in service.decisions] == ["scale_resources_and_retry", "queue_for_later"]
    world.advance(59_999)
    assert world.commands == [scale]
    world.advance(1)
    assert isinstance(world.commands[1], RetryStep)


def test_damaged_checkpoint_is_rejected_and_the_one_before_restored(world: World, service: Service) -> None:
    service.start("generate")
    good = service.checkpoint("generate", saved)
    service.complete("generate")
    service.start("build")
    bad = service.checkpoint("build", damaged)
    (rejected,) = world.records(CheckpointRejected)
    assert (rejected.checkpoint_id, rejected.reason) == (bad.checkpoint_id, "digest")
    (command,) = world.commands
    assert isinstance(command, ResumeFromCheckpoint)
    assert (command.checkpoint_id, command.checkpoint_digest) == (good.checkpoint_id, good.digest)


def test_each_restore_for_one_error_goes_one_checkpoint_further_back(world: World, service: Service) -> None:
    first = service.checkpoint("generate", saved)
    second = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    service.acknowledge(world.commands[-1], "failed", detail="does not restore")
    service.acknowledge(world.commands[-1], "failed", detail="does not restore")
    used = [c.checkpoint_id for c in world.commands if isinstance(c, ResumeFromCheckpoint)]
    assert used == [second.checkpoint_id, first.checkpoint_id]
    assert isinstance(world.commands[-1], RestartWorkflow)


def test_no_checkpoint_newer_than_the_error_is_ever_a_target(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "INFINITE_LOOP")
    service.checkpoint("build", saved)
    service.acknowledge(world.commands[-1], "failed")
    assert [d.checkpoint_id for d in service.decisions] == [None, None]
    assert [d.strategy for d in service.decisions] == ["complete_restart", "manual_intervention"]


def test_no_answer_is_unknown_and_moves_on(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    world.advance(15_000)
    assert finished(world) == [(1, "unknown")]
    assert len(world.commands) == 2
    assert world.commands[0].expires_at <= world.commands[1].occurred_at


def test_a_service_that_is_away_for_long_uses_up_no_try(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    world.advance(HOUR_MS - 600_000)  # before the workflow's own deadline
    assert len(service.decisions) > 5
    assert {d.strategy for d in service.decisions} == {"increase_timeout_and_retry"}
    assert {d.timeout_ms for d in service.decisions} == {1_200_000}, "nothing ran, so nothing was too short"
    assert {d.rule for d in service.decisions} == {"recovery_strategies.timeout: rung 1, try 1 of 3"}
    waits = [d.execute_after_ms for d in service.decisions]
    assert waits[:2] == [0, 0], "the first command may have met a process that was dying"
    assert max(waits) > 60_000, "commands come less and less often"
    command = world.commands[-1]
    service.acknowledge(command)
    service.start("build", command)
    service.complete("build", command)
    assert finished(world)[-1][1] == "succeeded"


def test_a_service_that_never_comes_back_ends_with_a_human(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    world.advance(24 * HOUR_MS)
    assert service.decisions[-1].strategy == "manual_intervention"
    assert "budgets.workflow_max" in service.decisions[-1].rule


def test_unanswered_restores_go_back_to_the_same_checkpoint(world: World, service: Service) -> None:
    service.checkpoint("generate", saved)
    newest = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "INFINITE_LOOP")
    world.advance(60_000)
    assert len(service.decisions) > 1
    assert {d.checkpoint_id for d in service.decisions} == {newest.checkpoint_id}


def test_service_that_accepts_and_never_finishes_is_found(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    service.acknowledge(world.commands[0])
    world.advance(HOUR_MS)
    assert (1, "unknown") in finished(world)


def test_second_error_on_the_same_step_joins_the_case(world: World, service: Service) -> None:
    service.start("build")
    first = service.build(WorkflowErrorOccurred, error_id=world.new_id(), step_id="build", error_code="Boom",
                          error_message="x", detected_by="service")  # fmt: skip
    second = service.build(WorkflowErrorOccurred, error_id=world.new_id(), step_id="build", error_code="Boom",
                           error_message="x", detected_by="service")  # fmt: skip
    world.append(first)
    world.append(second)
    world.settle()
    assert [c.root_error_id for c in world.records(ErrorClassified)] == [first.error_id] * 2
    assert len(service.decisions) == 1


def test_everything_twice_changes_nothing(world: World, service: Service) -> None:
    service.start("generate")
    service.checkpoint("generate", saved)
    service.fail("generate", "TIMEOUT")
    service.acknowledge(world.commands[0])
    before = (len(service.decisions), len(world.commands), len(world.records(RecoveryAttemptFinished)))
    for event in list(world.log):
        world.append(event.record)
    world.settle()
    assert (len(service.decisions), len(world.commands), len(world.records(RecoveryAttemptFinished))) == (
        before[0] * 2,  # the repeated records themselves
        before[1],
        before[2] * 2,
    )


def test_two_engines_agree_and_the_first_decision_in_the_log_wins(world: World, service: Service) -> None:
    service.start("build")
    error = service.build(WorkflowErrorOccurred, error_id=world.new_id(), step_id="build", error_code="TIMEOUT",
                          error_message="x", detected_by="service")  # fmt: skip
    world.append(error)
    world.settle()
    (decision,) = service.decisions
    other_policy = load_policy(
        "workflow_error_handling: {recovery_strategies: {timeout: {strategy: complete_restart}}}", "other"
    )
    rival = World(other_policy)
    rival.log, rival._read = world.log[:3], 0
    rival.settle()
    (other,) = [d for d in rival.records(RecoveryDecided) if d.workflow_id == service.workflow_id]
    assert other.event_id == decision.event_id
    assert other.strategy != decision.strategy
    world.append(other)
    world.settle()
    assert [type(c) for c in world.commands] == [RetryStep]


def test_error_of_a_workflow_that_never_started_is_repaired_without_a_graph(world: World) -> None:
    ghost = Service(world)
    ghost.fail("build", "TIMEOUT")
    assert isinstance(world.commands[0], RetryStep)


def test_acknowledgement_of_an_unknown_command_changes_nothing(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    stranger = RetryStep(**{**_fields(world.commands[0]), "command_id": world.new_id()})
    service.acknowledge(stranger, "failed")
    assert finished(world) == []


def test_a_repeated_command_that_nobody_accepted_is_still_given_up_in_time(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    service.acknowledge(world.commands[0], "unknown", duplicate=True)
    assert finished(world) == []
    world.advance(15_000)
    assert finished(world) == [(1, "unknown")]


@pytest.mark.parametrize(("status", "expected"), [("accepted", []), ("succeeded", []), ("failed", [(1, "failed")])])
def test_an_answer_given_again_counts_as_the_first_would_have(
    world: World, service: Service, status: str, expected: list[tuple[int, str]]
) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    service.acknowledge(world.commands[0], status, duplicate=True)
    world.advance(16_000)
    assert finished(world)[:1] == expected


def test_a_state_that_cannot_be_restored_fails_the_repair_that_asked_for_it(world: World, service: Service) -> None:
    service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    command = world.commands[0]
    assert isinstance(command, ResumeFromCheckpoint)
    service.acknowledge(command)
    service.fail("", "STATE_CORRUPTION", command)
    service.acknowledge(command, "failed", detail="does not verify")
    assert finished(world) == [(1, "failed")]
    assert len(service.state.cases or {}) == 1
    assert len(world.commands) == 2


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}  # type: ignore[attr-defined]


def test_late_completion_of_a_replaced_run_does_not_count(world: World, service: Service) -> None:
    service.start("build")
    old = service.runs["build"]
    service.fail("build", "TIMEOUT")
    service.acknowledge(world.commands[0])
    service.start("build", world.commands[0])
    service.emit(StepCompleted, step_id="build", step_run_id=old, duration_ms=1)
    assert finished(world) == []
    service.complete("build", world.commands[0])
    assert finished(world) == [(1, "succeeded")]


def test_operator_retry_repairs_what_the_ladder_could_not(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "INFINITE_LOOP")
    service.acknowledge(world.commands[-1], "failed")
    service.emit(WorkflowPaused, reason="asked", actor="engine")
    (request,) = world.records(InterventionRequested)
    service.emit(
        InterventionResolved,
        intervention_id=request.intervention_id,
        error_id=request.error_id,
        step_id="build",
        decision="retry",
        reason="fixed the disk",
        actor="kim",
    )
    command = world.commands[-1]
    assert isinstance(command, RetryStep)
    service.acknowledge(command)
    assert service.state.status == "running"
    service.start("build", command)
    service.complete("build", command)
    assert not service.state.cases


def test_unanswered_intervention_escalates_a_bounded_number_of_times(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "INFINITE_LOOP")
    service.acknowledge(world.commands[-1], "failed")
    world.advance(20 * 24 * HOUR_MS)
    assert len(world.records(InterventionRequested)) == 4


def test_completed_workflow_closes_its_cases(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    service.emit(WorkflowCompleted)
    assert finished(world) == [(1, "succeeded")]
    assert service.state.terminal
    world.advance(24 * HOUR_MS)
    assert len(world.commands) == 1


def test_paused_workflow_is_not_overdue(world: World, service: Service) -> None:
    service.start("generate", timeout_ms=1_000)
    service.emit(WorkflowPaused, reason="operator", actor="kim")
    world.advance(24 * HOUR_MS)
    assert not world.records(WorkflowErrorOccurred)
