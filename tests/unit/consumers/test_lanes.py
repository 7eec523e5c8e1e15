"""Lanes: each in turn, a workflow's records in their order, and how far a partition is done."""

from __future__ import annotations

from typing import Any, cast

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from consumers import lanes as limits
from consumers.lanes import COMMON, Entry, Lanes


class Raw:
    """A record as the client library gives it, as far as lanes look at it."""

    def __init__(self, key: bytes | None, size_bytes: int = 10) -> None:
        self._key, self._size_bytes = key, size_bytes

    def key(self) -> bytes | None:
        return self._key

    def __len__(self) -> int:
        return self._size_bytes


def entry(offset: int, key: bytes | None = b"w", partition: int = 0) -> Entry:
    return Entry(partition, offset, cast(Message, Raw(key)), None)


def offsets(lanes: Lanes, count: int) -> list[int]:
    taken = [lanes.take() for _ in range(count)]
    for one in taken:
        one.done = True
    return [one.offset for one in taken]


def test_a_lone_failure_waits_for_one_record_of_a_storm() -> None:
    lanes = Lanes()
    for number in range(1_000):
        lanes.put(entry(number, b"stormy %d" % number), b"storm")
    lanes.put(entry(1_000, b"lone"), b"lone")
    assert offsets(lanes, 2) == [0, 1_000]
    assert offsets(lanes, 998) == list(range(1, 999))


def test_within_a_lane_workflows_take_turns_and_each_keeps_its_order() -> None:
    lanes = Lanes()
    for number in range(4):
        lanes.put(entry(number, b"busy"), None)
    lanes.put(entry(4, b"calm"), None)
    assert offsets(lanes, 5) == [0, 4, 1, 2, 3]


def test_a_workflow_that_fails_goes_to_the_lane_with_all_that_waits_of_it() -> None:
    lanes = Lanes()
    lanes.put(entry(0, b"w"), None)
    for number in range(1, 4):
        lanes.put(entry(number, b"other %d" % number), None)
    lanes.put(entry(4, b"w"), b"lane")
    lanes.put(entry(5, b"w"), None)
    assert offsets(lanes, 6) == [1, 0, 2, 4, 3, 5]


def test_the_frontier_is_the_first_record_that_is_not_done_also_when_it_is_in_hand() -> None:
    lanes = Lanes()
    lanes.put(entry(5, b"a"), b"storm")
    lanes.put(entry(6, b"b"), b"storm")
    lanes.put(entry(9, b"c"), b"lone")
    first, lone = lanes.take(), lanes.take()
    assert lanes.frontier(0) == 5
    lone.done = True
    assert lanes.frontier(0) == 5
    first.done = True
    assert lanes.frontier(0) == 6
    lanes.take().done = True
    assert lanes.frontier(0) is None
    assert lanes.frontier(7) is None


def test_a_partition_that_is_gone_is_forgotten_and_no_other() -> None:
    lanes = Lanes()
    for number in range(6):
        lanes.put(entry(number, b"%d" % number, partition=number % 2), b"storm")
    in_hand = lanes.take()
    lanes.forget(0)
    assert (len(lanes), lanes.size_bytes) == (3, 30)
    assert not lanes.waits(0, b"2")
    in_hand.done = True
    assert lanes.frontier(0) is None
    assert offsets(lanes, 3) == [1, 3, 5]
    with pytest.raises(IndexError):
        lanes.take()


def test_beyond_the_bound_lanes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LANES_MAX", 3)
    lanes = Lanes()
    for number in range(10):
        lanes.put(entry(number, b"%d" % number), b"lane %d" % number)
    assert lanes.take().offset == 0
    assert sorted(offsets(lanes, 9)) == list(range(1, 10))


def test_a_record_without_a_key_has_its_turn() -> None:
    lanes = Lanes()
    lanes.put(entry(0, None), None)
    assert lanes.waits(0, b"")
    assert offsets(lanes, 1) == [0]


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.sampled_from([None, COMMON, b"x", b"y"]), st.integers(0, 1)),
        st.tuples(st.just("take"), st.booleans()),
        st.tuples(st.just("forget"), st.integers(0, 1)),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_is_put_and_taken_order_count_and_frontier_are_those_of_the_log(steps: list[tuple[Any, ...]]) -> None:
    lanes, next_offset = Lanes(), [0, 0]
    waiting: list[Entry] = []  # the model: by the log's order
    in_hand: list[Entry] = []
    for what, *details in steps:
        if what == "put":
            key, lane, partition = details
            made = entry(next_offset[partition], key, partition)
            next_offset[partition] += 1
            lanes.put(made, lane)
            waiting.append(made)
        elif what == "take" and waiting:
            taken = lanes.take()
            assert taken is next(e for e in waiting if e.key == taken.key), "not the workflow's oldest"
            waiting.remove(taken)
            taken.done = details[0]
            in_hand += [] if taken.done else [taken]
        elif what == "forget":
            waiting = [e for e in waiting if e.partition != details[0]]
            in_hand = [e for e in in_hand if e.partition != details[0]]
            lanes.forget(details[0])
        assert len(lanes) == len(waiting)
        assert lanes.size_bytes == 10 * len(waiting)
        for partition in (0, 1):
            open_ = [e.offset for e in (*waiting, *in_hand) if e.partition == partition]
            assert lanes.frontier(partition) == min(open_, default=None)
            for key in (b"a", b"b", b"c", b"d"):
                assert lanes.waits(partition, key) == any(e.key == (partition, key) for e in waiting)
