"""A storm opens one breaker; what waits goes out in waves that grow while the target bears them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.coordination import breakers as module
from engine.coordination.breakers import Breakers
from engine.coordination.waves import STEADY_WAVES, WAVE_MAX, Breaker
from engine.coordination.windows import KEYS_MAX, Windows
from engine.policy.model import Storms
from schemas.records.coordination import FailureSeen
from schemas.records.events import BreakerChanged, IncidentChanged, RepairReleased

from .kit import workflow
from .storm_kit import KEY, STORMS, Watch, error, of, released

NUMBERS = {workflow(number): number for number in range(5_000)}


@pytest.fixture
def watch() -> Watch:
    return Watch()


def opened(watch: Watch) -> Breaker:
    """The breaker of the target, which is not closed."""
    breakers = watch.coordinator.components[0]
    assert isinstance(breakers, Breakers)
    found = breakers.get(KEY)
    assert found is not None
    return found


def waves(watch: Watch, *, bears: int = WAVE_MAX, seconds: int = 600) -> list[int]:
    """Sizes of the waves until nobody waits, on a target that bears so many at a time."""
    sizes = []
    for _ in range(seconds):
        going = released(watch.wait(1))
        if not going:
            continue
        sizes.append(len(going))
        for place, workflow_id in enumerate(going):
            if place < bears:
                watch.end(NUMBERS[workflow_id])
            else:
                watch.fail(NUMBERS[workflow_id])
                watch.hold(NUMBERS[workflow_id])
        if not opened(watch).waiting:
            break
    return sizes


def test_as_many_workflows_as_the_threshold_says_open_a_breaker(watch: Watch) -> None:
    for who in range(4):
        watch.fail(who)
    assert not watch.said
    watch.fail(4)
    (opened,) = watch.told(BreakerChanged)
    assert (opened.breaker, opened.kind, opened.state) == (KEY, "dependency", "open")


def test_one_workflow_that_fails_again_and_again_opens_nothing(watch: Watch) -> None:
    for _ in range(100):
        watch.fail(1)
    assert not watch.said


def test_failures_that_are_spread_over_time_open_nothing(watch: Watch) -> None:
    for who in range(50):
        watch.fail(who)
        watch.wait(2.6)
    assert not watch.said


def test_without_a_dependency_failures_that_look_alike_open_a_breaker(watch: Watch) -> None:
    for who in range(5):
        watch.fail(who, dependency=None)
    (opened,) = watch.told(BreakerChanged)
    assert (opened.breaker, opened.kind) == ("fingerprint:" + "f" * 16, "fingerprint")


def test_a_policy_without_storms_opens_nothing() -> None:
    watch = Watch(replace(STORMS, enabled=False))
    watch.storm(20)
    assert "open" not in watch.states


def test_only_canaries_go_while_they_fail_and_later_each_time(watch: Watch) -> None:
    watch.storm(20)
    began_us, at = watch.now_us, []
    while watch.now_us < began_us + 600_000_000:
        for workflow_id in (going := released(watch.wait(0.5))):
            watch.fail(NUMBERS[workflow_id])
            watch.hold(NUMBERS[workflow_id])
        if going:
            assert len(going) == STORMS.canaries
            at.append((watch.now_us - began_us) / 1e6)
    pauses = [later - sooner for sooner, later in pairwise(at)]
    assert len(at) < 12
    assert pauses[-1] > 8 * pauses[0]
    assert {r.canary for r in watch.told(RepairReleased)} == {True}
    assert watch.states == ["open"]


def test_waves_grow_while_most_recover_and_the_breaker_closes_when_nobody_waits(watch: Watch) -> None:
    watch.storm(100)
    assert waves(watch) == [2, 4, 8, 16, 32, 38]
    assert watch.states == ["open", "half_open"]
    watch.wait(STORMS.quiet_ms / 1000 - 1)
    assert watch.states[-1] == "half_open"
    watch.wait(5)
    assert watch.states == ["open", "half_open", "closed"]
    sequences = [r.sequence for r in watch.told(BreakerChanged)]
    assert sequences == sorted(set(sequences))


def test_repairs_go_in_the_order_in_which_they_came(watch: Watch) -> None:
    watch.storm(30)
    waves(watch)
    assert released(watch.said) == [workflow(n) for n in range(30)]


def test_a_wave_that_is_too_much_is_followed_by_canaries_and_then_by_smaller_waves(watch: Watch) -> None:
    watch.storm(400)
    sizes = waves(watch, bears=40)
    worst = sizes.index(64)
    assert sizes[: worst + 2] == [2, 4, 8, 16, 32, 64, 2]
    later = sizes[worst + 1 :]
    assert 32 in later and max(later) < 64
    assert watch.states[:3] == ["open", "half_open", "open"]


def test_waves_keep_a_distance_and_are_bounded(watch: Watch) -> None:
    watch.storm(4_000)
    times: dict[int, int] = {}
    for _ in range(100):
        said = watch.wait(0.25)
        for workflow_id in released(said):
            times[watch.now_us] = times.get(watch.now_us, 0) + 1
            watch.end(NUMBERS[workflow_id])
    assert sum(times.values()) == 4_000
    assert max(times.values()) == WAVE_MAX
    moments = sorted(times)
    assert min(b - a for a, b in pairwise(moments)) >= 1_000_000


def test_a_canary_without_an_answer_is_no_good_news(watch: Watch) -> None:
    watch.storm(20)
    assert len(released(watch.wait(3))) == 2
    assert not released(watch.wait(59))
    assert len(released(watch.wait(30))) == 2
    assert watch.states == ["open"]


def test_a_late_recovery_of_a_canary_is_good_news(watch: Watch) -> None:
    watch.storm(20)
    watch.wait(3)
    watch.wait(60)
    before = len(watch.said)
    watch.end(0)
    assert len(released(watch.wait(0.1))) == 4
    assert watch.said[before:][0] == of(BreakerChanged, watch.said)[-1]


def test_one_recovery_is_enough_when_none_failed_in_time(watch: Watch) -> None:
    watch.storm(20)
    (first, _) = released(watch.wait(3))
    assert first == workflow(0)
    watch.end(0)
    assert not released(watch.wait(10)), "the other is still awaited"
    assert len(released(watch.wait(60))) == 4


def test_members_that_are_cancelled_make_room_for_others(watch: Watch) -> None:
    watch.storm(20)
    watch.wait(3)
    watch.end(0, "closed")
    watch.end(1, "closed")
    assert len(released(watch.wait(2))) == 2
    assert watch.states == ["open"]


def test_a_repair_whose_error_ended_is_not_let_go(watch: Watch) -> None:
    watch.storm(10)
    for who in range(9):
        watch.end(who)
    assert released(watch.wait(3)) == [workflow(9)]


def test_a_member_whose_next_attempt_is_held_did_not_recover(watch: Watch) -> None:
    watch.storm(20)
    watch.wait(3)
    watch.hold(0)
    assert not released(watch.wait(1.5))
    watch.end(1)
    assert not released(watch.wait(0.1)), "the wave was judged"


def test_what_failed_in_an_earlier_wave_does_not_count_for_this_one(watch: Watch) -> None:
    watch.storm(40)
    first = released(watch.wait(3))
    watch.fail(0)
    watch.hold(0)
    assert len(first) == 2
    second = released(watch.wait(6))
    assert len(second) == 2
    watch.fail(1)  # of the first wave
    for who in (2, 3):
        watch.end(who)
    assert len(released(watch.wait(1.1))) == 4


def test_a_breaker_that_nobody_waits_for_closes(watch: Watch) -> None:
    for who in range(5):
        watch.fail(who)
    watch.wait(STORMS.quiet_ms / 1000 + 5)
    assert watch.states == ["open", "closed"]
    for who in range(10, 15):
        watch.fail(who)
    assert watch.states == ["open", "closed", "open"]


def test_a_breaker_stays_open_while_others_go_on_failing(watch: Watch) -> None:
    for who in range(200):
        watch.fail(who)
        watch.wait(1)
    assert watch.states == ["open"]
    watch.wait(70)
    assert watch.states == ["open", "closed"]


def test_a_repair_that_comes_while_the_target_is_well_goes_with_the_next_wave(watch: Watch) -> None:
    watch.storm(6)
    waves(watch)
    watch.wait(5)
    watch.fail(50)
    watch.hold(50)
    assert released(watch.wait(0.1)) == [workflow(50)]


def test_a_repair_held_by_a_breaker_that_has_closed_goes_at_once(watch: Watch) -> None:
    for who in range(5):
        watch.fail(who)
    watch.wait(60)
    (going,) = watch.hold(7)
    assert isinstance(going, RepairReleased)
    assert going.workflow_id == workflow(7)


def test_a_breaker_that_was_forgotten_is_closed_in_the_partitions_once(watch: Watch) -> None:
    closed, going = watch.hold(7)
    assert isinstance(closed, BreakerChanged) and isinstance(going, RepairReleased)
    assert (closed.breaker, closed.state, closed.sequence) == (KEY, "closed", watch.now_us)
    assert [type(r) for r in watch.hold(8)] == [RepairReleased]


def test_what_is_beyond_the_bound_is_left_to_its_own_timer(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 10)
    watch.storm(15)
    waves(watch)
    assert len(released(watch.said)) == 10
    breakers = watch.coordinator.components[0]
    assert isinstance(breakers, Breakers)
    assert (breakers.unlisted, breakers.unopened) == (5, 0)
    watch.again()
    again = watch.coordinator.components[0]
    assert isinstance(again, Breakers) and again is not breakers
    assert again.unlisted == 5


def test_another_process_goes_on_in_the_middle_of_a_storm(watch: Watch) -> None:
    other = Watch()
    for each in (watch, other):
        each.storm(100)
        each.wait(3)
    other.again()
    for each in (watch, other):
        for who in range(2):
            each.end(who)
        each.wait(2)
        each.fail(2)
        each.hold(2)
    other.again()
    for each in (watch, other):
        waves(each)
        each.wait(100)
    assert watch.said == other.said
    assert watch.states[-1] == "closed"


def test_the_same_record_twice_changes_nothing(watch: Watch) -> None:
    watch.storm(20)
    (fired,) = (f for f in watch.coordinator.due(watch.now_us + 5_000_000) if f.kind == "breaker")
    watch.now_us = fired.due_at
    assert len(released(watch.fold(fired))) == 2
    assert watch.fold(fired) == []
    late = replace(fired, event_id=error(99))
    assert watch.fold(late) == []


def test_windows_are_bounded(watch: Watch) -> None:
    windows = Windows()
    storms = Storms(threshold=3)
    for number in range(KEYS_MAX + 10):
        record = FailureSeen(
            **watch.base(number), partition=0, error_id=error(number), step_id="s", error_type="timeout",
            severity="low", fingerprint=str(number), attempts=0,
        )  # fmt: skip
        window = windows.observe(f"fingerprint:{number}", record, number, storms)
    assert len(window.workflows) == 1
    assert (len(windows.dump()), windows.forgotten) == (KEYS_MAX, 10)
    again = Windows()
    again.load(windows.dump())
    assert again.dump() == windows.dump()


def test_a_repair_that_is_held_again_waits_once(watch: Watch) -> None:
    watch.storm(6)
    watch.hold(0)
    waves(watch)
    assert sorted(released(watch.said)) == sorted(workflow(n) for n in range(6))
    assert released(watch.said)[-1] == workflow(0), "it is at the end of the queue"


def test_a_wave_that_is_not_filled_is_no_reason_for_a_larger_one(watch: Watch) -> None:
    watch.storm(5)
    assert waves(watch) == [2, 3]
    breaker = opened(watch)
    assert (breaker.size, breaker.released) == (4, 3)
    watch.wait(2)
    for who in range(10, 30):
        watch.hold(who)
    assert len(released(watch.wait(0.1))) == 4


def test_a_small_limit_is_raised_after_many_good_waves(watch: Watch) -> None:
    watch.storm(1_000)
    assert waves(watch, bears=10, seconds=8) == [2, 4, 8, 16]
    assert opened(watch).limit == 12
    sizes = []
    while opened(watch).limit == 12:
        sizes.append(len(going := released(watch.wait(1))))
        for workflow_id in going:
            watch.end(NUMBERS[workflow_id])
    assert max(sizes) == 12
    assert sizes.count(12) == STEADY_WAVES
    assert opened(watch).limit == 14


def test_what_is_remembered_is_bounded(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLYING_MAX", 1)
    monkeypatch.setattr(module, "CLOSED_MAX", 1)
    watch.storm(6)
    watch.wait(3)
    assert len(opened(watch).flying) == 1
    for key in ("dependency:one", "dependency:two", "dependency:one"):
        assert [type(r) for r in watch.hold(90, breaker=key)] == [BreakerChanged, RepairReleased]


def test_no_more_breakers_open_than_partitions_remember(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_MAX", 1)
    for dependency in ("one", "two"):
        for who in range(5):
            watch.fail(who, dependency=dependency)
    assert [r.breaker for r in watch.told(BreakerChanged)] == ["dependency:one"]
    breakers = watch.coordinator.components[0]
    assert isinstance(breakers, Breakers)
    assert (breakers.open_count, breakers.waiting_count) == (1, 0)
    assert breakers.unopened == 1, "the failures before it were no storm yet"
    watch.fail(0, dependency="two")
    assert breakers.unopened == 2


def test_a_key_that_was_forgotten_is_no_storm() -> None:
    assert not Windows().storming("dependency:payments", 0, STORMS)


move = st.one_of(
    st.tuples(st.sampled_from(("fail", "hold", "recover", "close", "ask", "answer")), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.sampled_from((1, 7, 70, 700))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(move, max_size=120))
@example([("ask", 0), ("recover", 0), ("ask", 0)])
def test_whatever_comes_nothing_is_let_go_that_does_not_wait_and_nothing_is_forgotten(
    moves: list[tuple[str, int]],
) -> None:
    watch, other = Watch(), Watch()
    held: set[str] = set()
    for what, number in moves:
        for each in (watch, other):
            began = len(each.said)
            if what == "hold":
                each.hold(number)
            elif what == "wait":
                each.wait(number)
            else:
                _do(each, what, number)
            if each is other:
                each.again()
                continue
            if what == "hold":
                held.add(workflow(number))
            for record in each.said[began:]:
                if isinstance(record, RepairReleased):
                    assert record.workflow_id in held
                    held.discard(record.workflow_id)
            if what in ("recover", "close"):
                held.discard(workflow(number))
    assert watch.said == other.said
    revisions: dict[str, int] = {}
    for incident in watch.told(IncidentChanged):
        assert incident.revision == revisions.get(incident.incident_id, 0) + 1
        revisions[incident.incident_id] = incident.revision
    began = len(watch.said)
    for number in range(31):
        watch.end(number, "closed")
    watch.wait(3_600)
    assert not released(watch.said[began:])
    assert watch.coordinator.dump()["components"]["breakers"]["open"] == []


def _do(watch: Watch, what: str, number: int) -> None:
    if what == "fail":
        watch.fail(number)
    elif what == "recover":
        watch.end(number)
    elif what == "close":
        watch.end(number, "closed")
    elif what == "ask":
        watch.ask(number)
    else:
        watch.ask(number, "ended")
