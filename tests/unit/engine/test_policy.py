"""The policy file: the story's is accepted as printed; a wrong one is refused with path, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.policy import default_policy, load_policy
from schemas.errors import ConfigError

STORY = Path(__file__).parents[2] / "fixtures" / "workflow-error-handling-config.yaml"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_policy(text, "policy.yaml")
    return str(caught.value)


def test_story_file_means_the_ladders_it_names() -> None:
    policy = load_policy(STORY.read_text(encoding="utf-8"), "story")
    shape = {t: [(r.strategy, r.attempts_max) for r in ladder.rungs] for t, ladder in policy.ladders.items()}
    assert shape == {
        "infinite_loop": [("restart_from_checkpoint", 3), ("complete_restart", 1)],
        "resource_exhaustion": [("scale_resources_and_retry", 3), ("queue_for_later", 1)],
        "timeout": [("increase_timeout_and_retry", 3)],
        "state_corruption": [("restore_from_last_valid_checkpoint", 5), ("complete_restart", 1)],
        "unknown_error": [("retry_step", 3)],
    }
    assert policy.intervention.timeout_ms == 86_400_000
    assert policy.intervention.channels == ("slack", "email", "pagerduty")
    assert policy == default_policy()
    assert policy.warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "top level must be a mapping"),
        ("[1]", "top level must be a mapping"),
        ("a: [", "not YAML"),
        ("workflow_error_handling: {budget: {}}", "workflow_error_handling.budget: unknown key"),
        (
            "workflow_error_handling: {recovery_strategies: {timeout: {strategy: reboot}}}",
            "workflow_error_handling.recovery_strategies.timeout.strategy: Input should be 'retry_step'",
        ),
        (
            "workflow_error_handling: {recovery_strategies: {timeout: {strategy: retry_step, max_retries: 0}}}",
            "timeout.max_retries: Input should be greater than or equal to 1 (got 0)",
        ),
        (
            "workflow_error_handling: {recovery_strategies: {timeout: {max_retries: 3}}}",
            "timeout.strategy: Field required",
        ),
        (
            "workflow_error_handling: {error_detection: {timeouts: {default_step_timeout: '5m'}}}",
            "default_step_timeout: Input should be a valid integer (got '5m')",
        ),
        (
            "workflow_error_handling: {checkpoints: {redact: ['data.cards[*].number', 'data..x']}}",
            "checkpoints.redact.1: Value error, 'data..x': a key, * or ** is expected at character 6 (got 'data..x')",
        ),
        ("workflow_error_handling: {}\nworkflow_error_handling: {}", "key given twice: workflow_error_handling"),
        ("a: &a [x]\nb: *a", "aliases are not allowed"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("x" * 2_000_000, "2000000 characters"),
        ("[" * 5_000, "not YAML"),
    ],
)
def test_wrong_file_is_refused_with_the_reason(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_every_problem_is_named_at_once() -> None:
    message = refused(
        "workflow_error_handling: {checkpoints: {compression: {algorithm: rar}}, manual_intervention: {timeout: -1}}"
    )
    assert "2 problem(s)" in message
    assert "checkpoints.compression.algorithm" in message
    assert "manual_intervention.timeout" in message


def test_same_content_has_the_same_version_and_other_content_another() -> None:
    one = load_policy("workflow_error_handling: {}", "a")
    same = load_policy("# a comment\nworkflow_error_handling: {budgets: {}}", "b")
    other = load_policy("workflow_error_handling: {budgets: {workflow_max_attempts: 5}}", "c")
    assert one.version == same.version != other.version


def test_what_is_hidden_from_people_makes_no_other_version() -> None:
    """A version is that of the decisions made by it."""
    one = load_policy("workflow_error_handling: {}", "a")
    other = load_policy("workflow_error_handling: {checkpoints: {redact: ['**.password']}}", "b")
    assert (one.redact, other.redact) == ((), ("**.password",))
    assert one.version == other.version


def test_nothing_can_follow_a_human() -> None:
    text = """
workflow_error_handling:
  recovery_strategies:
    timeout: {strategy: manual_intervention, fallback_strategy: complete_restart}
"""
    with pytest.raises(ConfigError, match=r"recovery_strategies\.timeout: .*manual_intervention comes last"):
        load_policy(text, "p.yaml")
