"""Leases: who is served, in which order, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.coordination import leases as module
from engine.effects import AppendTo
from schemas.records import Record
from schemas.records.coordination import LeaseReturned
from schemas.records.events import PolicyChanged, ResourceGranted, ResourceReleased

from .kit import SECOND_US, Desk, grants, releases, workflow


def test_the_first_is_served_and_the_second_waits_for_the_return() -> None:
    desk = Desk()

    assert grants(desk.ask(1, "printer")) == [workflow(1)]
    assert desk.ask(2, "printer") == []
    assert grants(desk.give_back(1, "printer")) == [workflow(2)]


def test_a_grant_goes_to_the_partition_of_its_workflow_whoever_caused_it() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer")

    (effect,) = desk.coordinator.fold(
        LeaseReturned(**desk.base(1), resource_id="printer", lease_id="printer of 1"), desk.now_us
    )

    assert isinstance(effect, AppendTo) and isinstance(effect.record, ResourceGranted)
    assert (effect.partition, effect.record.workflow_id) == (2, workflow(2))
    assert effect.record.producer == "kintsugi-coordinator"


def test_a_resource_has_as_many_units_as_the_policy_says() -> None:
    desk = Desk(gpu=4)

    assert grants(desk.ask(1, "gpu", amount=3)) == [workflow(1)]
    assert grants(desk.ask(2, "gpu", amount=2)) == []
    assert grants(desk.ask(3, "gpu", amount=1)) == []  # one is free, but another waits for two
    assert grants(desk.give_back(1, "gpu")) == [workflow(2), workflow(3)]


def test_a_large_wish_at_the_head_is_not_starved_by_small_ones() -> None:
    desk = Desk(gpu=2)
    desk.ask(0, "gpu")
    desk.ask(1, "gpu", amount=2)
    for small in range(2, 20):
        desk.ask(small, "gpu")

    assert grants(desk.give_back(0, "gpu")) == [workflow(1)]


def test_priority_overtakes_for_a_bounded_time_only() -> None:
    desk = Desk()
    desk.ask(0, "printer")
    desk.ask(1, "printer")
    desk.ask(2, "printer", priority=1)
    desk.now_us += desk.policy.coordination.ageing_ms * 1000
    desk.ask(3, "printer", priority=1)

    served = []
    for who in (0, 2, 1):
        served += grants(desk.give_back(who, "printer"))

    assert served == [workflow(2), workflow(1), workflow(3)]


def test_priority_beyond_the_bound_counts_no_more() -> None:
    desk = Desk()
    desk.ask(0, "printer")
    desk.ask(1, "printer", priority=module.PRIORITY_MAX)
    desk.ask(2, "printer", priority=2**31 - 1)

    assert grants(desk.give_back(0, "printer")) == [workflow(1)]


def test_a_return_by_one_who_does_not_hold_it_changes_nothing_and_is_counted() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer")

    assert desk.give_back(3, "printer", lease="printer of 1") == []
    assert desk.give_back(1, "scanner", lease="printer of 1") == []
    assert desk.give_back(1, "printer", lease="another") == []

    assert desk.leases.strays == 3
    assert desk.holders("printer") == [workflow(1)]


def test_asked_twice_is_once_and_the_answer_is_the_same() -> None:
    desk = Desk(gpu=2)
    (first,) = desk.ask(1, "gpu")
    (again,) = desk.ask(1, "gpu")

    assert first.event_id == again.event_id
    assert desk.holders("gpu") == [workflow(1)]
    desk.ask(2, "gpu", amount=2)
    assert desk.ask(2, "gpu", amount=2) == []
    assert len(desk.leases.resources["gpu"].waiting) == 1


def test_a_record_that_comes_twice_is_folded_once() -> None:
    desk = Desk()
    record = desk.asked(1, "printer")

    assert len(desk.fold(record)) == 1
    assert desk.fold(record) == []


def test_the_end_of_a_workflow_frees_what_it_held_and_ends_what_it_wanted() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "scanner")
    desk.ask(1, "scanner")
    desk.ask(3, "printer")
    desk.ask(4, "scanner")

    told = desk.end(1)

    assert releases(told) == [
        (workflow(1), "printer", "workflow_ended"),
        (workflow(1), "scanner", "workflow_ended"),
    ]
    assert grants(told) == [workflow(3)]
    assert grants(desk.give_back(2, "scanner")) == [workflow(4)]


def test_a_wish_that_was_taken_back_is_not_served() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer")
    desk.ask(3, "printer")
    desk.give_back(2, "printer")

    assert grants(desk.give_back(1, "printer")) == [workflow(3)]


def test_a_wish_ends_when_its_time_is_over() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer", wait_ms=5_000)
    due_us = desk.now_us + 5 * SECOND_US

    assert desk.coordinator.next_due_us == due_us
    assert list(desk.coordinator.due(due_us - 1)) == []
    (timer,) = desk.coordinator.due(due_us)
    assert releases(desk.fold(timer)) == [(workflow(2), "printer", "timed_out")]
    assert desk.coordinator.next_due_us is None
    assert desk.give_back(1, "printer") == []


def test_without_a_time_of_its_own_a_wish_waits_as_long_as_the_policy_says() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer")

    assert desk.coordinator.next_due_us == desk.now_us + desk.policy.coordination.lease_wait_ms * 1000


def test_a_grant_that_came_before_the_timer_stands() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer", wait_ms=5_000)
    (timer,) = desk.coordinator.due(desk.now_us + 5 * SECOND_US)
    desk.give_back(1, "printer")

    assert desk.fold(timer) == []
    assert desk.holders("printer") == [workflow(2)]


def test_the_timer_of_an_earlier_wish_with_the_same_id_ends_nothing() -> None:
    desk = Desk()
    desk.ask(1, "printer")
    desk.ask(2, "printer", wait_ms=5_000)
    (timer,) = desk.coordinator.due(desk.now_us + 5 * SECOND_US)
    desk.give_back(2, "printer")
    desk.ask(2, "printer", wait_ms=5_000)

    assert desk.fold(timer) == []
    assert len(desk.leases.resources["printer"].waiting) == 1


@pytest.mark.parametrize(("amount", "reason"), [(3, "too_large"), (0, "bad_amount"), (-1, "bad_amount")])
def test_an_impossible_amount_is_refused_at_once(amount: int, reason: str) -> None:
    desk = Desk(gpu=2)

    assert releases(desk.ask(1, "gpu", amount=amount)) == [(workflow(1), "gpu", reason)]
    assert desk.leases.resources == {}


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ("LEASES_PER_WORKFLOW_MAX", "too_many_leases"),
        ("RESOURCES_MAX", "too_many_resources"),
        ("WAITING_MAX", "too_many_waiting"),
    ],
)
def test_what_is_beyond_a_bound_is_told_to_the_workflow(
    bound: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, bound, 1)
    desk = Desk()
    desk.ask(1, "a")
    if bound == "WAITING_MAX":
        desk.ask(2, "a")
        assert releases(desk.ask(3, "a")) == [(workflow(3), "a", reason)]
    else:
        who = 1 if bound == "LEASES_PER_WORKFLOW_MAX" else 2
        assert releases(desk.ask(who, "b")) == [(workflow(who), "b", reason)]


def _changed(desk: Desk, capacity: int) -> PolicyChanged:
    text = f"workflow_error_handling:\n  coordination:\n    resources: {{gpu: {capacity}}}\n"
    fields = desk.base(0)
    del fields["partition"]
    return PolicyChanged(
        **fields, name="default", policy_version="v", policy_text=text, sequence=capacity, reason="test", actor="me"
    )


def test_more_units_serve_those_who_wait_and_fewer_take_nothing_away() -> None:
    desk = Desk(gpu=3)
    desk.ask(1, "gpu", amount=3)
    desk.ask(2, "gpu", amount=3)
    desk.ask(3, "gpu", amount=1)

    assert grants(desk.fold(_changed(desk, 4))) == []
    assert grants(desk.fold(_changed(desk, 6))) == [workflow(2)]
    assert grants(desk.fold(_changed(desk, 7))) == [workflow(3)]


def test_a_wish_that_became_too_large_is_refused() -> None:
    desk = Desk(gpu=9)
    desk.ask(1, "gpu", amount=9)
    desk.ask(2, "gpu", amount=9)
    desk.ask(3, "gpu", amount=1)

    assert releases(desk.fold(_changed(desk, 5))) == [(workflow(2), "gpu", "too_large")]
    assert desk.holders("gpu") == [workflow(1)]
    assert grants(desk.give_back(1, "gpu")) == [workflow(3)]


_action = st.tuples(
    st.sampled_from(["ask", "return", "end", "due"]),
    st.integers(0, 5),
    st.sampled_from(["gpu", "printer"]),
    st.integers(1, 3),
    st.integers(-2, 2),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_action, max_size=60))
def test_capacity_is_never_exceeded_nobody_waits_beside_a_free_unit_and_a_snapshot_goes_on_the_same(
    actions: list[tuple[str, int, str, int, int]],
) -> None:
    desk, other = Desk(gpu=3), Desk(gpu=3)
    for kind, who, what, amount, priority in actions:
        if kind == "ask":
            record: Record = desk.asked(who, what, amount=amount, priority=priority, wait_ms=30_000)
        elif kind == "return":
            record = LeaseReturned(**desk.base(who), resource_id=what, lease_id=f"{what} of {who}")
        elif kind == "end":
            desk.end(who)
            other = _again(desk)
            continue
        else:
            for timer in list(desk.coordinator.due(desk.now_us)):
                desk.fold(timer)
            other = _again(desk)
            continue
        other.now_us = desk.now_us
        assert desk.fold(record) == other.fold(record)
        for name, resource in desk.leases.resources.items():
            capacity = desk.policy.coordination.resources.get(name, 1)
            assert resource.used == sum(lease.amount for lease in resource.held.values()) <= capacity
            if resource.waiting:
                assert resource.used + resource.waiting[0].amount > capacity
        other = _again(desk)
    released = [record.event_id for record in desk.told if isinstance(record, ResourceReleased)]
    assert len(released) == len(set(released))


def _again(desk: Desk) -> Desk:
    """The same, by way of a snapshot."""
    made = Desk(gpu=3)
    made.coordinator.load(desk.coordinator.dump())
    assert made.coordinator.dump() == desk.coordinator.dump()
    return made


def test_a_snapshot_of_other_components_is_not_taken() -> None:
    desk = Desk()
    dump = desk.coordinator.dump()
    dump["components"].pop("waits")

    with pytest.raises(ValueError, match="another version"):
        desk.coordinator.load(dump)


def test_a_policy_that_stands_in_the_log_outlives_a_snapshot() -> None:
    desk = Desk(gpu=1)
    desk.fold(_changed(desk, 6))
    made = Desk(gpu=1)
    made.coordinator.load(desk.coordinator.dump())

    assert grants(made.fold(replace(desk.asked(1, "gpu"), amount=6))) == [workflow(1)]
