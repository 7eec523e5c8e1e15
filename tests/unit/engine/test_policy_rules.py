"""Rules of a policy: which errors they match, which ladder that gives, and which rules are refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy import Policy, load_policy
from engine.policy.matching import MESSAGE_CHARS_MAX, Pattern
from schemas.errors import ConfigError

RETRY: dict[str, Any] = {"strategy": "retry_step"}


def text_of(*rules: dict[str, Any], **parts: Any) -> str:
    return json.dumps({"workflow_error_handling": {"recovery_rules": list(rules), **parts}})  # JSON is YAML


def rule(name: str = "one", *, ladder: tuple[dict[str, Any], ...] = (RETRY,), match: Any = None, **more: Any) -> Any:
    return {"name": name, "match": match or {}, "ladder": list(ladder), **more}


def policy_of(*rules: dict[str, Any], **parts: Any) -> Policy:
    return load_policy(text_of(*rules, **parts), "p.yaml")


def refused(*rules: dict[str, Any], **parts: Any) -> list[str]:
    """The problems found, without the root's name."""
    with pytest.raises(ConfigError) as caught:
        policy_of(*rules, **parts)
    first, *problems = str(caught.value).splitlines()
    assert first == f"p.yaml: {len(problems)} problem(s)"
    return [p.strip().removeprefix("workflow_error_handling.") for p in problems]


ERROR = ("timeout", "development", "build", "E42", "Connection reset by peer")


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({}, True),
        ({"error_type": "timeout"}, True),
        ({"error_type": "time*"}, True),
        ({"error_type": "deadlock"}, False),
        ({"workflow_type": "development"}, True),
        ({"workflow_type": "dev"}, False),
        ({"workflow_type": "dev*"}, True),
        ({"step": "build"}, True),
        ({"step": "Build"}, False),
        ({"step": "b?ild"}, True),
        ({"step": "[a-c]uild"}, True),
        ({"step": "[!b]uild"}, False),
        ({"error_code": "E4[0-9]"}, True),
        ({"error_code": "E4"}, False),
        ({"message": "connection reset by peer"}, True),
        ({"message": "*RESET*"}, True),
        ({"message": "reset"}, False),
        ({"error_type": "timeout", "step": "build", "message": "*peer"}, True),
        ({"error_type": "timeout", "step": "test", "message": "*peer"}, False),
    ],
)
def test_a_rule_matches_what_all_its_values_fit(match: dict[str, str], fits: bool) -> None:
    ladder, why = policy_of(rule(match=match)).ladder_for(*ERROR)
    assert ladder.name == ("one" if fits else "unknown_error")
    assert why.startswith("recovery_rules.one: " if fits else "recovery_strategies.unknown_error: timeout has no entry")


@pytest.mark.parametrize(
    ("match", "misses"),
    [
        ({}, []),
        ({"step": "b*", "message": "*RESET*"}, []),
        (
            {"step": "test", "error_code": "E4", "message": "reset"},
            ["step 'test'", "error_code 'E4'", "message 'reset'"],
        ),
    ],
)
def test_what_does_not_fit_is_named(match: dict[str, str], misses: list[str]) -> None:
    found = policy_of(rule(match=match)).rules[0].match
    assert found.misses(*ERROR) == misses
    assert found.fits(*ERROR) == (not misses)


def test_a_message_that_cannot_be_read_is_said_to_be_why() -> None:
    found = policy_of(rule(match={"message": "*"})).rules[0].match
    assert found.misses("timeout", "t", "s", "c", "") == ["no message that can be read"]


def test_the_first_rule_that_matches_counts_then_the_entry_of_the_type_then_that_of_unknown_errors() -> None:
    policy = policy_of(
        rule("narrow", match={"error_type": "timeout", "step": "build"}),
        rule("wide", match={"step": "b*"}),
        recovery_strategies={"timeout": {"strategy": "retry_step"}},
    )
    assert [policy.ladder_for("timeout", "t", step, "", "")[0].name for step in ("build", "bake", "test")] == [
        "narrow",
        "wide",
        "timeout",
    ]
    assert policy.ladder_for("deadlock", "t", "test", "", "") == (
        policy.fallback,
        "recovery_strategies.unknown_error: deadlock has no entry",
    )


def test_why_a_ladder_was_chosen_says_what_the_rule_asks_for() -> None:
    chosen = policy_of(rule(match={"step": "b*", "message": "*reset*"})).ladder_for(*ERROR)
    assert chosen[1] == "recovery_rules.one: step 'b*', message '*reset*'"


@pytest.mark.parametrize("pattern", ["*", "?*"])
def test_a_message_that_is_sealed_matches_nothing(pattern: str) -> None:
    policy = policy_of(rule(match={"message": pattern}))
    assert policy.ladder_for("timeout", "t", "s", "c", "")[0].name == "unknown_error"


def test_a_message_is_matched_on_its_first_characters() -> None:
    policy = policy_of(rule(match={"message": "*end"}))
    short, long = "x" * (MESSAGE_CHARS_MAX - 3) + "end", "x" * MESSAGE_CHARS_MAX + "end"
    assert [policy.ladder_for("timeout", "t", "s", "c", m)[0].name for m in (short, long)] == ["one", "unknown_error"]


def test_a_rules_ladder_holds_what_the_file_says() -> None:
    given = rule(
        match={"error_type": "unknown_*"},
        ladder=(
            {"strategy": "retry_step", "attempts": 2, "backoff": {"base": 5, "max": 50}, "cost": 0.5, "max_time": 9},
            {"strategy": "queue_for_later", "backoff": "none", "delay": 100},
            {"strategy": "increase_timeout_and_retry", "timeout_multiplier": 3.0, "max_timeout": 70},
            {"strategy": "rollback", "to_step": "plan"},
            {"strategy": "manual_intervention"},
        ),
        max_time=1_000,
        max_cost=12.0,
    )
    ladder = policy_of(given).rules[0].ladder
    retry, queue, longer, back = ladder.rungs
    assert (ladder.name, ladder.error_type, ladder.time_ms_max, ladder.cost_max) == ("one", "unknown_*", 1_000, 12.0)
    assert (retry.attempts_max, retry.cost, retry.time_ms_max) == (2, 0.5, 9)
    assert retry.backoff is not None and (retry.backoff.base_ms, retry.backoff.max_ms) == (5, 50)
    assert (queue.delay_ms, queue.backoff, queue.attempts_max, queue.cost) == (100, None, 3, 1.0)
    assert (longer.timeout_multiplier, longer.timeout_ms_max) == (3.0, 70)
    assert (back.strategy, back.to_step) == ("rollback", "plan")
    assert ladder.attempts_max == 2 + 3 + 3 + 3


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({}, {"step": "build"}),
        ({"step": "build"}, {"step": "build"}),
        ({"step": "b*"}, {"step": "build"}),
        ({"step": "b*"}, {"step": "bu*ld"}),
        ({"step": "*"}, {"step": "[ab]*"}),
        ({"message": "*RESET*"}, {"message": "*connection reset*"}),
        ({"error_type": "*_error"}, {"error_type": "unknown*"}),
        ({"error_type": "t*"}, {"error_type": "timeout", "error_code": "E?"}),
    ],
)
def test_a_rule_that_an_earlier_one_leaves_nothing_to_is_refused(earlier: Any, later: Any) -> None:
    [problem] = refused(rule("first", match=earlier), rule("second", match=later))
    assert problem.startswith("recovery_rules.1: 'second' is never reached: recovery_rules.0 ('first') matches all")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ({"step": "build"}, {}),
        ({"step": "build"}, {"step": "b*"}),
        ({"step": "build"}, {"step": "Build"}),
        ({"step": "b*", "error_code": "E1"}, {"step": "build"}),
        ({"message": "*x"}, {"message": "x*"}),
        ({"error_type": "timeout"}, {"error_type": "*"}),
        ({"step": "?"}, {"step": "*"}),
    ],
)
def test_a_rule_with_something_left_to_it_is_taken(earlier: Any, later: Any) -> None:
    assert [r.name for r in policy_of(rule("first", match=earlier), rule("second", match=later)).rules] == [
        "first",
        "second",
    ]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            rule(ladder=()),
            "recovery_rules.0.ladder: no rung; to ask a human at once, name manual_intervention (got [])",
        ),
        (rule("a b"), "recovery_rules.0.name: String should match pattern"),
        (rule("timeout"), "recovery_rules.0.name: a rule may not have the name of an error type (got 'timeout')"),
        (
            rule(match={"error_type": "time_out"}),
            "recovery_rules.0.match.error_type: no error type is like this; allow",
        ),
        (rule(match={"steps": "x"}), "recovery_rules.0.match.steps: unknown key"),
        (rule(match={"step": "x" * 201}), "recovery_rules.0.match.step: String should have at most 200 characters"),
        (rule(ladder=({"strategy": "reboot"},)), "recovery_rules.0.ladder.0.strategy: Input should be 'retry_step'"),
        (rule(ladder=({"strategy": "retry_step", "attempts": 0},)), "recovery_rules.0.ladder.0.attempts: Input should"),
        (
            rule(ladder=({"strategy": "manual_intervention"}, RETRY)),
            "recovery_rules.0.ladder.0: manual_intervention comes last: nothing can follow it (got 'retry_step' after",
        ),
        (rule(ladder=({"strategy": "resume_from_step"},)), "recovery_rules.0.ladder.0.to_step: missing"),
        (
            rule(ladder=({"strategy": "retry_step", "to_step": "a"},)),
            "recovery_rules.0.ladder.0.to_step: means nothing for retry_step, only for rollback, resume_from_step",
        ),
        (
            rule(ladder=({"strategy": "queue_for_later", "delay": 100},), max_time=99),
            "recovery_rules.0.max_time: shorter than the delay of 100 ms of recovery_rules.0.ladder.0 (got 99)",
        ),
        (
            rule(ladder=({"strategy": "queue_for_later", "delay": 100, "max_time": 9},)),
            "recovery_rules.0.ladder.0.max_time: shorter than the delay of 100 ms",
        ),
        (
            rule(ladder=({"strategy": "retry_step", "cost": 5.0},), max_cost=4.0),
            "recovery_rules.0.ladder.0.cost: one attempt costs more than recovery_rules.0.max_cost, 4 (got 5)",
        ),
        (rule(max_cost=0.0), "recovery_rules.0.max_cost: Input should be greater than 0 (got 0.0)"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_with_path_value_and_what_is_allowed(given: Any, problem: str) -> None:
    [found] = refused(given)
    assert found.startswith(problem)


def test_all_problems_are_listed_at_once() -> None:
    problems = refused(
        rule("one", match={"step": "a"}),
        rule("one", match={"step": "a"}, ladder=({"strategy": "resume_from_step"},)),
        recovery_strategies={"deadlock": {"strategy": "retry_step", "fallback_strategy": "resume_from_step"}},
    )
    assert [p.split(":")[0] for p in problems] == [
        "recovery_strategies.deadlock.to_step",
        "recovery_rules.1.name",
        "recovery_rules.1",
        "recovery_rules.1.ladder.0.to_step",
    ]


def test_what_works_and_not_as_it_reads_is_a_warning() -> None:
    policy = policy_of(
        rule("all-timeouts", match={"error_type": "timeout"}),
        rule("long", match={"step": "x"}, ladder=({**RETRY, "attempts": 30}, {"strategy": "complete_restart"})),
        recovery_strategies={"timeout": {"strategy": "queue_for_later", "max_time": 5}},
    )
    assert policy.warnings == (
        "recovery_strategies.timeout.max_time: 5 ms pass before one queue_delay (60000 ms) is over",
        "recovery_strategies.timeout: never used: recovery_rules.0 matches every error of this type",
        "recovery_rules.1.ladder.1: the rungs before it can use up budgets.workflow_max_attempts",
    )


GLOBS = st.text(alphabet="ab*?[]!-", min_size=1, max_size=8)


@given(GLOBS, GLOBS, st.lists(st.text(alphabet="ab-[]!", max_size=6), max_size=30))
def test_a_pattern_said_to_cover_another_fits_all_that_the_other_fits(one: str, other: str, texts: list[str]) -> None:
    wide, narrow = Pattern(one), Pattern(other)
    if wide.covers(narrow):
        assert [t for t in texts if narrow.fits(t) and not wide.fits(t)] == []


@given(st.text(alphabet="abA-Z[]*?", min_size=1, max_size=8), st.text(alphabet="abAB[_", max_size=6))
def test_case_makes_no_pattern_cover_what_it_does_not_fit(one: str, text: str) -> None:
    wide, narrow = Pattern(one, ignore_case=True), Pattern(one.swapcase(), ignore_case=True)
    if wide.covers(narrow) and narrow.fits(text):
        assert wide.fits(text)


@given(st.text(min_size=1, max_size=200), st.text(max_size=50))
def test_any_text_is_a_pattern(pattern: str, text: str) -> None:
    assert Pattern(pattern).fits(text) in (True, False)


@pytest.mark.parametrize("glob", ["*a" * 100, "*" * 200, "?*" * 100, "[a-z]*" * 33, "[" * 200])
def test_a_hostile_glob_is_matched_in_a_number_of_steps_that_ends(glob: str) -> None:
    """An expression that comes back to each star would take longer than there is time."""
    assert not Pattern(glob + "b", ignore_case=True).fits("a" * MESSAGE_CHARS_MAX)


def test_a_pattern_without_glob_characters_is_the_text_itself() -> None:
    assert Pattern("a.b+c").fits("a.b+c") and not Pattern("a.b+c").fits("axbbc")
    assert re.compile("a.b+c").match("axbbc"), "as an expression it would fit"
