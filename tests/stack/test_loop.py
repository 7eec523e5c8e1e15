"""The loop with a handler that only takes notes, on real Kafka and both group protocols."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import REGISTRY

from consumers.clock import BrokerClock
from consumers.deadline import Deadline
from consumers.handler import LogRange
from consumers.kafka import consumer_settings
from consumers.loop import Loop
from ops import stack
from ops.stack import Addresses
from schemas.errors import FatalError, FencedError, KintsugiError, RetriableError

from .kit import wait_for
from .stacks import own_stack

PARTITIONS = 4
PROTOCOLS = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range"},
    "kip-848": {"group.protocol": "consumer"},
}


class Notes:
    """Notes every record; fails when told to."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bytes]] = []
        self.ranges: list[LogRange] = []
        self.mine: set[int] = set()
        self.gone: list[int] = []
        self.fail: dict[int, list[KintsugiError]] = {}
        self.fail_assigned: dict[int, list[KintsugiError]] = {}
        self.fail_flush: dict[int, list[KintsugiError]] = {}
        self.start_at: dict[int, int] = {}
        self.seconds_per_batch = 0.0

    def assigned(self, log: LogRange) -> int | None:
        self.ranges.append(log)
        if self.fail_assigned.get(log.partition):
            raise self.fail_assigned[log.partition].pop()
        self.mine.add(log.partition)
        return self.start_at.get(log.partition)

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        assert partition in self.mine
        time.sleep(self.seconds_per_batch)
        if self.fail.get(partition):
            raise self.fail[partition].pop()
        for message in messages:
            self.seen.append((partition, message.offset() or 0, bytes(message.value() or b"")))  # type: ignore[arg-type]

    def flush(self) -> Mapping[int, KintsugiError]:
        handled = {p for p, _, _ in self.seen} & self.mine
        return {p: errors.pop() for p, errors in self.fail_flush.items() if errors and p in handled}

    def committed(self, partition: int, next_offset: int) -> None:
        assert partition in self.mine

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        return None

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        assert not deadline.passed
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        self.mine.difference_update(partitions)
        self.gone.extend(partitions)

    @property
    def values(self) -> list[bytes]:
        return [value for _, _, value in self.seen]


class Member:
    """A loop on a thread."""

    def __init__(self, servers: str, topic: str, group: str, extra: Mapping[str, str], notes: Notes) -> None:
        self.notes = notes
        settings = {**consumer_settings(servers, group, extra), "client.id": "test"}
        if "session.timeout.ms" in settings:
            settings["session.timeout.ms"] = 2_000
        self.loop = Loop("test", topic, settings, notes, BrokerClock())
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except KintsugiError as error:
            self.error = error

    def stop(self) -> None:
        self.loop.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


class Place:
    """A topic and a group of one test's own."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.topic = f"loop-{uuid.uuid4()}"
        self.group = f"loop-{uuid.uuid4()}"
        self.extra: Mapping[str, str] = {}
        self.members: list[Member] = []
        self.admin = AdminClient({"bootstrap.servers": servers})
        self.admin.create_topics([NewTopic(self.topic, PARTITIONS, 1)])[self.topic].result(20)
        # The controller has made the topic; the broker learns of it a moment later, and until then denies it.
        wait_for("the topic", lambda: self._leaders() == PARTITIONS)
        self.producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
        self.sent: list[bytes] = []

    def _leaders(self) -> int:
        found = self.admin.list_topics(self.topic, 10).topics[self.topic].partitions.values()
        return sum(p.leader >= 0 for p in found)

    def join(self, notes: Notes | None = None) -> Member:
        member = Member(self.servers, self.topic, self.group, self.extra, notes or Notes())
        self.members.append(member)
        return member

    def send(self, count: int, partition: int | None = None) -> None:
        for number in range(len(self.sent), len(self.sent) + count):
            self.sent.append(b"%d" % number)
            self.producer.produce(
                self.topic, self.sent[-1], partition=number % PARTITIONS if partition is None else partition
            )
        assert self.producer.flush(20) == 0

    def committed(self) -> int:
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": self.group, "log_level": 0})
        try:
            found = consumer.committed([TopicPartition(self.topic, p) for p in range(PARTITIONS)], 10)
            return sum(max(0, tp.offset) for tp in found)
        finally:
            consumer.close()


@pytest.fixture
def place(addresses: Addresses) -> Iterator[Place]:
    found = Place(addresses.kafka)
    yield found
    for member in found.members:
        member.loop.stop()
    for member in found.members:
        member.thread.join(20)
    found.admin.delete_topics([found.topic])[found.topic].result(20)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_record_is_handled_in_order_and_committed(place: Place, protocol: str) -> None:
    place.extra = PROTOCOLS[protocol]
    place.send(1000)
    member = place.join()
    wait_for("all records", lambda: len(member.notes.seen) >= 1000)
    assert sorted(member.notes.values) == sorted(place.sent)
    for partition in range(PARTITIONS):
        offsets = [o for p, o, _ in member.notes.seen if p == partition]
        assert offsets == list(range(250))
    member.stop()
    assert member.error is None
    assert place.committed() == 1000
    again = place.join()
    place.send(4)
    wait_for("the new records", lambda: len(again.notes.seen) >= 4)
    assert again.notes.values == sorted(place.sent[-4:], key=again.notes.values.index)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partitions_move_between_members_without_loss_or_repetition(place: Place, protocol: str) -> None:
    place.extra = PROTOCOLS[protocol]
    first = place.join()
    wait_for("all partitions", lambda: len(first.notes.mine) == PARTITIONS)
    place.send(200)
    second = place.join()
    wait_for("two shares", lambda: len(first.notes.mine) == 2 == len(second.notes.mine))
    assert first.notes.mine.isdisjoint(second.notes.mine)
    place.send(200)
    wait_for("all records", lambda: len(first.notes.seen) + len(second.notes.seen) >= 400)
    first.stop()
    place.send(200)
    wait_for("all records", lambda: len(first.notes.seen) + len(second.notes.seen) >= 600)
    # Every handover was clean, so nothing was handled twice.
    assert sorted(first.notes.values + second.notes.values) == sorted(place.sent)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_partition_in_trouble_is_rewound_while_the_others_go_on(place: Place, protocol: str) -> None:
    place.extra = PROTOCOLS[protocol]
    notes = Notes()
    notes.fail[1] = [RetriableError("away") for _ in range(3)]
    member = place.join(notes)
    wait_for("all partitions", lambda: len(notes.mine) == PARTITIONS)
    place.send(400)
    wait_for("the others", lambda: sum(p != 1 for p, _, _ in notes.seen) == 300)
    wait_for("all records", lambda: len(notes.seen) >= 400)
    assert [o for p, o, _ in notes.seen if p == 1] == list(range(100))
    assert sum(r.partition == 1 for r in notes.ranges) == 4  # taken up again after each failure
    member.stop()
    assert place.committed() == 400


def test_a_partition_in_trouble_that_leaves_and_comes_back_goes_on(place: Place) -> None:
    """The client keeps a pause when a partition is taken away, and when it is given back; with every protocol, and so
    does the simulation's."""
    first = place.join()
    wait_for("all partitions", lambda: len(first.notes.mine) == PARTITIONS)
    first.notes.fail = {partition: [RetriableError("away")] * 1_000 for partition in range(PARTITIONS)}
    place.send(40)
    # By now each of them waits for seconds.
    wait_for("trouble", lambda: all(len(errors) <= 996 for errors in first.notes.fail.values()))
    second = place.join()
    wait_for("some of them", lambda: second.notes.mine)
    first.notes.fail.clear()
    second.stop()
    wait_for("all partitions", lambda: len(first.notes.mine) == PARTITIONS)
    place.send(40)
    wait_for("all records", lambda: {*first.notes.values, *second.notes.values} == set(place.sent))
    first.stop()


def test_what_was_not_flushed_is_handled_again(place: Place) -> None:
    notes = Notes()
    place.send(40, partition=2)
    notes.fail_flush[2] = [RetriableError("the broker is away")]
    member = place.join(notes)
    wait_for("all records", lambda: len({o for _, o, _ in notes.seen}) == 40)
    wait_for("the commit", lambda: place.committed() == 40)
    assert sum(r.partition == 2 for r in notes.ranges) == 2
    assert [offset for _, offset, _ in notes.seen].count(0) == 2, "the batch that was not durable came again"
    member.stop()


def test_a_fenced_partition_is_dropped_and_its_batch_not_committed(place: Place) -> None:
    notes = Notes()
    notes.fail[0] = [FencedError("another owner")]
    member = place.join(notes)
    wait_for("all partitions", lambda: len(notes.mine) == PARTITIONS)
    place.send(1, partition=0)
    wait_for("the drop", lambda: notes.gone == [0])
    assert notes.values == []
    # Still assigned by the group: it is taken up again, from the group's position.
    wait_for("the record", lambda: notes.values == [b"0"])
    member.stop()


def test_lag_is_told_while_a_partition_waits(place: Place) -> None:
    """Nothing is fetched of a partition that waits; the end of its log is seen at each attempt to go on."""
    notes = Notes()
    place.send(3, partition=2)
    notes.fail_assigned[2] = [RetriableError("away") for _ in range(1_000)]
    member = place.join(notes)
    wait_for("the others", lambda: len(notes.mine) == PARTITIONS - 1)
    wait_for("the lag", lambda: lag(place, 2) == 3)
    place.send(4, partition=2)
    wait_for("the lag", lambda: lag(place, 2) == 7)
    notes.fail_assigned.clear()
    wait_for("no lag", lambda: lag(place, 2) == 0)
    assert len(notes.seen) == 7
    member.stop()


def lag(place: Place, partition: int) -> float | None:
    labels = {"role": "test", "topic": place.topic, "partition": str(partition)}
    return REGISTRY.get_sample_value("kintsugi_consumer_lag_records", labels)


def test_the_handler_says_where_to_start(place: Place) -> None:
    place.send(10, partition=3)
    notes = Notes()
    notes.start_at[3] = 7
    member = place.join(notes)
    wait_for("the tail", lambda: len(notes.seen) == 3)
    assert [o for _, o, _ in notes.seen] == [7, 8, 9]
    member.stop()


@pytest.mark.parametrize("beyond", [5, 99])
def test_a_position_outside_the_log_stops_the_process(place: Place, beyond: int) -> None:
    """FAULTS.md row 24: truncated below the position, or made anew: never a silent jump."""
    place.send(20, partition=0)
    consumer = Consumer({"bootstrap.servers": place.servers, "group.id": place.group})
    consumer.commit(offsets=[TopicPartition(place.topic, 0, beyond)], asynchronous=False)
    consumer.close()
    if beyond == 5:
        where = TopicPartition(place.topic, 0, 10)
        place.admin.delete_records([where])[where].result(20)
    member = place.join()
    member.thread.join(20)
    assert isinstance(member.error, FatalError)
    assert f"position {beyond} is outside the log" in str(member.error)
    assert member.notes.values == []


def test_a_stop_finishes_the_batch_and_commits_it(place: Place) -> None:
    notes = Notes()
    notes.seconds_per_batch = 0.3
    member = place.join(notes)
    wait_for("all partitions", lambda: len(notes.mine) == PARTITIONS)
    place.send(400)
    wait_for("a batch", lambda: notes.seen)
    begun_s = time.monotonic()
    member.stop()
    assert time.monotonic() - begun_s < 5
    assert place.committed() == len(notes.seen)


def test_a_slow_handler_that_is_evicted_comes_back_without_loss(place: Place) -> None:
    """FAULTS.md row 8: a handler that outlasts max.poll.interval loses its partitions, and commits nothing for them."""
    place.extra = {"max.poll.interval.ms": "2500", "session.timeout.ms": "2000"}
    notes = Notes()
    notes.seconds_per_batch = 4.0
    member = place.join(notes)
    wait_for("all partitions", lambda: len(notes.mine) == PARTITIONS)
    place.send(1, partition=0)
    wait_for("the loss", lambda: notes.gone)
    notes.seconds_per_batch = 0.0
    wait_for("all partitions again", lambda: len(notes.mine) == PARTITIONS)
    place.send(10, partition=0)
    wait_for("all records", lambda: set(notes.values) == set(place.sent))
    member.stop()
    assert member.error is None
    assert place.committed() == 11


def test_the_broker_may_die_and_come_back(tmp_path: Path) -> None:
    with own_stack(tmp_path) as at:
        place = Place(at.kafka)
        member = place.join()
        wait_for("all partitions", lambda: len(member.notes.mine) == PARTITIONS)
        place.send(200)
        wait_for("all records", lambda: len(set(member.notes.values)) == 200)
        stack.kill_part("kafka", tmp_path)
        time.sleep(1)
        assert stack.ensure(tmp_path) == at
        place.send(200)
        wait_for("all records", lambda: set(member.notes.values) == set(place.sent), 60)
        member.stop()
        assert member.error is None
        assert place.committed() == 400


class Stored(Notes):
    """Notes that keep a position of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[int, int] = {}
        self.store = True
        self.meanwhile: Callable[[], None] | None = None

    def assigned(self, log: LogRange) -> int | None:
        super().assigned(log)
        if log.partition == 0 and self.meanwhile is not None:
            self.meanwhile()
            self.meanwhile = None
        self.ends[log.partition] = max(self.ends.get(log.partition, 0), log.low)
        return self.ends[log.partition]

    def stored(self, partition: int) -> int:
        if self.store:
            mine = [offset + 1 for p, offset, _ in self.seen if p == partition]
            self.ends[partition] = max([self.ends.get(partition, 0), *mine])
        return self.ends.get(partition, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_handler_with_its_own_position_outlives_a_retention_that_is_faster(place: Place, protocol: str) -> None:
    """What it was about to read is gone: it is asked again where to begin, and the other partitions go on."""
    place.extra = PROTOCOLS[protocol]
    place.send(80)

    def remove() -> None:
        where = TopicPartition(place.topic, 0, 20)
        place.admin.delete_records([where])[where].result(20)

    notes = Stored()
    notes.meanwhile = remove
    member = place.join(notes)
    wait_for("the others", lambda: len(notes.seen) == 60)
    wait_for("the new beginning", lambda: [r.low for r in notes.ranges if r.partition == 0] == [0, 20])
    place.send(40)
    wait_for("what came later", lambda: len(notes.seen) == 100)
    assert sorted(o for p, o, _ in notes.seen if p == 0) == list(range(20, 30))
    member.stop()
    assert member.error is None
    assert place.committed() == 120


@pytest.mark.parametrize("position", [5, 99])
def test_a_handler_with_its_own_position_needs_none_of_the_group(place: Place, position: int) -> None:
    place.send(20, partition=0)
    consumer = Consumer({"bootstrap.servers": place.servers, "group.id": place.group})
    consumer.commit(offsets=[TopicPartition(place.topic, 0, position)], asynchronous=False)
    consumer.close()
    where = TopicPartition(place.topic, 0, 10)
    place.admin.delete_records([where])[where].result(20)
    member = place.join(Stored())
    wait_for("what is left", lambda: [o for _, o, _ in member.notes.seen] == list(range(10, 20)))
    member.stop()
    assert member.error is None


def test_what_a_handler_with_its_own_position_has_not_stored_is_not_committed(place: Place) -> None:
    notes = Stored()
    notes.store = False
    member = place.join(notes)
    wait_for("all partitions", lambda: len(notes.mine) == PARTITIONS)
    place.send(40)
    wait_for("all records", lambda: len(notes.seen) == 40)
    wait_for("the lag", lambda: sum(lag(place, p) or 0 for p in range(PARTITIONS)) == 40)
    assert place.committed() == 0
    notes.store = True
    wait_for("the commit", lambda: place.committed() == 40)
    member.stop()
