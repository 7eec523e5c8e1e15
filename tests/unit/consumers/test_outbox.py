"""How far the effects of a partition have arrived, while later ones are on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from consumers import outbox
from consumers.clock import BrokerClock
from consumers.outbox import Outbox
from schemas.errors import RetriableError

LOST = KafkaError(KafkaError._MSG_TIMED_OUT)


class Sent:
    """A record that was handed over."""

    def topic(self) -> str:
        return "workflow.events"

    def timestamp(self) -> tuple[int, int]:
        return 1, 1


class Wire:
    """Stands for the client library's producer: the test says when, and in what order, the broker answers."""

    def __init__(self, _: dict[str, Any]) -> None:
        self.under_way: list[Callable[[KafkaError | None, Any], None]] = []
        self.answered: list[tuple[Callable[[KafkaError | None, Any], None], KafkaError | None]] = []

    def produce(self, *_: Any, on_delivery: Callable[[KafkaError | None, Any], None], **__: Any) -> None:
        self.under_way.append(on_delivery)

    def poll(self, _: float) -> None:
        for answer, error in self.answered:
            answer(error, Sent())
        self.answered.clear()

    def flush(self, _: float) -> None:
        self.answered += [(answer, None) for answer in self.under_way]
        self.under_way.clear()
        self.poll(0)

    def purge(self) -> None:
        self.under_way.clear()


@pytest.fixture(autouse=True)
def wired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "Producer", Wire)


def made() -> tuple[Outbox, Wire]:
    box = Outbox({}, BrokerClock())
    wire = box._producer
    assert isinstance(wire, Wire)
    return box, wire


def send(box: Outbox, cause: int) -> None:
    box.send("workflow.events", b"key", b"value", [], cause=cause)


def answer(wire: Wire, which: int, error: KafkaError | None = None) -> None:
    wire.answered.append((wire.under_way.pop(which), error))


def test_what_is_on_its_way_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "IN_FLIGHT_RECORDS_MAX", 2)
    box, wire = made()
    send(box, 0)
    assert (box.on_its_way, box.crowded) == (1, False)
    send(box, 1)
    assert box.crowded
    answer(wire, 0)
    answer(wire, 0, LOST)
    box.poll()
    assert (box.on_its_way, box.crowded) == (0, False), "what was lost is on its way no more"


def test_a_producer_that_is_renewed_has_nothing_on_its_way() -> None:
    box, _ = made()
    send(box, 0)
    box._broken = True
    box.poll()
    assert box.on_its_way == 0


def test_a_batch_without_effects_is_durable_at_once() -> None:
    box, _ = made()
    box.end_batch(3, 17)
    assert box.durable(3) == 17
    assert box.durable(3) is None, "nothing more since"


def test_a_batch_waits_for_those_before_it() -> None:
    box, wire = made()
    for offset in (10, 20):
        send(box, 0)
        box.end_batch(0, offset)
    answer(wire, 1)
    assert box.poll() == {}
    assert box.durable(0) is None, "the first is still on its way"
    answer(wire, 0)
    box.poll()
    assert box.durable(0) == 20


def test_one_partition_does_not_wait_for_another() -> None:
    box, wire = made()
    for cause in (0, 1):
        send(box, cause)
        box.end_batch(cause, 5)
    answer(wire, 1)
    box.poll()
    assert (box.durable(0), box.durable(1)) == (None, 5)


def test_what_is_lost_is_told_and_never_durable() -> None:
    box, wire = made()
    send(box, 0)
    box.end_batch(0, 10)
    send(box, 0)
    box.end_batch(0, 20)
    answer(wire, 0, LOST)
    failed = box.poll()
    assert isinstance(failed[0], RetriableError)
    box.flush()
    assert box.durable(0) is None


def test_a_partition_begun_anew_does_not_hear_of_what_was_before() -> None:
    box, wire = made()
    send(box, 0)
    box.end_batch(0, 900)
    box.forget(0)
    send(box, 0)
    box.end_batch(0, 30)
    answer(wire, 0)
    box.poll()
    assert box.durable(0) is None
    box.flush()
    assert box.durable(0) == 30


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12), st.data())
def test_durable_is_what_has_arrived_with_all_before_it(batches: list[tuple[int, int]], data: st.DataObject) -> None:
    """Given batches of any sizes, when answers come in any order, then a model that looks at all of them agrees."""
    box, wire = made()
    sent: list[tuple[int, int]] = []
    for number, (cause, size) in enumerate(batches):
        for _ in range(size):
            send(box, cause)
            sent.append((cause, number))
        box.end_batch(cause, number + 1)
    at = dict.fromkeys(range(3), 0)
    while True:
        box.poll()
        for cause in at:
            at[cause] = box.durable(cause) or at[cause]
            waiting = [number for c, number in sent if c == cause]
            ended = [n + 1 for n, (c, _) in enumerate(batches) if c == cause and (not waiting or n < min(waiting))]
            assert at[cause] == max(ended, default=0)
        if not wire.under_way:
            return
        which = data.draw(st.integers(0, len(wire.under_way) - 1))
        answer(wire, which)
        sent.pop(which)
