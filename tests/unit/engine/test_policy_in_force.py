"""A policy that changes while repairs are under way: from its place in the log on, and there alone."""

from __future__ import annotations

import json
from typing import Any

from engine.invariants import LogCheck
from engine.policy import Policy, load_policy
from engine.testing import Service, World
from schemas.records.commands import RestartWorkflow, RetryStep
from schemas.records.events import InterventionRequested, PolicyChanged, StepSpec, WorkflowFailed

STEPS = (StepSpec(step_id="build"),)
HOUR_MS = 3_600_000


def text_of(**parts: Any) -> str:
    return json.dumps({"workflow_error_handling": parts})  # JSON is YAML


def retries(count: int, **more: Any) -> str:
    return text_of(recovery_strategies={"unknown_error": {"strategy": "retry_step", "max_retries": count, **more}})


def policy_of(text: str) -> Policy:
    return load_policy(text, "test")


def change(world: World, text: str, sequence: int) -> None:
    """Write it into the log, as an operator does."""
    world.append(
        PolicyChanged(
            event_id=world.new_id(),
            workflow_id=world.new_id(),
            workflow_type="kintsugi.policy",
            occurred_at=world.now_us,
            producer="test",
            name="recovery",
            policy_version="given",
            policy_text=text,
            sequence=sequence,
            reason="because",
            actor="ana",
        )
    )
    world.settle()


def fail_again(service: Service) -> None:
    """The last command is taken and its step fails."""
    command = service.world.commands[-1]
    service.acknowledge(command)
    service.start("build", command)
    service.fail("build", command=command)


def failed(world: World) -> Service:
    service = Service(world, STEPS)
    service.start("build")
    service.fail("build")
    return service


def test_an_open_error_goes_on_by_the_new_policy_where_it_left_the_old_one() -> None:
    old, new = retries(1), retries(3, fallback_strategy="complete_restart")
    world = World(policy_of(old))
    service = failed(world)
    change(world, new, 1)
    for _ in range(3):
        fail_again(service)
    assert [(d.policy_version, d.strategy) for d in service.decisions] == [
        (policy_of(old).version, "retry_step"),
        (policy_of(new).version, "retry_step"),
        (policy_of(new).version, "retry_step"),
        (policy_of(new).version, "complete_restart"),
    ]
    assert [type(c) for c in world.commands] == [RetryStep, RetryStep, RetryStep, RestartWorkflow]


def test_a_shorter_ladder_ends_at_once_for_those_that_are_beyond_it() -> None:
    world = World(policy_of(retries(5)))
    service = failed(world)
    fail_again(service)
    change(world, retries(1), 1)
    fail_again(service)
    assert [d.strategy for d in service.decisions] == ["retry_step", "retry_step", "manual_intervention"]
    assert len(world.records(InterventionRequested)) == 1


def test_the_policy_changes_at_its_place_in_the_log_and_not_when_it_was_thought_of() -> None:
    """Both stand in the log before either is folded: the error first, so the old policy answers it."""
    world = World(policy_of(retries(1)))
    service = Service(world, STEPS)
    service.start("build")
    before = len(world.log)
    service.fail("build")
    assert service.decisions[0].policy_version == policy_of(retries(1)).version
    change(world, retries(2), 1)
    other = failed(world)
    assert other.decisions[0].policy_version == policy_of(retries(2)).version
    assert len(world.log) > before


def test_a_lower_or_equal_sequence_is_ignored() -> None:
    world = World(policy_of(retries(1)))
    change(world, retries(2), 5)
    for text, sequence in ((retries(3), 4), (retries(4), 5)):
        change(world, text, sequence)
        assert world.policy == policy_of(retries(2))
    change(world, retries(3), 6)
    assert world.policy == policy_of(retries(3))


def test_a_policy_that_does_not_load_leaves_the_one_before_in_force_and_says_why() -> None:
    world = World(policy_of(retries(1)))
    change(world, "workflow_error_handling: {budget: {}}", 3)
    assert world.policy == policy_of(retries(1))
    assert "budget: unknown key" in world.in_force.refused
    change(world, retries(2), 4)
    assert (world.policy, world.in_force.refused) == (policy_of(retries(2)), "")


def test_a_rule_is_chosen_by_what_the_error_said() -> None:
    rules = [
        {"name": "boom", "match": {"message": "*boom*"}, "ladder": [{"strategy": "complete_restart", "attempts": 1}]},
        {"name": "odd", "match": {"error_code": "Value*"}, "ladder": [{"strategy": "retry_step", "attempts": 2}]},
    ]
    world = World(policy_of(text_of(recovery_rules=rules)))
    odd, boom, plain = failed(world), Service(world, STEPS), Service(world, STEPS)
    boom.start("build")
    boom.fail("build", "Boom")
    plain.start("build")
    plain.fail("build", "KeyError")
    assert [(s.decisions[0].ladder, s.decisions[0].rule) for s in (odd, boom, plain)] == [
        ("odd", "recovery_rules.odd: error_code 'Value*': rung 1, try 1 of 2"),
        ("boom", "recovery_rules.boom: message '*boom*': rung 1, try 1 of 1"),
        ("unknown_error", "recovery_strategies.unknown_error: unknown_error has no entry: rung 1, try 1 of 3"),
    ]


def test_a_new_deadline_holds_for_steps_that_run_already() -> None:
    def timeouts(ms: int) -> str:
        return text_of(error_detection={"timeouts": {"default_step_timeout": ms, "stall_timeout": HOUR_MS}})

    world = World(policy_of(timeouts(HOUR_MS)))
    service = Service(world, STEPS)
    service.start("build")
    world.advance(10_000)
    change(world, timeouts(20_000), 1)
    world.advance(9_000)
    assert service.decisions == []
    world.advance(2_000)
    assert [d.error_type for d in service.decisions] == ["timeout"]


def asks(enabled: bool) -> str:
    """Every error goes to a human at once, or ends its workflow where nobody is asked."""
    return text_of(
        recovery_strategies={"unknown_error": {"strategy": "manual_intervention"}},
        manual_intervention={"enabled": enabled},
    )


def test_a_log_with_changes_in_it_proves_itself_and_with_another_policy_at_its_beginning_does_not() -> None:
    world = World(policy_of(asks(True)))
    failed(world)
    change(world, asks(False), 1)
    failed(world)
    assert (len(world.records(InterventionRequested)), len(world.records(WorkflowFailed))) == (1, 1)
    assert rules_broken(world, policy_of(asks(True))) == set()
    assert rules_broken(world, policy_of(asks(False))) == {"missing", "unasked", "differs"}


def test_a_log_that_begins_after_the_change_is_proven_with_what_was_in_force_there() -> None:
    world = World(policy_of(asks(False)))
    change(world, asks(True), 1)
    failed(world)
    found = []
    for sequence in (-1, 1):
        check = LogCheck(policy_of(asks(False)))
        check.begins_at_zero(0)
        check.policy_before(0, asks(True), sequence)
        found.append(broken(check, world, world.log[1:]))
    assert found == [{"missing", "unasked", "differs"}, set()]


def rules_broken(world: World, policy: Policy) -> set[str]:
    check = LogCheck(policy)
    check.begins_at_zero(0)
    return broken(check, world, world.log)


def broken(check: LogCheck, world: World, log: list[Any]) -> set[str]:
    for event in log:
        check.event(event)
    for command in world.commands:
        check.command(command, world.now_us)
    return {finding.rule for finding in check.findings(world.now_us + 60_000_000)} - {"overdue"}
