"""What is different between two policies: keys, and the ladders that follow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.policy import default_text
from ops.policy_diff import KeyChange, LadderChange, Side, changed_keys, changed_ladders
from schemas.errors import ConfigError

RETRY = {"strategy": "retry_step"}


def side(**parts: Any) -> Side:
    return Side.of(json.dumps({"workflow_error_handling": parts}), "test")


def rule(name: str, step: str, attempts: int = 3) -> dict[str, Any]:
    return {"name": name, "match": {"step": step}, "ladder": [{**RETRY, "attempts": attempts}]}


def test_a_policy_differs_in_nothing_from_itself_and_from_one_that_spells_out_its_defaults() -> None:
    for one, other in [
        (Side.of(default_text(), "a"), Side.of(default_text(), "b")),
        (side(), side(budgets={"workflow_max_attempts": 30}, recovery_rules=[])),
    ]:
        assert changed_keys(one, other) == []
        assert changed_ladders(one, other) == []


def test_a_key_that_changes_is_named_by_its_path() -> None:
    one = side(budgets={"workflow_max_attempts": 5}, checkpoints={"critical_steps": ["a", "b"]})
    assert changed_keys(one, side()) == [
        KeyChange(key="budgets.workflow_max_attempts", before=5, after=30),
        KeyChange(key="checkpoints.critical_steps", before=("a", "b"), after=()),
    ]


def test_an_entry_that_comes_changes_the_ladder_its_type_had_from_unknown_errors() -> None:
    [change] = changed_ladders(side(), side(recovery_strategies={"deadlock": {**RETRY, "max_time": 5}}))
    assert change == LadderChange(
        ladder="deadlock",
        before=("3 x retry_step, backoff 1000..60000 ms", "then a human", "at most 86400000 ms"),
        after=("3 x retry_step", "then a human", "at most 5 ms"),
    )


def test_the_entry_of_unknown_errors_changes_every_type_that_has_none() -> None:
    changed = changed_ladders(
        side(recovery_strategies={"timeout": RETRY}),
        side(recovery_strategies={"timeout": RETRY, "unknown_error": {**RETRY, "max_retries": 9}}),
    )
    assert len(changed) == 7
    assert "timeout" not in {change.ladder for change in changed}


def test_rules_are_compared_by_name_and_their_order_by_itself() -> None:
    one = side(recovery_rules=[rule("a", "a"), rule("b", "b"), rule("c", "c")])
    two = side(recovery_rules=[rule("b", "b", 4), rule("a", "a"), rule("d", "d")])
    assert [change.key for change in changed_keys(one, two)] == [
        "recovery_rules.b.ladder.0.attempts",
        "recovery_rules.c",
        "recovery_rules.d",
        "recovery_rules.(order)",
    ]
    assert [(c.ladder, c.before is None, c.after is None) for c in changed_ladders(one, two)] == [
        ("rule b", False, False),
        ("rule c", False, True),
        ("rule d", True, False),
    ]


def test_every_parameter_of_a_rung_shows() -> None:
    rungs = [
        {**RETRY, "cost": 2.5, "backoff": {"base": 1, "max": 2}},
        {"strategy": "queue_for_later", "delay": 7},
        {"strategy": "increase_timeout_and_retry", "max_timeout": 9},
        {"strategy": "scale_resources_and_retry", "scaling_factor": 3.0},
        {"strategy": "rollback", "to_step": "plan", "attempts": 1},
    ]
    [change] = changed_ladders(side(), side(recovery_rules=[{**rule("r", "x"), "ladder": rungs, "max_cost": 99.0}]))
    assert change.after == (
        "3 x retry_step, backoff 1..2 ms, cost 2.5",
        "3 x queue_for_later, delay 7 ms",
        "3 x increase_timeout_and_retry, timeout x 2 to 9 ms",
        "3 x scale_resources_and_retry, size x 3",
        "1 x rollback, to plan",
        "then a human",
        "at most 86400000 ms",
        "at most 99 in cost",
    )


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="somewhere"):
        Side.of("workflow_error_handling: {x: 1}", "somewhere")


@pytest.mark.parametrize(
    ("people", "then"),
    [
        ({"enabled": False}, "then given up"),
        ({"triggers": []}, "then given up"),
        ({"triggers": ["max_recovery_attempts_exceeded"]}, "then given up; a human when a budget is spent"),
        ({"triggers": ["all_recovery_strategies_failed"]}, "then a human; given up when a budget is spent"),
    ],
)
def test_what_comes_after_a_ladder_is_part_of_it(people: dict[str, Any], then: str) -> None:
    changed = changed_ladders(side(), side(manual_intervention=people))
    deadlock = next(change for change in changed if change.ladder == "deadlock")
    assert deadlock.before is not None and deadlock.after is not None
    assert (deadlock.before[1], deadlock.after[1]) == ("then a human", then)
