"""Deadlocks: each is found with the wait that closes it, nothing else is taken for one, and the others go on."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.coordination import waits as module
from engine.coordination.leases import Lease
from engine.effects import AppendTo
from schemas.records import Record
from schemas.records.events import WorkflowErrorOccurred

from .kit import SECOND_US, START_US, Desk, errors, grants, releases, workflow

_GPU_UNITS = 2


def test_two_that_want_what_the_other_holds_are_found_when_the_second_asks() -> None:
    desk = Desk()
    desk.ask(1, "a", work=5)
    desk.ask(2, "b", work=3)
    assert desk.ask(1, "b", work=5) == []

    told = desk.ask(2, "a", work=3, step="late")

    (error,) = errors(told)
    assert (error.workflow_id, error.error_code, error.step_id) == (workflow(2), "DEADLOCK", "late")
    assert error.detected_by == "detector:deadlock"
    assert json.loads(error.context or "") == {
        "length": 2,
        "cycle": [
            {"workflow_id": workflow(2), "step_id": "late", "waits_for": "a", "blocked_by": workflow(1)},
            {"workflow_id": workflow(1), "step_id": "work", "waits_for": "b", "blocked_by": workflow(2)},
        ],
    }
    assert releases(told) == [(workflow(2), "b", "deadlock"), (workflow(2), "a", "deadlock")]
    assert grants(told) == [workflow(1)]


def test_the_error_goes_to_the_partition_of_the_victim() -> None:
    desk = Desk()
    desk.ask(1, "a")
    desk.ask(2, "b", work=9)
    desk.ask(1, "b")

    effects = desk.coordinator.fold(desk.asked(2, "a", work=9), desk.now_us)

    first = effects[0]
    assert isinstance(first, AppendTo) and isinstance(first.record, WorkflowErrorOccurred)
    assert (first.partition, first.record.workflow_id) == (1, workflow(1))


@pytest.mark.parametrize(
    ("works", "began", "victim"),
    [((2, 1, 3), (0, 0, 0), 1), ((1, 1, 2), (5, 7, 9), 1), ((1, 1, 1), (7, 7, 7), None)],
    ids=["least work", "then the youngest", "then by id"],
)
def test_the_victim_is_the_same_whoever_closes_the_cycle(
    works: tuple[int, ...], began: tuple[int, ...], victim: int | None
) -> None:
    expected = workflow(victim) if victim is not None else min(workflow(n) for n in range(3))
    for last in range(3):
        desk = Desk()
        for who in range(3):
            desk.ask(who, f"r{who}")
        found = []
        for who in [(last + n + 1) % 3 for n in range(3)]:
            found += errors(desk.ask(who, f"r{(who + 1) % 3}", work=works[who], began_at=START_US + began[who]))
        assert [error.workflow_id for error in found] == [expected]


def test_a_workflow_that_awaits_another_and_holds_what_it_wants_is_in_a_cycle() -> None:
    desk = Desk()
    desk.ask(1, "a", work=7)
    desk.ask(2, "b")
    desk.ask(2, "a")

    (error,) = errors(desk.await_(1, 2, work=7))

    assert error.workflow_id == workflow(2)
    assert desk.holders("a") == [workflow(1)]


def test_awaits_alone_can_make_a_cycle_and_one_error_opens_it() -> None:
    desk = Desk()
    desk.await_(1, 2)
    desk.await_(2, 3)

    (error,) = errors(desk.await_(3, 1))

    assert error.workflow_id == workflow(3)
    assert errors(desk.await_(4, 1)) == []


def test_a_workflow_that_awaits_itself_is_deadlocked() -> None:
    assert len(errors(Desk().await_(1, 1))) == 1


def test_an_await_that_has_ended_counts_no_more() -> None:
    desk = Desk()
    desk.await_(1, 2)
    desk.await_(1, None)

    assert errors(desk.await_(2, 1)) == []
    assert desk.waits.awaits_count == 1


def test_a_step_that_wants_what_it_holds_is_deadlocked_and_another_step_of_the_workflow_is_not() -> None:
    desk = Desk()
    desk.ask(1, "a", step="one", lease="first")

    assert desk.ask(1, "a", step="two", lease="second") == []
    told = desk.ask(1, "a", step="one", lease="third")

    assert [error.step_id for error in errors(told)] == ["one"]
    assert desk.holders("a") == [workflow(1)]
    assert grants(desk.give_back(1, "a", lease="first")) == [workflow(1)]


def test_the_end_of_a_wish_closes_a_cycle_when_only_that_wish_made_a_step_give_back() -> None:
    desk = Desk()
    desk.ask(2, "a", step="one", lease="first", work=1)
    desk.ask(0, "a", work=0)
    desk.ask(2, "a", step="two", lease="second", work=1)
    assert errors(desk.await_(2, 0, work=1)) == []

    told = desk.give_back(2, "a", lease="second")

    assert [error.workflow_id for error in errors(told)] == [workflow(0)]


def test_a_way_back_is_no_deadlock_as_long_as_another_can_give_the_unit() -> None:
    desk = Desk(gpu=2)
    desk.ask(1, "gpu")
    desk.ask(2, "gpu")
    desk.ask(3, "a")
    desk.ask(1, "a")

    assert errors(desk.ask(3, "gpu")) == []  # workflow 2 holds a unit too, and waits for nothing
    assert len(errors(desk.ask(2, "a"))) == 1


def test_who_is_kept_from_a_free_unit_by_one_served_before_is_waiting_too() -> None:
    desk = Desk(gpu=2)
    desk.ask(1, "gpu", work=2)
    desk.ask(3, "a", work=1)
    desk.ask(2, "gpu", amount=2, work=3)  # waits for workflow 1
    desk.ask(3, "gpu", work=1)  # a unit is free, and 2 comes before

    told = desk.ask(1, "a", work=2)

    assert [error.workflow_id for error in errors(told)] == [workflow(3)]
    assert grants(told) == [workflow(1)]


def test_one_that_overtakes_can_close_a_cycle_that_it_is_in() -> None:
    desk = Desk(gpu=2)
    desk.ask(1, "gpu")
    desk.ask(2, "gpu")
    desk.ask(3, "a")
    desk.ask(1, "a")
    desk.ask(3, "gpu")

    # It wants both units: 1 does not come back before 3 has one, and 3 comes after it now.
    told = desk.ask(4, "gpu", amount=2, priority=5)

    assert len(errors(told)) == 1


def test_long_waits_and_long_chains_are_no_deadlock() -> None:
    desk = Desk()
    for who in range(200):
        desk.ask(who, f"r{who}")
    told: list[Record] = []
    for who in range(199):
        told += desk.ask(who, f"r{who + 1}")
        desk.now_us += 3600 * SECOND_US
    assert told == []


def test_an_await_beyond_the_bound_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAITS_MAX", 1)
    desk = Desk()
    desk.await_(1, 2)
    desk.await_(2, 1)

    assert (desk.waits.awaits_count, desk.waits.overlooked, desk.waits.deadlocks) == (1, 1, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 50), st.randoms(use_true_random=False), st.booleans())
def test_a_planted_cycle_is_found_with_its_closing_edge_and_all_others_end(
    length: int, chance: random.Random, with_awaits: bool
) -> None:
    desk = Desk(common=3)
    works = [chance.randrange(10) for _ in range(length)]
    for who in range(length):
        desk.ask(who, f"r{who}", work=works[who])
    for other in range(length, length + 20):  # slow ones beside it, which hold and want other things
        desk.ask(other, "common", wait_ms=10**9)
    order = list(range(length))
    chance.shuffle(order)
    for who in order[:-1]:
        if with_awaits and chance.random() < 0.3:
            assert errors(desk.await_(who, (who + 1) % length, work=works[who])) == []
        else:
            assert errors(desk.ask(who, f"r{(who + 1) % length}", work=works[who])) == []

    told = desk.ask(order[-1], f"r{(order[-1] + 1) % length}", work=works[order[-1]])

    (error,) = errors(told)
    expected = min(range(length), key=lambda n: (works[n], -n, workflow(n)))
    assert error.workflow_id == workflow(expected)
    assert json.loads(error.context or "")["length"] == length
    _all_end(desk)


def _all_end(desk: Desk) -> None:
    """Workflows end as soon as they wait for nothing, until none is left that holds or waits for anything."""
    number_of = {workflow(n): n for n in range(100)}
    while desk.leases.of or desk.waits.awaits:
        waiting = {w for w, own in desk.leases.of.items() if any(not lease.granted for lease in own.values())}
        alive = set(desk.leases.of) | set(desk.waits.awaits)
        for workflow_id, own in desk.waits.awaits.items():
            if any(item.awaited_id in alive for item in own.values()):
                waiting.add(workflow_id)
        ready = sorted(alive - waiting)
        assert ready, "somebody waits for ever"
        for workflow_id in ready:
            assert errors(desk.end(number_of[workflow_id])) == []


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_workflows_that_ask_in_one_order_are_never_deadlocked(chance: random.Random) -> None:
    names = [f"r{n}" for n in range(6)]
    desk = Desk(**{name: chance.randint(1, 3) for name in names})
    reached = [0] * 12
    for _ in range(150):
        who = chance.randrange(12)
        own = desk.leases.of.get(workflow(who), {})
        if any(not lease.granted for lease in own.values()):
            continue
        if reached[who] == len(names) or chance.random() < 0.2:
            reached[who] = 0
            assert errors(desk.end(who)) == []
        else:
            reached[who] = chance.randint(reached[who], len(names) - 1) + 1
            name = names[reached[who] - 1]
            capacity = desk.policy.coordination.resources[name]
            told = desk.ask(who, name, amount=chance.randint(1, capacity), priority=chance.randint(-2, 2))
            assert errors(told) == []


_step = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "return", "await", "await no more", "end"]),
    st.integers(0, 5),
    st.sampled_from(["a", "b", "gpu"]),
    st.integers(1, _GPU_UNITS),
    st.sampled_from(["one", "two"]),
    st.integers(0, 5),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_step, max_size=40))
def test_an_error_is_raised_exactly_when_somebody_would_wait_for_ever(
    steps: list[tuple[str, int, str, int, str, int]],
) -> None:
    desk = Desk(gpu=_GPU_UNITS)
    for kind, who, what, amount, step, other in steps:
        before = _without_detector(desk)
        for target in (before, desk):
            if kind == "ask":
                units = amount if what == "gpu" else 1
                found = target.ask(who, what, amount=units, step=step, lease=f"{what} {step}", priority=other)
            elif kind == "return":
                found = target.give_back(who, what, lease=f"{what} {step}")
            elif kind == "end":
                found = target.end(who)
            elif target is desk:
                found = target.await_(who, other if kind == "await" else None)
            elif kind == "await":
                target.waits.awaits[workflow(who)] = {"w": _awaits(who, other)}
            else:
                target.waits.awaits.pop(workflow(who), None)
        assert bool(errors(found)) == bool(_for_ever(before))
        assert not _for_ever(desk)


def _without_detector(desk: Desk) -> Desk:
    """The same leases and awaits, and nobody who looks for deadlocks."""
    made = Desk(gpu=_GPU_UNITS)
    made.coordinator.load(desk.coordinator.dump())
    made.coordinator.components = (made.leases,)
    made.now_us, made.number = desk.now_us, desk.number
    return made


def _awaits(who: int, other: int) -> module.Await:
    to = module.Addressee(workflow(who), "test", None, None, 0)
    return module.Await(to, "w", "await", workflow(other), 0, START_US)


def _for_ever(desk: Desk) -> set[str]:
    """Who would wait for ever: told slowly and plainly, over all workflows, again and again until nothing moves."""
    held = [x for own in desk.leases.of.values() for x in own.values() if x.granted]
    queues = {name: list(resource.waiting) for name, resource in desk.leases.resources.items()}
    awaits = [(item.step_id, w, item.awaited_id) for w, own in desk.waits.awaits.items() for item in own.values()]
    beside = [(x.workflow_id, x.resource_id, x.step_id) for queue in queues.values() for x in queue]
    moved = True
    while moved:
        steps = {(x.workflow_id, x.step_id) for queue in queues.values() for x in queue} | {a[1::-1] for a in awaits}
        waiting = {workflow_id for workflow_id, _ in steps}
        kept = [
            lease
            for lease in held
            if (lease.workflow_id, lease.step_id) in steps
            or (lease.workflow_id in waiting and not _wanted_beside(lease, beside))
        ]
        left = [item for item in awaits if item[2] in waiting]
        moved = len(kept) < len(held) or len(left) < len(awaits)
        held, awaits = kept, left
        for name, queue in queues.items():
            capacity = desk.policy.coordination.resources.get(name, 1)
            while queue and queue[0].amount + sum(x.amount for x in held if x.resource_id == name) <= capacity:
                held.append(queue.pop(0))
                moved = True
    return waiting


def _wanted_beside(lease: Lease, wishes: list[tuple[str, str, str]]) -> bool:
    """Whether another step of the same workflow waits for the same."""
    return any(
        w == lease.workflow_id and name == lease.resource_id and step_id != lease.step_id for w, name, step_id in wishes
    )
