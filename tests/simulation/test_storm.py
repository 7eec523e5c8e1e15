"""Thousands of workflows fail on one target within ten seconds: one incident, one page, and no second collapse."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from engine.policy import default_policy, load_policy
from engine.testing import START_US
from engine.testing_storm import Caller, Storm
from engine.timers import HOLD_SPREAD
from schemas.records.events import BreakerChanged, IncidentChanged, RepairReleased

WORKFLOWS = 2_000
SECONDS = 10
DOWN_S = 90
#: As many calls as usual: the workflows of ten seconds in ten seconds, and the same again.
CAPACITY_PER_S = 2 * WORKFLOWS // SECONDS


HEALED_US = START_US + DOWN_S * 1_000_000


def made() -> Storm:
    return Storm(default_policy(), workflows=WORKFLOWS, seconds=SECONDS, capacity_per_s=CAPACITY_PER_S, unrelated=50)


def at(caller: Caller) -> list[int]:
    return [at_us for at_us, _ in caller.commands]


@pytest.fixture(scope="module")
def storm() -> Storm:
    storm = made()
    storm.fleet.run(DOWN_S)
    storm.target.heal()
    storm.settle(600)
    storm.fleet.run(120)
    return storm


def test_all_recover_after_it_heals(storm: Storm) -> None:
    assert storm.waiting == 0
    assert all(not storm.fleet.state(c.workflow_id).cases for c in storm.callers)


def test_it_does_not_collapse_again(storm: Storm) -> None:
    assert storm.target.collapses == 0


def test_while_it_is_down_only_canaries_go_out(storm: Storm) -> None:
    limits = storm.policy.storms
    released = [r for r in storm.fleet.told(RepairReleased) if r.occurred_at < HEALED_US]
    assert released and all(r.canary for r in released)
    # The first repairs go out before there is a storm to be seen; from then on a few after each pause.
    sent = [at_us for caller in storm.callers for at_us, _ in caller.commands if at_us < HEALED_US]
    assert len(sent) <= limits.threshold + len(released)
    late = Counter((at_us - START_US) // 1_000_000 for at_us in sent if at_us > START_US + SECONDS * 1_000_000)
    assert max(late.values()) <= limits.canaries


def test_it_is_one_incident_and_one_page(storm: Storm) -> None:
    records = storm.fleet.told(IncidentChanged)
    assert {r.key for r in records} == {"dependency:payments"}
    assert len({r.incident_id for r in records}) == 1
    assert records[-1].state == "resolved"
    pages = [r.page for r in records]
    assert pages == sorted(pages) and pages[-1], "it is set once"
    assert max(r.affected_count for r in records) == WORKFLOWS
    assert len(records) < 40


def test_the_breaker_opens_once_and_closes_once(storm: Storm) -> None:
    assert [r.state for r in storm.fleet.told(BreakerChanged)] == ["open", "half_open", "closed"]


def test_what_has_nothing_to_do_with_it_is_repaired_as_if_it_were_quiet(storm: Storm) -> None:
    quiet = made()
    quiet.target.heal()
    quiet.fleet.run(DOWN_S)
    assert all(caller.done for caller in storm.unrelated)
    assert [at(c) for c in storm.unrelated] == [at(c) for c in quiet.unrelated]
    assert not quiet.fleet.told(BreakerChanged)


def test_a_target_that_bears_less_than_usual_is_found_out_by_smaller_waves() -> None:
    storm = Storm(default_policy(), workflows=500, seconds=5, capacity_per_s=20)
    storm.fleet.run(30)
    storm.target.heal()
    storm.settle(3_600)
    assert storm.waiting == 0
    assert 0 < storm.target.collapses <= 3
    assert storm.fleet.told(BreakerChanged)[-1].state == "half_open"


@pytest.mark.parametrize("enabled", [True, False])
def test_a_human_who_need_not_answer_any_more_is_asked_no_more(enabled: bool) -> None:
    policy = default_policy()
    calm = replace(policy, storms=replace(policy.storms, enabled=enabled))
    storm = Storm(calm, workflows=1, seconds=1, capacity_per_s=100)
    storm.fleet.run(600)
    asked = storm.fleet.told(IncidentChanged)[-1]
    assert (asked.interventions, asked.page) == (1, True)
    storm.target.heal()
    storm.callers[0].start()
    storm.fleet.run(1)
    ended = storm.fleet.told(IncidentChanged)[-1]
    assert (ended.interventions, ended.state) == (0, "resolved")


def test_a_target_that_is_down_for_longer_than_repairs_are_held_meets_no_burst() -> None:
    policy = load_policy(
        """
workflow_error_handling:
  recovery_strategies: {unknown_error: {strategy: retry_step, max_retries: 9, backoff_strategy: exponential}}
  storms: {hold_max: 150000}
""",
        "test",
    )
    storm = Storm(policy, workflows=1_000, seconds=SECONDS, capacity_per_s=200)
    storm.fleet.run(2 * 150 + 20)
    # The holds of ten seconds end over half of the longest: 13.3 a second when they are spread evenly. Twice that, and
    # the canaries beside them, is what a target may be asked to bear; without the spread it is 100.
    evenly = len(storm.callers) / (150 * HOLD_SPREAD)
    calls = [storm.target.calls[second] for second in range(SECONDS + 2, 320)]
    assert sum(calls) > 1.5 * len(storm.callers), "each hold has ended, and most of the next ones"
    assert max(calls) <= 2 * evenly + policy.storms.canaries
    storm.target.heal()
    storm.settle(600)
    assert (storm.waiting, storm.target.collapses) == (0, 0)


def test_without_breakers_the_repairs_are_used_up_and_a_human_is_asked_for_each() -> None:
    policy = default_policy()
    off = replace(policy, storms=replace(policy.storms, enabled=False))
    storm = Storm(off, workflows=200, seconds=2, capacity_per_s=100)
    storm.fleet.run(DOWN_S)
    storm.target.heal()
    assert storm.settle(60) == 60
    assert storm.waiting == 200
    last = storm.fleet.told(IncidentChanged)[-1]
    assert (last.kind, last.interventions, last.page) == ("intervention", 200, True)
    assert len({r.incident_id for r in storm.fleet.told(IncidentChanged)}) == 1, "it is one page all the same"
