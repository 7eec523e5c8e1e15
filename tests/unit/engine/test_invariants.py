"""The checker of the log: silent on every log an engine makes, and it finds each planted lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from engine.events import Delivered
from engine.invariants import GRACE_US, Finding, LogCheck
from engine.policy import Policy, default_policy
from engine.testing import Service, World
from schemas.records import Command
from schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    DependantsHeld,
    ErrorClassified,
    RecoveryDecided,
    StateRestored,
    StepSpec,
    StepStarted,
)

from .test_ladders import damaged, saved
from .test_properties import POLICY, moves, play

LATER_US = 10 * GRACE_US


def check(
    world: World, log: list[Delivered], commands: list[Command], *, whole: bool = True, later_us: int = LATER_US
) -> list[Finding]:
    checked = LogCheck(world.policy)
    if whole:
        checked.begins_at_zero(0)
    for event in log:
        checked.event(event)
    for command in commands:
        checked.command(command, world.now_us)
    return checked.findings(world.now_us + later_us)


def rules(findings: list[Finding]) -> set[str]:
    return {f.rule for f in findings}


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    made = Service(world, (StepSpec(step_id="build"),))
    made.start("build")
    made.checkpoint("build", saved)
    made.fail("build", "TIMEOUT")
    made.acknowledge(world.commands[-1])
    made.start("build", world.commands[-1])
    made.complete("build", world.commands[-1])
    return made


def planted(world: World, service: Service, kind: type, **fields: object) -> list[Delivered]:
    return [*world.log, Delivered(service.build(kind, **fields), 0, len(world.log), world.now_us)]


def without(log: list[Delivered], kind: type) -> list[Delivered]:
    return [event for event in log if not isinstance(event.record, kind)]


@settings(max_examples=100, deadline=None)
@given(moves)
def test_no_finding_in_a_log_that_an_engine_made(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, tuple(StepSpec(step_id=s) for s in "abc")), made)
    found = rules(check(world, world.log, world.commands, later_us=0))
    assert not found & {"missing", "unasked", "differs", "two_commands", "decided_twice", "not_applicable"}


def test_no_finding_in_a_healthy_repair(world: World, service: Service) -> None:
    assert check(world, world.log, world.commands) == []


def test_a_fact_that_is_missing_is_found(world: World, service: Service) -> None:
    assert "missing" in rules(check(world, without(world.log, ErrorClassified), world.commands))


def test_a_fact_that_may_still_come_is_no_finding(world: World, service: Service) -> None:
    assert check(world, without(world.log, ErrorClassified), world.commands, later_us=0) == []


def test_a_command_that_was_never_sent_is_found(world: World, service: Service) -> None:
    (finding,) = check(world, world.log, [])
    assert (finding.rule, finding.subject_id) == ("missing", world.commands[0].event_id)


def test_commands_that_retention_removed_are_not_missed(world: World, service: Service) -> None:
    checked = LogCheck(world.policy)
    checked.begins_at_zero(0)
    for event in world.log:
        checked.event(event)
    checked.commands_begin(world.log[0].timestamp_us)
    assert rules(checked.findings(world.now_us + LATER_US)) == {"missing"}, "its cause is not older than what is left"
    checked.commands_begin(world.now_us + 1)
    assert checked.findings(world.now_us + LATER_US) == []


def test_a_command_that_follows_from_nothing_is_found(world: World, service: Service) -> None:
    forged = replace(world.commands[0], event_id=world.new_id(), command_id=world.new_id())
    assert rules(check(world, world.log, [*world.commands, forged])) == {"unasked", "two_commands"}


def test_a_decision_that_follows_from_nothing_is_found(world: World, service: Service) -> None:
    decision = service.decisions[0]
    forged = Delivered(replace(decision, event_id=world.new_id()), 0, len(world.log), world.now_us)
    assert {"unasked", "decided_twice"} <= rules(check(world, [*world.log, forged], world.commands))


def differing(findings: list[Finding]) -> str:
    (finding,) = [f for f in findings if f.rule == "differs"]
    return finding.detail


@pytest.mark.parametrize(
    ("field", "value"),
    [("strategy", "retry_step"), ("parameters", '{"factor": 4}'), ("execute_after_ms", 7)],
)
def test_a_decision_that_says_something_else_is_found(
    world: World, service: Service, field: str, value: object
) -> None:
    log = [
        replace(e, record=replace(e.record, **{field: value})) if isinstance(e.record, RecoveryDecided) else e
        for e in world.log
    ]
    asked = getattr(service.decisions[0], field)
    assert differing(check(world, log, world.commands, later_us=0)) == (
        f"RecoveryDecided is not what follows from the log: {field} is {value!r} and not {asked!r}"
    )


def test_a_command_that_says_something_else_is_found(world: World, service: Service) -> None:
    changed = replace(world.commands[0], step_id="test", expires_at=1)
    detail = differing(check(world, world.log, [changed]))
    assert detail.startswith("RetryStep is not what follows from the log: expires_at is 1 and not ")
    assert detail.endswith("; step_id is 'test' and not 'build'")


def test_another_policy_that_says_the_same_is_none_that_disagrees(world: World, service: Service) -> None:
    def with_policy(policy: Policy) -> list[Finding]:
        checked = LogCheck(policy)
        checked.begins_at_zero(0)
        for event in world.log:
            checked.event(event)
        for command in world.commands:
            checked.command(command, world.now_us)
        return checked.findings(world.now_us)

    same, ran = replace(default_policy(), version="another text"), default_policy()
    assert with_policy(ran) == with_policy(same) == []
    patient = replace(ran, timeouts=replace(ran.timeouts, acknowledge_ms=ran.timeouts.acknowledge_ms + 1))
    assert "expires_at is" in differing(with_policy(patient))


def test_a_reason_may_be_put_in_other_words(world: World, service: Service) -> None:
    log = [
        replace(e, record=replace(e.record, rule="r", evidence="{}", alternatives="[]"))
        if isinstance(e.record, RecoveryDecided)
        else e
        for e in world.log
    ]
    assert check(world, log, [replace(world.commands[0], reason="because", actor="somebody")]) == []


def test_of_what_stands_twice_the_first_counts(world: World, service: Service) -> None:
    copies = [
        replace(e, record=replace(e.record, strategy="other"), offset=len(world.log))
        for e in world.log
        if isinstance(e.record, RecoveryDecided)
    ]
    assert check(world, [*world.log, *copies], world.commands) == []


def test_what_an_earlier_release_wrote_is_held_to_its_ids_alone(world: World, service: Service) -> None:
    log = [
        replace(e, record=replace(e.record, ladder="", policy_version="0", rung=7))
        if isinstance(e.record, RecoveryDecided)
        else e
        for e in world.log
    ]
    assert check(world, log, [replace(world.commands[0], expires_at=1)]) == []


def test_a_workflow_with_a_state_that_cannot_be_looked_into_is_held_to_ids_alone(
    world: World, service: Service
) -> None:
    log = [
        replace(e, unreadable="without its key")
        if isinstance(e.record, CheckpointCreated)
        else replace(e, record=replace(e.record, checkpoint_id=None))
        if isinstance(e.record, RecoveryDecided)
        else e
        for e in world.log
    ]
    assert "differs" not in rules(check(world, log, world.commands, later_us=0))


def test_copies_are_no_finding(world: World, service: Service) -> None:
    copies = [replace(e, offset=len(world.log) + n) for n, e in enumerate(world.log) if e.record.producer != "test"]
    assert check(world, [*world.log, *copies], [*world.commands, *world.commands]) == []


def test_a_command_accepted_by_two_processes_is_found(world: World, service: Service) -> None:
    command = world.commands[0]
    log = planted(
        world, service, CommandAcknowledged, command_id=command.command_id, error_id=command.error_id, status="accepted"
    )
    assert rules(check(world, log, world.commands)) == {"accepted_twice"}
    repeated = planted(
        world, service, CommandAcknowledged, command_id=command.command_id, status="accepted", duplicate=True
    )
    assert check(world, repeated, world.commands) == [], "acknowledged again is not carried out again"


def test_a_step_that_ran_twice_for_one_command_is_found(world: World, service: Service) -> None:
    command_id = world.commands[0].command_id
    log = planted(world, service, StepStarted, step_id="build", step_run_id=world.new_id(), command_id=command_id)
    assert "ran_twice" in rules(check(world, log, world.commands, later_us=0))


@pytest.mark.parametrize("which", ["damaged", "of another", "never saved"])
def test_a_restore_of_what_was_not_verified_is_found(world: World, service: Service, which: str) -> None:
    other = Service(world, (StepSpec(step_id="build"),))
    checkpoint_id = {
        "damaged": service.checkpoint("build", damaged).checkpoint_id,
        "of another": other.checkpoint("build", saved).checkpoint_id,
        "never saved": world.new_id(),
    }[which]
    kept = saved(service.workflow_id, "build")
    log = planted(
        world,
        service,
        StateRestored,
        checkpoint_id=checkpoint_id,
        step_id="build",
        state_version="1",
        status="running",
        restored_at=0,
        restore_count=1,
        **kept,
    )
    assert "restored_unverified" in rules(check(world, log, world.commands, later_us=0))


def test_what_waits_for_ever_is_found(world: World) -> None:
    service = Service(world, (StepSpec(step_id="build"),))
    service.start("build", timeout_ms=1_000)
    (finding,) = check(world, world.log, [])
    assert (finding.rule, finding.workflow_id) == ("overdue", service.workflow_id)


def test_workflows_whose_beginning_is_gone_are_not_judged(world: World, service: Service) -> None:
    late = [e for e in world.log if isinstance(e.record, RecoveryDecided)]
    assert check(world, late, [], whole=False) == []
    assert check(world, late, [], whole=True) != []


def test_facts_that_an_earlier_engine_did_not_write_are_not_missed_in_its_log(world: World) -> None:
    steps = (StepSpec(step_id="build"), StepSpec(step_id="test", depends_on=("build",)))
    service = Service(world, steps)
    service.start("build")
    service.fail("build", "TIMEOUT")
    without = [e for e in world.log if not isinstance(e.record, DependantsHeld)]
    assert len(without) == len(world.log) - 1
    assert rules(check(world, without, world.commands)) == {"missing", "overdue"}
    before = [
        replace(e, record=replace(e.record, ladder="")) if isinstance(e.record, RecoveryDecided) else e for e in without
    ]
    assert rules(check(world, before, world.commands)) == {"overdue"}
