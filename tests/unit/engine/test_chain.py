"""The chain: what a service writes in order is taken; what is lost, forked, put back or changed is found, once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy import default_policy
from engine.testing import Service, World, saved
from schemas.records import Record
from schemas.records.commands import ResumeFromCheckpoint, RetryStep
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CheckpointsExpired,
    StateRestored,
    StepSpec,
    WorkflowErrorOccurred,
    WorkflowKeyErased,
)

STEPS = (StepSpec(step_id="generate"), StepSpec(step_id="build"))


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, STEPS)


def found(world: World) -> list[str]:
    """Reasons of all rejections; each comes with its error."""
    reasons = [r.reason for r in world.records(CheckpointRejected)]
    assert reasons == [
        e.reason for e in world.records(WorkflowErrorOccurred) if e.detected_by == "detector:state_corruption"
    ]
    return reasons


def targets(service: Service) -> list[str]:
    return [ref.checkpoint_id for ref in service.state.all_checkpoints()]


def resume(service: Service, world: World, checkpoint: CheckpointCreated) -> ResumeFromCheckpoint | RetryStep:
    """The newest command is carried out: the state is restored, and the run has its epoch."""
    command = world.commands[-1]
    assert isinstance(command, ResumeFromCheckpoint | RetryStep)
    service.acknowledge(command)
    service.epoch = command.epoch
    service.sequence = command.last_sequence
    service.chain = checkpoint.chain_digest, checkpoint.digest
    service.emit(
        StateRestored,
        checkpoint_id=checkpoint.checkpoint_id,
        step_id=checkpoint.step_id,
        command_id=command.command_id,
        epoch=command.epoch,
        restored_at=world.now_us,
        restore_count=1,
        state_version="1",
        status="running",
        **saved(service.workflow_id, checkpoint.step_id),
    )
    return command


def test_checkpoints_in_their_order_are_taken(world: World, service: Service) -> None:
    made = [service.checkpoint("build", saved).checkpoint_id for _ in range(5)]
    assert (targets(service), found(world)) == (made, [])


def test_a_lost_checkpoint_is_a_gap_found_once_and_the_chain_goes_on(world: World, service: Service) -> None:
    first = service.checkpoint("build", saved)
    service.sequence += 1  # one that never reached the log
    service.chain = "ab" * 32, "cd" * 32
    service.checkpoint("build", saved)
    third, fourth = service.checkpoint("build", saved), service.checkpoint("build", saved)
    assert found(world) == ["chain_gap"]
    assert targets(service) == [c.checkpoint_id for c in (first, third, fourth)]


@pytest.mark.parametrize("field", ["chain_digest", "parent_digest", "digest"])
def test_a_link_to_something_else_is_found_once(world: World, service: Service, field: str) -> None:
    service.checkpoint("build", saved)
    service.checkpoint("build", saved, **{field: "ab" * 32})
    service.checkpoint("build", saved)
    assert found(world) == ["digest" if field == "digest" else "chain_fork"]


@pytest.mark.parametrize(("sequence", "reason"), [(1, "replayed"), (0, "replayed"), (-5, "replayed"), (9, "chain_gap")])
def test_a_wrong_number_is_found_once(world: World, service: Service, sequence: int, reason: str) -> None:
    for _ in range(3):
        service.checkpoint("build", saved)
    service.checkpoint("build", saved, sequence=sequence)
    service.checkpoint("build", saved)
    assert found(world) == [reason]


def test_an_old_checkpoint_put_back_as_another_event_is_found_and_never_chosen(world: World, service: Service) -> None:
    made = [service.checkpoint("build", saved) for _ in range(3)]
    before = targets(service)
    world.append(replace(made[0], event_id=world.new_id()))
    world.settle()
    assert found(world) == ["replayed"]
    assert made[0].checkpoint_id not in targets(service), "what was put back may not be restored either"
    assert targets(service) == before[1:]


def test_a_copy_of_an_old_state_under_new_ids_is_found(world: World, service: Service) -> None:
    made = [service.checkpoint("build", saved) for _ in range(3)]
    world.append(replace(made[1], event_id=world.new_id(), checkpoint_id=world.new_id()))
    world.settle()
    assert found(world) == ["replayed"]


def test_an_epoch_that_no_command_was_given_is_found(world: World, service: Service) -> None:
    service.checkpoint("build", saved)
    service.checkpoint("build", saved, epoch=7)
    service.checkpoint("build", saved)
    assert found(world) == ["chain_fork"]


@pytest.mark.parametrize("times", [1, 2])
def test_the_same_event_again_changes_nothing(world: World, service: Service, times: int) -> None:
    made = [service.checkpoint("build", saved) for _ in range(3)]
    before = targets(service), service.state.tip, service.state.sequence
    for _ in range(times):
        for record in made:
            world.append(record)
            world.settle()
    assert (targets(service), service.state.tip, service.state.sequence) == before
    assert found(world) == []


def test_a_rejected_one_that_comes_again_is_told_once(world: World, service: Service) -> None:
    service.checkpoint("build", saved)
    broken = service.checkpoint("build", saved, size_bytes=1)
    world.append(broken)
    world.settle()
    service.checkpoint("build", saved)
    assert found(world) == ["size"]


# -- epochs ---------------------------------------------------------------------------------------------------------


def test_a_command_names_the_next_epoch_and_the_highest_number(world: World, service: Service) -> None:
    for _ in range(3):
        service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    command = world.commands[-1]
    assert isinstance(command, ResumeFromCheckpoint)
    assert (command.epoch, command.last_sequence) == (1, 3)
    service.acknowledge(command, "failed", detail="no")
    again = world.commands[-1]
    assert isinstance(again, ResumeFromCheckpoint)
    assert again.epoch == 2


def test_a_run_that_goes_on_from_an_older_checkpoint_links_to_it(world: World, service: Service) -> None:
    first = service.checkpoint("generate", saved)
    service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    resume(service, world, first)
    after = service.checkpoint("build", saved)
    assert found(world) == []
    assert after.sequence == 3
    assert targets(service)[-1] == after.checkpoint_id


def test_what_a_replaced_run_still_writes_counts_for_nothing(world: World, service: Service) -> None:
    first = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    zombie = service.build(
        CheckpointCreated,
        checkpoint_id=world.new_id(),
        step_id="build",
        checkpoint_type="manual",
        sequence=2,
        epoch=0,
        state_version="1",
        status="running",
        parent_digest=first.digest,
        chain_digest="ef" * 32,
        **saved(service.workflow_id, "build", 9),
    )
    resume(service, world, first)
    world.append(zombie)
    world.settle()
    mine = service.checkpoint("build", saved)
    assert found(world) == []
    assert targets(service) == [first.checkpoint_id, mine.checkpoint_id]


def test_a_run_that_begins_anew_links_to_nothing(world: World, service: Service) -> None:
    service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build")
    world.advance(60_000)
    command = world.commands[-1]
    assert isinstance(command, RetryStep)
    service.acknowledge(command)
    service.epoch, service.sequence, service.chain = command.epoch, command.last_sequence, None
    service.checkpoint("generate", saved)
    assert found(world) == []


def test_a_run_that_links_to_nothing_known_is_a_fork(world: World, service: Service) -> None:
    first = service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    resume(service, world, first)
    service.chain = "ab" * 32, "cd" * 32
    service.checkpoint("build", saved)
    assert found(world) == ["chain_fork"]


def test_a_service_that_knows_no_epochs_numbers_on_from_what_it_restored(world: World, service: Service) -> None:
    first = service.checkpoint("generate", saved)
    service.checkpoint("generate", saved)
    service.start("build")
    service.fail("build", "STATE_CORRUPTION")
    resume(service, world, first)
    other = Service(world, STEPS)  # the same, as the release before writes it
    one = other.checkpoint("generate", saved)
    other.checkpoint("generate", saved)
    other.emit(
        StateRestored,
        checkpoint_id=one.checkpoint_id,
        step_id="generate",
        restored_at=world.now_us,
        restore_count=1,
        state_version="1",
        status="running",
        **saved(other.workflow_id, "generate"),
    )
    other.sequence, other.chain = 1, (one.chain_digest, one.digest)
    other.checkpoint("build", saved)
    other.checkpoint("build", saved)
    assert found(world) == []


# -- what may not be restored any more ------------------------------------------------------------------------------


def test_expired_checkpoints_and_those_of_an_erased_key_are_no_targets(world: World, service: Service) -> None:
    made = [service.checkpoint("build", saved) for _ in range(3)]
    service.emit(
        CheckpointsExpired,
        checkpoint_ids=(made[0].checkpoint_id, str(uuid.UUID(int=7))),
        event_ids=(made[0].event_id, str(uuid.UUID(int=8))),
        reason="max_checkpoints: 2",
    )
    assert targets(service) == [c.checkpoint_id for c in made[1:]]
    service.emit(WorkflowKeyErased, reason="asked for", actor="somebody")
    assert targets(service) == []
    after = service.checkpoint("build", saved)
    assert (targets(service), found(world)) == ([after.checkpoint_id], [])


# -- one mutation, one detection ------------------------------------------------------------------------------------

Mutation = Callable[[list[Record], int, int], list[Record]]


def flip(log: list[Record], at: int, byte: int) -> list[Record]:
    record = log[at]
    assert isinstance(record, CheckpointCreated) and record.state is not None
    data = bytearray(record.state)
    data[byte % len(data)] ^= 1 + byte % 255
    return [*log[:at], replace(record, state=bytes(data)), *log[at + 1 :]]


def cut(log: list[Record], at: int, byte: int) -> list[Record]:
    record = log[at]
    assert isinstance(record, CheckpointCreated) and record.state is not None
    return [*log[:at], replace(record, state=record.state[: byte % len(record.state)]), *log[at + 1 :]]


def lose(log: list[Record], at: int, byte: int) -> list[Record]:
    return [*log[:at], *log[at + 1 :]]


def put_back(log: list[Record], at: int, byte: int) -> list[Record]:
    again: Any = replace(log[at], event_id=str(uuid.UUID(int=byte + 1)))
    return [*log, again]


def of_another(log: list[Record], at: int, byte: int) -> list[Record]:
    """The state of another workflow in this one's record, digest and all."""
    record: Any = log[at]
    stranger = saved(str(uuid.UUID(int=5)), "build", byte)
    return [*log[:at], replace(record, **stranger), *log[at + 1 :]]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([flip, cut, lose, put_back, of_another]), st.integers(0, 7), st.integers(0, 2**16))
def test_every_mutation_of_a_log_is_found_once(change: Mutation, at: int, byte: int) -> None:
    source = World(default_policy())
    service = Service(source, STEPS)

    def numbered(workflow_id: str, step_id: str) -> dict[str, object]:
        return saved(workflow_id, step_id, service.sequence)

    made: list[Record] = [service.checkpoint("build", numbered) for _ in range(9)]
    world = World(default_policy())
    world.append(source.log[0].record)
    for record in change(made, at, byte):
        world.append(record)
        world.settle()
    reasons = found(world)
    assert len(reasons) == 1, f"{change.__name__} at {at}: {reasons}"
    restorable = {ref.checkpoint_id: ref.digest for ref in world.states[service.workflow_id].all_checkpoints()}
    honest = {c.checkpoint_id: c.digest for c in made if isinstance(c, CheckpointCreated)}
    assert restorable.items() <= honest.items(), "nothing is restored that was not saved"


@given(st.integers(0, 7))
def test_checkpoints_in_another_order_are_found(at: int) -> None:
    source = World(default_policy())
    service = Service(source, STEPS)
    made = [service.checkpoint("build", saved) for _ in range(9)]
    made[at], made[at + 1] = made[at + 1], made[at]
    world = World(default_policy())
    world.append(source.log[0].record)
    for record in made:
        world.append(record)
        world.settle()
    assert found(world)
