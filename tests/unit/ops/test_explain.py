"""Why each repair was chosen: the rule and its text, what did not fit, and what cannot be known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

from consumers.history import Bounds, History
from consumers.policies import NAME, NOTHING, Applied, Entry
from engine.policy import default_policy, load_policy
from engine.testing import Service, World
from ops.explain import Rules, explain
from schemas.codec import Codec
from schemas.log_record import LogRecord
from schemas.records.events import StepSpec

RULES = [
    {"name": "resets", "match": {"message": "*reset*"}, "ladder": [{"strategy": "queue_for_later"}]},
    {"name": "tests", "match": {"step": "test", "error_code": "Value*"}, "ladder": [{"strategy": "retry_step"}]},
    {"name": "builds", "match": {"step": "build"}, "ladder": [{"strategy": "rollback"}, {"strategy": "retry_step"}]},
]
TEXT = json.dumps({"workflow_error_handling": {"recovery_rules": RULES}})


class Log:
    """The log of a world, as the history of a partition."""

    def __init__(self, world: World) -> None:
        codec = Codec()
        self._records = [
            LogRecord(0, e.offset, e.timestamp_us // 1000, 1, e.record.workflow_id.encode(), codec.encode(e.record), ())
            for e in world.log
        ]

    def bounds(self) -> dict[int, Bounds]:
        return {0: Bounds(first=0, low=0, end=len(self._records))}

    def read(self, ranges: object, on_gap: object) -> list[LogRecord]:
        return self._records


def entry_of(text: str) -> Entry:
    version = load_policy(text, "test").version
    return Entry(
        key=f"{NAME}@{version}/x",
        sequence=0,
        version=version,
        text=text,
        actor="ana",
        reason="case 81",
        at="2026-11-25T10:00:00.000Z",
        supersedes=NOTHING,
        written_ms=0,
    )


def explained(text: str, rules: Rules, code: str = "KeyError") -> list[dict[str, Any]]:
    world = World(load_policy(text, "test"))
    service = Service(world, (StepSpec(step_id="build"),))
    service.start("build")
    service.fail("build", code)
    workflow = {"id": service.workflow_id, "log_partition": 0, "first_offset": 0}
    return list(explain(cast(History, Log(world)), Codec(), workflow, rules, on_gap=lambda gap: None))


def test_a_decision_is_shown_with_its_rule_and_with_the_rules_that_did_not_fit() -> None:
    [row] = explained(TEXT, Rules(Applied([entry_of(TEXT)])))
    assert (row["strategy"], row["ladder"], row["rung"]) == ("retry_step", "builds", 2)
    assert row["policy_source"] == "applied by ana: case 81"
    assert row["policy_text"].splitlines()[:3] == ["- name: builds", "  match:", "    step: build"]
    assert [other["strategy"] for other in row["passed_over"]] == ["rollback"]
    assert row["other_rules"] == [
        {"rule": "resets", "did_not_fit": ["message '*reset*'"]},
        {"rule": "tests", "did_not_fit": ["step 'test'", "error_code 'Value*'"]},
    ]
    assert (row["error_code"], row["classified_by"], row["evidence"]["attempts"]) == ("KeyError", "no rule matches", 0)


def test_an_entry_of_an_error_type_is_shown_with_its_text() -> None:
    text = "workflow_error_handling: {recovery_strategies: {unknown_error: {strategy: retry_step, max_retries: 7}}}"
    [row] = explained(text, Rules(Applied([]), text))
    assert row["policy_source"] == "the file given"
    assert row["policy_text"] == "unknown_error:\n  strategy: retry_step\n  max_retries: 7"
    assert row["other_rules"] == []


def test_of_a_policy_that_nobody_knows_any_more_only_what_was_written_down_is_told() -> None:
    [row] = explained(TEXT, Rules(Applied([])))
    assert row["rule"] == "recovery_rules.builds: step 'build': rung 2, try 1 of 3"
    assert (row["policy_source"], row["policy_text"], row["other_rules"]) == (None, None, None)


def test_the_policy_that_ships_is_known() -> None:
    rules = Rules(Applied([]))
    version = default_policy().version
    assert rules.source(version) == "the policy that ships"
    assert (rules.text(version, "timeout") or "").startswith("timeout:\n  strategy: increase_timeout_and_retry")
    assert rules.text(version, "deadlock") is None


def test_a_text_that_this_version_cannot_read_explains_nothing_and_breaks_nothing() -> None:
    broken = replace(entry_of(TEXT), text="a: [", version="v")
    rules = Rules(Applied([broken]))
    assert (rules.policy("v"), rules.text("v", "builds")) == (None, None)


def test_a_workflow_that_was_given_up_says_why_nobody_was_asked() -> None:
    recovery = {"unknown_error": {"strategy": "alternative_path"}}
    people = {"triggers": ["critical_state_corruption"]}
    text = json.dumps({"workflow_error_handling": {"recovery_strategies": recovery, "manual_intervention": people}})
    [row] = explained(text, Rules(Applied([entry_of(text)])))
    why = "manual_intervention.triggers does not list all_recovery_strategies_failed"
    assert (row["strategy"], row["command"]) == ("give_up", "CancelWorkflow")
    assert row["rule"] == f"the ladder is exhausted; {why}"
    assert row["passed_over"][-1] == {"strategy": "manual_intervention", "reason": why}
