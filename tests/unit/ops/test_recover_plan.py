"""A plan's file proves itself, and its journal tells one run of it what another did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from engine.people import DECISIONS
from ops.commands import interventions as commands
from ops.commands.recover import recover
from ops.recover import OUTCOMES, Journal, Result, check_rate
from ops.recover_plan import AGE_HOURS_MAX, NAMED_MAX, Item, Plan, RefusedError, Step, read, write
from schemas.errors import ConfigError

NOW_US = 1_800_000_000_000_000
HOUR_US = 3_600_000_000


def item(number: int, **changed: Any) -> Item:
    fields: dict[str, Any] = {
        "error_id": f"error-{number}",
        "workflow_id": f"workflow-{number}",
        "workflow_type": "development",
        "external_id": None,
        "partition": 0,
        "step_id": "pay",
        "error_type": "timeout",
        "status": "open",
        "attempts": 1,
        "possible": True,
        "action": "retry",
        "command": "RetryStep",
        "runs_again": (Step(step_id="pay", completed=number, idempotent=number % 2 == 0, compensation=None),),
    }
    return Item(**{**fields, **changed})


def plan(*items: Item, **changed: Any) -> Plan:
    fields: dict[str, Any] = {
        "plan_id": "6b696e74-7375-4769-8000-676f6c646a6f",
        "cluster": "here",
        "created_at": "2027-01-15T08:00:00Z",
        "created_us": NOW_US,
        "actor": "ann",
        "reason": "r",
        "filter": "type=timeout",
        "strategy": "retry_step",
        "parameters": {"delay_ms": 5, "timeout_multiplier": 2.5, "to_step": "a"},
        "items": items or tuple(item(n) for n in range(3)),
    }
    made = Plan(**{**fields, **changed}, digest="")
    return made.model_copy(update={"digest": made.expected_digest()})


def test_a_plan_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write(plan(), path)
    assert read(path, now_us=NOW_US) == plan()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        write(plan(), path)
    with pytest.raises(ConfigError, match="No such file"):
        write(plan(), tmp_path / "nowhere" / "plan.json")


@pytest.mark.parametrize(
    ("before", "after"),
    [('"attempts": 1', '"attempts": 2'), ("retry_step", "skip_step"), ('"possible": true', '"possible": false')],
)
def test_a_plan_that_was_changed_is_refused(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "plan.json"
    write(plan(), path)
    path.write_text(path.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")
    with pytest.raises(RefusedError, match="was changed after it was made"):
        read(path, now_us=NOW_US)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"version": 2}', b"[" * 10_000, b'{"plan_id": "x"}', b"null"],
    ids=repr,
)
def test_what_is_no_plan_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(RefusedError, match="is no plan of this version"):
        read(path, now_us=NOW_US)


def test_a_plan_with_a_field_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(orjson.dumps({**plan().model_dump(mode="json"), "more": 1}))
    with pytest.raises(RefusedError, match="is no plan"):
        read(path, now_us=NOW_US)


@pytest.mark.parametrize(("hours", "good"), [(AGE_HOURS_MAX - 1, True), (AGE_HOURS_MAX + 1, False), (-2, False)])
def test_a_plan_lasts_for_a_day(tmp_path: Path, hours: int, good: bool) -> None:
    path = tmp_path / "plan.json"
    write(plan(), path)
    now_us = NOW_US + hours * HOUR_US
    if good:
        assert read(path, now_us=now_us)
        return
    with pytest.raises(RefusedError, match="make it anew"):
        read(path, now_us=now_us)


def test_side_effects_are_counted_by_step_and_only_where_something_is_done() -> None:
    made = plan(item(1), item(3), item(4), item(5, possible=False))
    assert made.side_effects() == {"pay": 2}


def test_a_journal_tells_the_next_run_and_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    journal = Journal(plan(), path)
    journal.note(Result(item(1), "pending", since=7))
    journal.note(Result(item(1), "recovered", "attempt 2", since=7))
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"error_id": "error-2", "outc')
    again = Journal(plan(), path)
    assert {k: (v["outcome"], v["since"]) for k, v in again.lines.items()} == {"error-1": ("recovered", 7)}
    again.note(Result(item(2), "stale", "moved on"))
    again.close()
    last = Journal(plan(), path)
    last.close()
    assert set(last.lines) == {"error-1", "error-2"}


def test_a_journal_of_another_plan_is_refused(tmp_path: Path) -> None:
    Journal(plan(), tmp_path / "plan.json").close()
    other = plan(plan_id="6b696e74-7375-4769-8000-000000000000")
    with pytest.raises(RefusedError, match="belongs to another plan"):
        Journal(other, tmp_path / "plan.json")


@given(text=st.text(max_size=8))
def test_a_rate_is_within_bounds_or_refused(text: str) -> None:
    try:
        rate = check_rate(text)
    except ConfigError:
        return
    assert 0 < rate <= 1_000


@pytest.mark.parametrize(("text", "rate"), [("20/s", 20.0), ("0.5", 0.5), ("1000/s", 1000.0)])
def test_a_rate_is_requests_a_second(text: str, rate: float) -> None:
    assert check_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "-1/s", "nan", "inf", "1001", "20/m", ""])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="one looks like 20/s"):
        check_rate(text)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "--where and --strategy make a plan"),
        (["--where", "type=a"], "--where and --strategy make a plan"),
        (["--where", "type=a", "--strategy", "retry_step", "--parameter", "x"], "one looks like to_step=pay"),
        (["--execute", __file__, "--where", "type=a"], "takes its filter and strategy from the plan"),
        (["--where", "type=a", "--strategy", "retry_step", "--accept-rerun", "pay"], "goes with --execute"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(recover, [*arguments, "--reason", "r"])
    assert done.exit_code == 2
    assert why in done.output


def test_each_step_that_is_not_idempotent_has_to_be_accepted() -> None:
    def step(step_id: str, *, idempotent: bool = False) -> Step:
        return Step(step_id=step_id, completed=1, idempotent=idempotent, compensation=None)

    made = plan(
        item(0, runs_again=(step("pay"), step("build", idempotent=True))),
        item(1, runs_again=(step("send mail"), step("pay"))),
        item(2, runs_again=(step("burn"),), possible=False),
    )
    with pytest.raises(RefusedError, match=r"accept it: --accept-rerun pay --accept-rerun 'send mail'$") as refused:
        made.check_accepted(())
    assert refused.value.exit_code == 4
    with pytest.raises(RefusedError, match=r"accept it: --accept-rerun 'send mail'$"):
        made.check_accepted(("pay", "build"))
    made.check_accepted(("send mail", "pay"))
    plan(item(0)).check_accepted(())


def test_a_refusal_names_so_many_steps() -> None:
    steps = tuple(
        Step(step_id=f"s{n:03}", completed=1, idempotent=False, compensation=None) for n in range(NAMED_MAX + 7)
    )
    with pytest.raises(RefusedError, match=rf"--accept-rerun s{NAMED_MAX - 1:03} and 7 more$"):
        plan(item(0, runs_again=steps)).check_accepted(())


def test_every_decision_is_offered_on_the_command_line() -> None:
    assert set(commands.DECISIONS) == set(DECISIONS)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--decision", "retry_edited"], "needs --edit"),
        (["--decision", "retry", "--edit", "{}"], "--edit goes with --decision retry_edited or approve"),
        (["--decision", "retry", "--result", "{}"], "--result goes with --decision skip"),
        (["--decision", "retry", "--to-step", "a"], "--to-step goes with --decision rollback"),
        (["--decision", "retry_edited", "--edit", "no such file"], "is neither a JSON object nor a file"),
        (["--decision", "guess"], "is not one of"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(arguments: list[str], why: str) -> None:
    subject = "6b696e74-7375-4769-8000-676f6c646a6f"
    done = CliRunner().invoke(commands.interventions, ["resolve", subject, *arguments, "--dry-run"])
    assert done.exit_code == 2
    assert why in done.output


def test_the_outcomes_of_a_run_are_the_ones_that_totals_have() -> None:
    assert Result(item(1)).outcome in OUTCOMES
