"""Which ends of a ladder reach a human, and what becomes of a workflow whose end reaches nobody."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from engine.policy import Policy, load_policy
from engine.policy.file import ManualIntervention
from engine.policy.model import CORRUPT, EXHAUSTED, SPENT, TRIGGERS, fitting
from engine.testing import Service, World
from schemas.errors import ConfigError
from schemas.records.commands import CancelWorkflow, PauseWorkflow
from schemas.records.events import InterventionRequested, RecoveryAttemptFinished, StepSpec, WorkflowFailed

ONCE = {"strategy": "retry_step", "max_retries": 1}
STEPS = (StepSpec(step_id="build"), StepSpec(step_id="test"))


def policy(triggers: list[str] | None = None, **blocks: Any) -> Policy:
    """One retry for every error; then what the triggers say."""
    people = {} if triggers is None else {"triggers": triggers}
    given = {"recovery_strategies": {"unknown_error": ONCE}, **blocks}
    given["manual_intervention"] = {**people, **given.get("manual_intervention", {})}
    return load_policy(json.dumps({"workflow_error_handling": given}), "test")


def ended(policy: Policy) -> Service:
    """A step whose error and whose one retry have failed."""
    service = Service(World(policy), STEPS)
    service.start("build")
    service.fail("build")
    service.acknowledge(service.world.commands[-1], "failed")
    return service


def asked(service: Service) -> list[str]:
    return [request.trigger for request in service.world.records(InterventionRequested)]


@pytest.mark.parametrize(
    ("spent", "critical", "listed", "trigger"),
    [
        (False, False, TRIGGERS, EXHAUSTED),
        (False, False, (EXHAUSTED,), EXHAUSTED),
        (False, False, (SPENT, CORRUPT), None),
        (False, True, TRIGGERS, CORRUPT),
        (False, True, (EXHAUSTED,), EXHAUSTED),
        (False, True, (SPENT,), None),
        (True, False, TRIGGERS, SPENT),
        (True, False, (EXHAUSTED, CORRUPT), None),
        (True, True, TRIGGERS, SPENT),
        (True, True, (CORRUPT,), CORRUPT),
        (True, True, (EXHAUSTED,), None),
        (True, True, (), None),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("names_a_human", [True, False])
def test_a_human_is_asked_when_an_end_is_listed_that_fits(
    spent: bool, critical: bool, listed: tuple[str, ...], trigger: str | None, enabled: bool, names_a_human: bool
) -> None:
    entry = {**ONCE, "fallback_strategy": "manual_intervention"} if names_a_human else ONCE
    made = policy(list(listed), recovery_strategies={"unknown_error": entry}, manual_intervention={"enabled": enabled})
    fits = fitting(spent=spent, critical=critical)
    expected = trigger or (fits[0] if names_a_human else None)
    assert made.asked_by(made.ladder("unknown_error"), fits) == (expected if enabled else None)


def test_the_file_takes_the_triggers_that_there_are_and_lists_all_of_them_by_itself() -> None:
    (literal, _) = get_args(ManualIntervention.model_fields["triggers"].annotation)
    assert get_args(literal) == TRIGGERS == ManualIntervention().triggers
    assert policy().intervention.triggers == frozenset(TRIGGERS)


def test_a_trigger_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"manual_intervention\.triggers\.1: Input should be .*\(got 'at_night'\)"):
        policy([SPENT, "at_night"])


def test_an_end_that_is_not_listed_gives_the_workflow_up_and_says_why() -> None:
    service = ended(policy([SPENT]))
    decision = service.decisions[-1]
    assert decision.strategy == "give_up"
    why = f"manual_intervention.triggers does not list {EXHAUSTED}"
    assert decision.rule == f"the ladder is exhausted; {why}"
    assert json.loads(decision.evidence)["trigger"] == EXHAUSTED
    assert {"strategy": "manual_intervention", "reason": why} in json.loads(decision.alternatives)
    (failed,) = service.world.records(WorkflowFailed)
    assert (failed.reason, failed.error_id) == (decision.rule, decision.error_id)
    assert isinstance(service.world.commands[-1], CancelWorkflow)
    assert (service.state.status, service.state.cases) == ("failed", None)
    assert asked(service) == []
    outcomes = [(r.strategy, r.outcome) for r in service.world.records(RecoveryAttemptFinished)]
    assert outcomes == [("retry_step", "failed"), ("give_up", "failed")]


def test_an_end_that_is_listed_asks() -> None:
    service = ended(policy([EXHAUSTED]))
    assert asked(service) == [EXHAUSTED]
    assert isinstance(service.world.commands[-1], PauseWorkflow)
    assert service.world.records(WorkflowFailed) == []


def test_where_nobody_is_ever_asked_the_workflow_is_given_up_too() -> None:
    service = ended(policy(manual_intervention={"enabled": False}))
    assert service.decisions[-1].rule == "the ladder is exhausted; manual_intervention.enabled is false"
    assert service.state.status == "failed"
    assert isinstance(service.world.commands[-1], CancelWorkflow)


@pytest.mark.parametrize(
    "recovery",
    [
        {"recovery_strategies": {"unknown_error": {**ONCE, "fallback_strategy": "manual_intervention"}}},
        {
            "recovery_rules": [
                {
                    "name": "ask",
                    "match": {"step": "build"},
                    "ladder": [{"strategy": "retry_step", "attempts": 1}, {"strategy": "manual_intervention"}],
                }
            ]
        },
    ],
)
def test_a_ladder_that_names_a_human_asks_and_validation_says_that_the_triggers_do_not_hold(
    recovery: dict[str, Any],
) -> None:
    made = policy([], **recovery)
    (warning,) = made.warnings
    assert warning.endswith(f"though manual_intervention.triggers leaves out {', '.join(TRIGGERS)}")
    assert asked(ended(made)) == [EXHAUSTED]
    assert policy(**recovery).warnings == ()


def test_an_unknown_error_without_an_entry_names_no_human() -> None:
    made = policy([], recovery_strategies={})
    assert made.asked_by(made.fallback, fitting(spent=False, critical=False)) is None


def test_a_budget_that_ends_a_ladder_that_names_a_human_asks_too() -> None:
    service = Service(
        World(
            policy(
                [],
                budgets={"workflow_max_attempts": 1},
                recovery_strategies={"unknown_error": {**ONCE, "fallback_strategy": "manual_intervention"}},
            )
        ),
        STEPS,
    )
    service.start("build")
    service.fail("build")
    service.acknowledge(service.world.commands[-1], "failed")
    assert asked(service) == [SPENT]


@pytest.mark.parametrize("what", ["skip", "fail"])
def test_leaving_a_step_out_comes_before_giving_up(what: str) -> None:
    service = ended(policy([], coordination={"dependants": what}))
    assert service.decisions[-1].strategy == f"{what}_dependants"
    assert service.world.records(WorkflowFailed) == []


def test_a_workflow_whose_step_could_not_be_left_out_is_given_up() -> None:
    service = ended(policy([], coordination={"dependants": "skip"}))
    service.acknowledge(service.world.commands[-1], "failed")
    assert [d.strategy for d in service.decisions] == ["retry_step", "skip_dependants", "give_up"]
    assert service.state.status == "failed"


def test_giving_up_is_not_held_back_by_branches_that_are_at_work() -> None:
    service = Service(World(policy([], coordination={"branches": "wait_for_all"})), STEPS)
    service.start("build")
    service.fail("build")
    service.acknowledge(service.world.commands[-1], "accepted")
    service.start("test")
    service.acknowledge(service.world.commands[-1], "failed")
    assert service.decisions[-1].strategy == "give_up"
    assert isinstance(service.world.commands[-1], CancelWorkflow)
    assert service.state.status == "failed"
