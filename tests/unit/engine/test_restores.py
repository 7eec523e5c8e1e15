"""Restores: what an operator asks for, what a service could not restore, and what no older checkpoint would mend."""

from __future__ import annotations

import json

import pytest

from engine.fold import SCHEMA_STATE_BYTES_MAX
from engine.invariants import LogCheck
from engine.policy import default_policy
from engine.testing import Service, World, saved
from schemas.canonical import canonical_bytes, digest_of
from schemas.ids import derive_id
from schemas.records.commands import RestartWorkflow, ResumeFromCheckpoint
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    InterventionResolved,
    RecoveryAttemptFinished,
    RestoreRequested,
    StateMigrated,
    StepSpec,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

STEPS = (StepSpec(step_id="generate"), StepSpec(step_id="build"))


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, STEPS)


def ask(service: Service, checkpoint: CheckpointCreated, offset: int = 1) -> RestoreRequested:
    return service.emit(
        RestoreRequested,
        request_id=service.world.new_id(),
        checkpoint_id=checkpoint.checkpoint_id,
        checkpoint_partition=0,
        checkpoint_offset=offset,
        checkpoint_digest=checkpoint.digest,
        reason="the build cache was poisoned",
        actor="ann",
    )


def sound(world: World) -> bool:
    check = LogCheck(world.policy)
    check.begins_at_zero(0)
    for event in world.log:
        check.event(event)
    for command in world.commands:
        check.command(command, world.now_us)
    return check.findings(world.now_us) == []


def test_a_restore_of_a_healthy_workflow_is_one_command(world: World, service: Service) -> None:
    checkpoint = service.checkpoint("generate", saved)
    request = ask(service, checkpoint)
    (command,) = world.commands
    assert isinstance(command, ResumeFromCheckpoint)
    assert command.command_id == derive_id(request.event_id, "command|ResumeFromCheckpoint")
    assert (command.error_id, command.attempt_number) == (None, 0)
    assert (command.checkpoint_id, command.checkpoint_digest) == (checkpoint.checkpoint_id, checkpoint.digest)
    assert (command.epoch, command.last_sequence) == (1, 1)
    assert (command.actor, command.reason) == ("ann", "the build cache was poisoned")
    world.append(request)
    world.settle()
    assert len(world.commands) == 1, "the same request again is no second restore"
    assert sound(world)


def test_a_restore_answers_the_case_that_waits_for_a_human(world: World, service: Service) -> None:
    checkpoint = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build")
    (case,) = (service.state.cases or {}).values()
    while case.intervention_id is None:
        world.advance(60_000)
    before = len(world.commands)
    ask(service, checkpoint)
    (resolved,) = world.records(InterventionResolved)
    assert (resolved.decision, resolved.actor) == ("restore", "ann")
    command = world.commands[-1]
    assert len(world.commands) == before + 1
    assert isinstance(command, ResumeFromCheckpoint)
    assert (command.error_id, command.checkpoint_id) == (case.error_id, checkpoint.checkpoint_id)
    assert json.loads(service.decisions[-1].evidence)["reason"] == "the build cache was poisoned"
    service.acknowledge(command)
    service.start("build", command)
    service.complete("build", command)
    assert case.error_id not in (service.state.cases or {})
    assert sound(world)


def test_a_restore_ends_what_is_being_tried(world: World, service: Service) -> None:
    checkpoint = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    first = world.commands[-1]
    ask(service, checkpoint)
    second = world.commands[-1]
    assert second is not first
    (ended,) = world.records(RecoveryAttemptFinished)
    assert (ended.outcome, ended.error_message) == ("failed", "an operator restored the workflow")
    service.acknowledge(first)  # too late: it counts for nothing
    service.acknowledge(second)
    service.start("build", second)
    service.complete("build", second)
    assert service.state.cases is None
    assert sound(world)


def test_a_restore_that_nobody_answers_goes_on_with_the_ladder(world: World, service: Service) -> None:
    checkpoint = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    ask(service, checkpoint)
    asked = len(world.commands)
    world.advance(3_600_000)
    assert len(world.commands) > asked or any(c.intervention_id for c in (service.state.cases or {}).values())


def test_an_ended_workflow_is_not_restored(world: World, service: Service) -> None:
    checkpoint = service.checkpoint("generate", saved)
    service.emit(WorkflowCompleted)
    ask(service, checkpoint)
    assert world.commands == []


# -- what the service could not restore -----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["migration_missing", "migration_failed", "downgrade", "key_erased"])
def test_what_no_older_checkpoint_would_mend_ends_the_rung(world: World, service: Service, reason: str) -> None:
    for _ in range(3):
        service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    service.acknowledge(world.commands[-1], "failed", detail="no", reason=reason)
    assert isinstance(world.commands[-1], RestartWorkflow), "the next rung of the story's ladder"
    assert sound(world)


@pytest.mark.parametrize("reason", ["object_missing", "checkpoint_missing", None])
def test_what_an_older_checkpoint_may_mend_goes_one_further_back(
    world: World, service: Service, reason: str | None
) -> None:
    made = [service.checkpoint("generate", saved) for _ in range(3)]
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    service.acknowledge(world.commands[-1], "failed", detail="no", reason=reason)
    used = [c.checkpoint_id for c in world.commands if isinstance(c, ResumeFromCheckpoint)]
    assert used == [made[2].checkpoint_id, made[1].checkpoint_id]


def test_a_checkpoint_rejected_on_restore_is_not_chosen_again_and_none_is_left_out(
    world: World, service: Service
) -> None:
    made = [service.checkpoint("generate", saved) for _ in range(3)]
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    service.emit(
        CheckpointRejected,
        checkpoint_id=made[2].checkpoint_id,
        step_id="generate",
        reason="digest",
        detail="damaged",
        detected_by="restore",
    )
    service.acknowledge(world.commands[-1], "failed", detail="damaged", reason="corrupt")
    used = [c.checkpoint_id for c in world.commands if isinstance(c, ResumeFromCheckpoint)]
    assert used == [made[2].checkpoint_id, made[1].checkpoint_id]


# -- the schema of a state ------------------------------------------------------------------------------------------

SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "string"}}})


def test_a_state_that_breaks_the_schema_of_its_version_is_rejected(world: World) -> None:
    service = Service(world)
    service.emit(WorkflowStarted, workflow_version="1", steps=STEPS, state_version="1", state_schema=SCHEMA)
    service.checkpoint("generate", saved)
    (rejected,) = world.records(CheckpointRejected)
    assert (rejected.reason, "$.data.n" in rejected.detail) == ("schema", True)
    assert [e.reason for e in world.records(WorkflowErrorOccurred)] == ["schema"]
    service.checkpoint("generate", saved, state_version="2")
    assert len(world.records(CheckpointRejected)) == 1, "another version is not held to it"


def test_a_migrated_state_is_held_to_the_schema_it_brought(world: World) -> None:
    service = Service(world)
    service.emit(WorkflowStarted, workflow_version="1", steps=STEPS, state_version="1", state_schema=SCHEMA)
    service.emit(
        StateMigrated,
        from_version="1",
        to_version="2",
        digest_before="0" * 64,
        digest_after="1" * 64,
        state_schema=json.dumps({"required": ["m"]}),
    )
    service.checkpoint("generate", saved, state_version="2")
    assert [r.reason for r in world.records(CheckpointRejected)] == ["schema"]


def test_a_schema_that_is_none_binds_nobody(world: World) -> None:
    service = Service(world)
    service.emit(WorkflowStarted, workflow_version="1", steps=STEPS, state_version="1", state_schema='{"type": "no"')
    service.checkpoint("generate", saved)
    assert world.records(CheckpointRejected) == []


def test_a_state_too_large_to_be_checked_in_passing_is_left_to_its_service(world: World) -> None:
    service = Service(world)
    service.emit(WorkflowStarted, workflow_version="1", steps=STEPS, state_version="1", state_schema=SCHEMA)

    def large(workflow_id: str, step_id: str) -> dict[str, object]:
        data_of_service = {"n": 1, "text": "x" * SCHEMA_STATE_BYTES_MAX}
        state = {"workflow_id": workflow_id, "step_id": step_id, "status": "running", "data": data_of_service}
        data = canonical_bytes(state)
        return {"codec": "identity", "size_bytes": len(data), "digest": digest_of(data), "state": data}

    service.checkpoint("generate", large)
    assert world.records(CheckpointRejected) == []
