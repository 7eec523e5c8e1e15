"""A candidate policy on hand-made histories: what it decides differently, and what recorded tries say of that."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backtest import BEGUN_BEFORE, NOT_REPRODUCED, Backtest, TooLargeError
from engine.backtest_estimate import SAMPLES_MIN, TRIES_MAX, Course, Evidence, Try, estimate, wilson
from engine.backtest_report import Report, account, changes
from engine.policy import Policy, load_policy
from engine.testing import START_US, Service, World
from schemas.records.events import PolicyChanged, RecoveryDecided, StepSpec, WorkflowErrorOccurred

STEPS = (StepSpec(step_id="build"), StepSpec(step_id="test"))
FOREVER = {"since_us": 0, "until_us": 2**62}


def policy_of(*rungs: tuple[str, int], **more: Any) -> Policy:
    return load_policy(text_of(*rungs, **more), "test")


def text_of(*rungs: tuple[str, int], **more: Any) -> str:
    """Every error has this ladder."""
    ladder = [{"strategy": strategy, "attempts": attempts} for strategy, attempts in rungs]
    rules = [{"name": "all", "match": {}, "ladder": ladder}]
    return json.dumps({"workflow_error_handling": {"recovery_rules": rules, **more}})


RETRY = policy_of(("retry_step", 2))
RESTART = policy_of(("complete_restart", 1))


def play(world: World, *works: bool, code: str = "ValueError") -> Service:
    """A workflow that fails, whose repairs work or do not, in this order."""
    service = Service(world, STEPS)
    service.start("build")
    service.fail("build", code)
    for work in works:
        command = world.commands[-1]
        service.acknowledge(command)
        service.start("build", command)
        world.advance(1_000)
        if work:
            service.complete("build", command)
        else:
            service.fail("build", code, command)
    return service


def run(world: World, candidate: Policy, before: Policy, *, since_us: int = 0, until_us: int = 2**62) -> Backtest:
    found = Backtest(candidate, before, since_us=since_us, until_us=until_us)
    found.begins_at_zero(0)
    for event in world.log:
        found.event(event)
    found.finish()
    return found


def report_of(found: Backtest) -> Report:
    return Report(found.rows, found.evidence)


def figure(report: Report, name: str) -> Any:
    return next(f for f in report.figures() if f.name == name)


def mixed() -> World:
    world = World(RETRY)
    play(world, True)
    play(world, False, True)
    play(world, False, False)
    play(world)
    return world


@given(st.lists(st.lists(st.booleans(), max_size=2).map(tuple), max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_policy_in_force_differs_in_nothing(histories: list[tuple[bool, ...]]) -> None:
    world = World(RETRY)
    for works in histories:
        play(world, *(works[: works.index(True) + 1] if True in works else works))
    found = run(world, RETRY, RETRY)
    assert len(found.rows) == len(histories)
    assert [row for row in found.rows if row.difference or row.apart] == []
    assert found.unknown_versions == {}
    assert found.reproduced == sum(row.decisions for row in found.rows)


def test_what_happened_is_told_of_each_error() -> None:
    rows = run(mixed(), RETRY, RETRY).rows
    assert [(r.outcome, r.by, r.decisions, r.asked, r.cost) for r in rows] == [
        ("recovered", "repair", 1, 0, 1.0),
        ("recovered", "repair", 2, 0, 2.0),
        ("open", "", 3, 1, 2.0),
        ("open", "", 1, 0, 1.0),
    ]
    assert rows[0].open_ms == 1_000


def test_another_first_rung_changes_every_error_at_its_first_decision() -> None:
    report = report_of(run(mixed(), RESTART, RETRY))
    assert len(report.differently) == 4
    assert {(r.difference.before.number, r.difference.after.strategy) for r in report.differently if r.difference} == {
        (1, "complete_restart")
    }
    [change] = changes(report.differently)
    assert (change["strategy_before"], change["strategy_now"], change["errors"]) == (
        "retry_step",
        "complete_restart",
        4,
    )
    assert figure(report, "compared").happened == 2 and figure(report, "still_open").happened == 2


def test_another_second_rung_changes_only_those_that_came_so_far() -> None:
    report = report_of(run(mixed(), policy_of(("retry_step", 1), ("complete_restart", 1)), RETRY))
    numbers = [r.difference.before.number if r.difference else None for r in report.all]
    assert numbers == [None, 2, 2, None]


def test_a_rule_changes_the_errors_that_it_matches_and_no_other() -> None:
    world = World(RETRY)
    play(world, True, code="Odd")
    play(world, True, code="Plain")
    text = json.loads(text_of(("retry_step", 2)))
    odd = {"name": "odd", "match": {"error_code": "Odd"}, "ladder": [{"strategy": "complete_restart"}]}
    text["workflow_error_handling"]["recovery_rules"].insert(0, odd)
    report = report_of(run(world, load_policy(json.dumps(text), "test"), RETRY))
    assert [(r.error_code, r.difference.after.ladder) for r in report.differently if r.difference] == [("Odd", "odd")]
    assert [r.error_code for r in report.alike] == ["Plain"]


def restarted(*works: bool) -> World:
    """Restarts first, then retries, by a change of policy in between."""
    world = World(RESTART)
    for work in works:
        play(world, work)
    world.append(
        PolicyChanged(
            event_id=world.new_id(),
            workflow_id=world.new_id(),
            workflow_type="kintsugi.policy",
            occurred_at=world.now_us,
            producer="test",
            name="recovery",
            policy_version="given",
            policy_text=text_of(("retry_step", 2)),
            sequence=1,
            reason="because",
            actor="ana",
        )
    )
    world.settle()
    play(world, True)
    return world


def test_what_happened_is_by_the_policy_of_its_place_in_the_log() -> None:
    world = restarted(*[True] * 7, *[False] * 5)
    found = run(world, RETRY, RESTART)
    assert [row.difference is None for row in found.rows] == [False] * 12 + [True]
    assert found.unknown_versions == {} and found.reproduced > 0
    assert set(found.versions) == {RESTART.version, RETRY.version}


@given(st.lists(st.booleans(), min_size=SAMPLES_MIN, max_size=25))
@settings(max_examples=20, deadline=None)
def test_an_estimate_is_the_recorded_frequency(works: list[bool]) -> None:
    report = report_of(run(restarted(*works), RESTART, RESTART))
    [judged] = report.judged
    share = sum(works) / len(works)
    assert judged.then.recovered == pytest.approx(share)
    assert (judged.then.low, judged.then.high) == pytest.approx(wilson(sum(works), len(works)))
    assert judged.then.human == pytest.approx(1 - share) and judged.then.unknown == 0.0
    assert figure(report, "recovered").happened == 1
    assert figure(report, "people").candidate == pytest.approx(1 - share)
    assert judged.then.basis == (f"complete_restart, first: n {len(works)}, fingerprint",)
    assert figure(report, "cost").candidate == 1.0
    if sum(works):
        assert figure(report, "time_ms").candidate == pytest.approx(1_000)


def test_too_few_recorded_tries_are_unknown_and_are_not_guessed() -> None:
    report = report_of(run(restarted(*[True] * (SAMPLES_MIN - 1)), RESTART, RESTART))
    recovered = figure(report, "recovered")
    assert (recovered.candidate, recovered.low, recovered.high, recovered.unknown) == (None, 0.0, 1.0, 1.0)
    assert figure(report, "cost").candidate is None


def test_an_error_of_another_fingerprint_falls_back_to_its_type_and_says_so() -> None:
    evidence = Evidence()
    for number in range(SAMPLES_MIN):
        evidence.add("a", "unknown_error", "retry_step", True, "succeeded" if number < 4 else "unknown", 100)
    course = Course((Try("retry_step", True, 1.0, 50),), "human")
    found = estimate(course, "b", "unknown_error", evidence)
    assert found.recovered == 0.4
    assert found.basis == (f"retry_step, first: n {SAMPLES_MIN}, error type",)
    assert found.time_ms == 150
    assert estimate(course, "b", "timeout", evidence).unknown == 1.0


outcomes = st.lists(st.sampled_from(["succeeded", "failed", "unknown"]), max_size=40)
tries = st.builds(Try, st.sampled_from("ab"), st.booleans(), st.floats(0, 10), st.integers(0, 1_000))


@given(
    st.dictionaries(st.tuples(st.sampled_from("ab"), st.booleans()), outcomes),
    st.builds(Course, st.lists(tries, max_size=6).map(tuple), st.sampled_from(["human", "gives_up"]), st.booleans()),
)
def test_the_shares_of_an_error_add_up_to_it_and_lie_in_their_range(
    recorded: dict[tuple[str, bool], list[str]], course: Course
) -> None:
    evidence = Evidence()
    for (strategy, first), ended in recorded.items():
        for outcome in ended:
            evidence.add("f", "t", strategy, first, outcome, 10)
    found = estimate(course, "f", "t", evidence)
    assert found.recovered + found.human + found.gives_up + found.unknown == pytest.approx(1.0)
    assert -1e-9 <= found.low <= found.recovered + 1e-9 and found.recovered <= found.high + 1e-9
    assert found.cost <= found.cost_max + 1e-9


@pytest.mark.parametrize(
    ("succeeded", "count", "low", "high"),
    [(0, 0, 0, 1), (10, 10, 0.722, 1), (0, 10, 0, 0.278), (5, 10, 0.237, 0.763), (81, 263, 0.255, 0.366)],
)
def test_the_range_is_wilsons(succeeded: int, count: int, low: float, high: float) -> None:
    assert wilson(succeeded, count) == pytest.approx((low, high), abs=5e-4)


def test_only_errors_of_the_time_asked_about_are_counted() -> None:
    world = World(RETRY)
    play(world, True)
    between_us = world.now_us
    play(world, True)
    assert len(run(world, RETRY, RETRY, since_us=between_us).rows) == 1
    assert len(run(world, RETRY, RETRY, until_us=between_us).rows) == 1
    assert run(world, RETRY, RETRY, since_us=START_US + 10**12).rows == []


def test_an_error_whose_workflow_began_before_what_was_read_is_set_apart() -> None:
    world = World(RETRY)
    play(world, True)
    found = Backtest(RESTART, RETRY, **FOREVER)
    for event in world.log[1:]:
        found.event(event)
    report = report_of(found)
    assert [row.apart for row in found.finish()] == [BEGUN_BEFORE]
    assert report_of(found).differently == [] and report.all == found.rows


def test_what_another_engine_decided_is_set_apart() -> None:
    """The decision claims the policy in force, which would not have made it."""
    world = World(RETRY)
    play(world, True)
    log = [
        replace(e, record=replace(e.record, execute_after_ms=7)) if isinstance(e.record, RecoveryDecided) else e
        for e in world.log
    ]
    found = Backtest(RESTART, RETRY, **FOREVER)
    found.begins_at_zero(0)
    for event in log:
        found.event(event)
    assert [row.apart for row in found.finish()] == [NOT_REPRODUCED]


def test_a_policy_that_is_not_known_is_named_and_its_decisions_are_compared_as_recorded() -> None:
    world = World(RETRY)
    play(world, True)
    found = run(world, RESTART, policy_of(("retry_step", 5)))
    assert found.unknown_versions == {RETRY.version: 1}
    [row] = found.rows
    assert row.difference is not None and row.difference.course_before is None
    told = account(report_of(found), RESTART, found.versions.values(), found.unknown_versions)
    assert any(RETRY.version in line for line in told)


def test_a_person_who_answers_is_not_taken_for_a_repair() -> None:
    asks = policy_of(("manual_intervention", 1))
    world = World(asks)
    service = play(world)
    service.start("build")
    service.complete("build")
    [row] = run(world, asks, asks).rows
    assert (row.outcome, row.by, row.asked) == ("recovered", "people", 1)


def test_parts_of_a_policy_that_history_cannot_judge_are_named() -> None:
    slow = policy_of(("retry_step", 2), error_detection={"timeouts": {"default_step_timeout": 5_000}})
    found = run(mixed(), slow, RETRY)
    told = account(report_of(found), slow, found.versions.values(), found.unknown_versions)
    assert any("deadlines" in line for line in told)
    same = account(report_of(found), RETRY, found.versions.values(), found.unknown_versions)
    assert not any("deadlines" in line for line in same)


def test_more_errors_than_fit_end_it_loudly() -> None:
    found = Backtest(RETRY, RETRY, since_us=0, until_us=2**62, errors_max=3)
    found.begins_at_zero(0)
    last = [e for e in mixed().log if isinstance(e.record, WorkflowErrorOccurred)][-1]
    for event in mixed().log[: last.offset]:
        found.event(event)
    with pytest.raises(TooLargeError, match="more than 3 errors"):
        found.event(last)


def test_a_course_longer_than_is_looked_at_leaves_its_rest_unknown() -> None:
    long = policy_of(("retry_step", TRIES_MAX + 1), budgets={"workflow_max_attempts": 1_000})
    world = World(RESTART)
    play(world, True)
    [row] = run(world, long, RESTART).rows
    assert row.difference is not None
    assert (len(row.difference.course.tries), row.difference.course.cut) == (TRIES_MAX, True)


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({}, "human"),
        ({"manual_intervention": {"enabled": False}}, "gives_up"),
        ({"manual_intervention": {"triggers": ["critical_state_corruption"]}}, "gives_up"),
        ({"coordination": {"dependants": "skip"}}, "gives_up"),
    ],
)
def test_a_course_ends_as_the_policy_says(more: dict[str, Any], end: str) -> None:
    world = World(RETRY)
    play(world, True)
    [row] = run(world, policy_of(("complete_restart", 1), **more), RETRY).rows
    assert row.difference is not None
    assert row.difference.course == Course((Try("complete_restart", True, 1.0, 0),), end)


def test_tries_that_were_made_and_budgets_that_are_spent_shorten_a_course() -> None:
    more = policy_of(("retry_step", 1), ("complete_restart", 9), budgets={"workflow_max_attempts": 3})
    world = World(RETRY)
    play(world, False, True)
    [row] = run(world, more, RETRY).rows
    assert row.difference is not None
    assert [t.strategy for t in row.difference.course.tries] == ["complete_restart"] * 2
    assert [t.first for t in row.difference.course.tries] == [True, False]


def test_the_same_history_gives_the_same_report() -> None:
    first, second = (report_of(run(mixed(), RESTART, RETRY)) for _ in range(2))
    assert first.figures() == second.figures()
    assert first.evidence.rows() == second.evidence.rows()
