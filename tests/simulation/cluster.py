"""A broker in memory: partitions, a consumer group, and clients that stand for those of the client library.

The order of everything follows from the seed. Each call of a client may fail, and is a place where its process may die
or be frozen while others go on (`Nature.touch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol, cast

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from schemas.errors import DecodeError
from schemas.records import Record

PARTITIONS = 2
#: Records that one call of a consumer gives at most: batches stay small, and their ends are many.
CONSUME_MAX = 6
#: What a producer's flush takes when the broker does not answer, as long as the client library waits.
FLUSH_US = 30_000_000

Delivered = Callable[[KafkaError | None, Any], None]


class Nature(Protocol):
    """What happens to clients beside what they ask for."""

    rng: Random
    now_us: int
    broker_away: bool

    def touch(self, member: Any) -> None:
        """A client does I/O: its process may die here, or stand still."""

    def strikes(self, what: str, chance: float) -> bool:
        """Whether a fault happens now; counts it."""


class Entry:
    """A record in the log, as the client library gives it."""

    __slots__ = ("_headers", "_key", "_offset", "_partition", "_time_ms", "_topic", "_value", "serial")

    def __init__(self, place: tuple[str, int, int], time_ms: int, key: Any, value: Any, headers: Any, serial: int):
        self._topic, self._partition, self._offset = place
        self._time_ms, self._key, self._value, self._headers = time_ms, key, value, headers
        #: How many records were written before this one, in all partitions.
        self.serial = serial

    def __len__(self) -> int:
        return len(self._value)

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 2, self._time_ms

    def key(self) -> bytes | None:
        return cast(bytes | None, self._key)

    def value(self) -> bytes:
        return cast(bytes, self._value)

    def headers(self) -> Any:
        return self._headers


class Tokens:
    """A codec that keeps the records themselves: what Avro does to them is tested elsewhere."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def encode(self, record: Record) -> bytes:
        """A token for the record."""
        self._records.append(record)
        return b"%d" % (len(self._records) - 1)

    def decode(self, value: bytes | None) -> Record:
        """The record again; DecodeError for anything else."""
        if value is None or not value.isdigit():
            raise DecodeError("bad_magic", "no token")
        return self._records[int(value)]

    def kind_of(self, value: bytes | None) -> type[Record] | None:
        """Type of the record; None for anything else."""
        return type(self._records[int(value)]) if value and value.isdigit() else None


class Waiting(NamedTuple):
    """A record on its way to the broker."""

    topic: str
    partition: int
    key: Any
    value: bytes
    headers: Any
    on_delivery: Delivered | None


class Cluster:
    """Topics, and what is on its way to them from processes that do not wait for it any more."""

    def __init__(self, nature: Nature) -> None:
        self.nature = nature
        self.topics: dict[str, list[list[Entry]]] = {}
        self.ghosts: list[Waiting] = []
        self.serial = 0

    def log(self, topic: str) -> list[list[Entry]]:
        """All partitions of a topic."""
        return self.topics.setdefault(topic, [[] for _ in range(PARTITIONS)])

    def write(self, record: Waiting) -> Entry:
        """Append a record."""
        partition = record.partition if record.partition >= 0 else partition_of(record.key)
        log = self.log(record.topic)[partition]
        self.serial += 1
        place = (record.topic, partition, len(log))
        log.append(Entry(place, self.nature.now_us // 1000, record.key, record.value, record.headers, self.serial))
        return log[-1]

    def land(self) -> None:
        """What was on its way from a producer that is gone arrives after all."""
        if self.ghosts:
            self.write(self.ghosts.pop(0))


def partition_of(key: bytes | None) -> int:
    """Where a key's records are."""
    return 0 if not key else key[0] % PARTITIONS


class Group:
    """A consumer group's coordinator. `held`: who has a partition until he gives it back or is expelled."""

    def __init__(self) -> None:
        self.generation = 0
        self.members: list[Client] = []
        self.wanted: dict[int, Client] = {}
        self.held: dict[int, Client] = {}
        self.committed: dict[int, int] = {}
        #: (partition, offset, records written before it was committed)
        self.commits: list[tuple[int, int, int]] = []

    def rebalance(self, rng: Random) -> None:
        """Give every partition to somebody."""
        self.generation += 1
        some = rng.sample(self.members, len(self.members))
        self.wanted = {p: some[p % len(some)] for p in range(PARTITIONS)} if some else {}

    def join(self, member: Client, rng: Random) -> None:
        """A member comes, or comes again."""
        self.members.append(member)
        self.rebalance(rng)

    def expel(self, member: Client, rng: Random) -> None:
        """A member is gone, or was silent for too long: others get its partitions at once."""
        if member in self.members:
            self.members.remove(member)
            self.held = {p: who for p, who in self.held.items() if who is not member}
            self.rebalance(rng)


class Client:
    """A consumer. Stands for `confluent_kafka.Consumer`."""

    def __init__(self, cluster: Cluster, group: Group, member: Any, settings: dict[str, Any]) -> None:
        self._cluster, self._group, self._member = cluster, group, member
        self._nature = cluster.nature
        self._incremental = settings.get("group.protocol") == "consumer"
        self._on_commit = settings["on_commit"]
        self._answers: list[tuple[KafkaError | None, Sequence[TopicPartition]]] = []
        self._seen = 0
        self._owned: set[int] = set()
        self._paused: set[int] = set()
        self.positions: dict[int, int] = {}
        self.topic = ""

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        (self.topic,) = topics
        self._callbacks = on_assign, on_revoke, on_lost
        self._group.join(self, self._nature.rng)

    def poll(self, _: float) -> Entry | None:
        self._nature.touch(self._member)
        for error, places in self._answers:
            self._on_commit(error, places)
        self._answers.clear()
        self._regroup()
        found = self._take(1)
        return found[0] if found else None

    def consume(self, most: int, _: float) -> list[Entry]:
        return self._take(self._nature.rng.randint(0, min(most, CONSUME_MAX)))

    def _take(self, most: int) -> list[Entry]:
        if self._nature.broker_away:
            return []
        log = self._cluster.log(self.topic)
        ready = [p for p, at in self.positions.items() if p not in self._paused and at < len(log[p])]
        if not ready or not most:
            return []
        partition = self._nature.rng.choice(ready)
        at = self.positions[partition]
        found = log[partition][at : at + most]
        self.positions[partition] = at + len(found)
        return found

    def _regroup(self) -> None:
        group, (on_assign, on_revoke, on_lost) = self._group, self._callbacks
        if self not in group.members:
            lost, self._owned = self._owned, set()
            if lost:
                on_lost(self, [TopicPartition(self.topic, p) for p in sorted(lost)])
            self._drop(lost)
            group.join(self, self._nature.rng)
        wanted = {p for p, who in group.wanted.items() if who is self}
        if self._seen != group.generation:
            leaving = self._owned - wanted if self._incremental else set(self._owned)
            if leaving:
                on_revoke(self, [TopicPartition(self.topic, p) for p in sorted(leaving)])
            self._owned -= leaving
            self._drop(leaving)
            for partition in leaving:
                if group.held.get(partition) is self:
                    del group.held[partition]
            self._seen = group.generation
        free = {p for p in wanted - self._owned if p not in group.held}
        if free and (self._incremental or free | self._owned == wanted) and self in group.members:
            group.held.update(dict.fromkeys(free, self))
            self._owned |= free
            on_assign(self, [TopicPartition(self.topic, p) for p in sorted(free)])

    def _drop(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self.positions.pop(partition, None)  # a pause outlives it, as with librdkafka

    def assign(self, places: Sequence[TopicPartition]) -> None:
        self.positions = {tp.partition: tp.offset for tp in places}

    def incremental_assign(self, places: Sequence[TopicPartition]) -> None:
        self.positions.update({tp.partition: tp.offset for tp in places})

    def incremental_unassign(self, places: Sequence[TopicPartition]) -> None:
        self._drop([tp.partition for tp in places])

    def pause(self, places: Sequence[TopicPartition]) -> None:
        self._paused |= {tp.partition for tp in places}

    def resume(self, places: Sequence[TopicPartition]) -> None:
        self._paused -= {tp.partition for tp in places}

    def seek(self, place: TopicPartition) -> None:
        self.positions[place.partition] = place.offset

    def committed(self, places: Sequence[TopicPartition], _: float) -> list[TopicPartition]:
        self._nature.touch(self._member)
        if self._nature.broker_away or self._nature.strikes("lookup_failed", 0.03):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        partition = places[0].partition
        offset = self._group.committed.get(partition, OFFSET_INVALID)
        self._member.taken_at[partition] = offset
        return [TopicPartition(self.topic, partition, offset)]

    def get_watermark_offsets(self, place: TopicPartition, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, len(self._cluster.log(self.topic)[place.partition])

    def commit(self, *, offsets: Sequence[TopicPartition], asynchronous: bool) -> None:
        self._nature.touch(self._member)
        error: KafkaError | None = None
        mine = self in self._group.members and all(self._group.held.get(tp.partition) is self for tp in offsets)
        if not mine:
            error = KafkaError(KafkaError.ILLEGAL_GENERATION)
            self._nature.strikes("commit_refused", 1)
        elif self._nature.broker_away or self._nature.strikes("commit_lost", 0.02):
            error = KafkaError(KafkaError._TIMED_OUT)
        if mine and (error is None or self._nature.rng.random() < 0.5):
            for tp in offsets:
                self._group.committed[tp.partition] = tp.offset
                self._group.commits.append((tp.partition, tp.offset, self._cluster.serial))
        if asynchronous:
            self._answers.append((error, offsets))
        elif error is not None:
            raise KafkaException(error)

    def close(self) -> None:
        self._group.expel(self, self._nature.rng)


class Sender:
    """An idempotent producer. Stands for `confluent_kafka.Producer`: records are written in order, answers are late."""

    def __init__(self, cluster: Cluster, member: Any) -> None:
        self._cluster, self._member, self._nature = cluster, member, cluster.nature
        self._queue: list[Waiting] = []
        self._answers: list[tuple[Delivered, KafkaError | None, Any]] = []

    def produce(
        self, topic: str, value: bytes, key: Any, partition: int, *, on_delivery: Delivered, headers: Any, **_: Any
    ) -> None:
        self._nature.touch(self._member)
        self._member.sends(value)
        self._queue.append(Waiting(topic, partition, key, value, headers, on_delivery))

    def poll(self, _: float) -> int:
        self._nature.touch(self._member)
        if not self._nature.broker_away:
            rng = self._nature.rng
            self._write(rng.randint(0, len(self._queue)))
            self._answer(rng.randint(0, len(self._answers)))
        return 0

    def flush(self, _: float) -> int:
        self._nature.touch(self._member)
        if self._nature.broker_away:
            self._write(0)
            self._nature.now_us += FLUSH_US // 10
            return len(self._queue)
        self._write(len(self._queue))
        self._answer(len(self._answers))
        return 0

    def purge(self) -> None:
        """Nobody waits for it any more; what has left already may arrive later."""
        rng = self._nature.rng
        self._cluster.ghosts += self._queue[: rng.randint(0, len(self._queue))]
        self._queue.clear()
        self._answers.clear()

    def _write(self, count: int) -> None:
        for _ in range(count):
            record = self._queue.pop(0)
            assert record.on_delivery is not None
            if self._nature.strikes("record_lost", 0.01):
                self._answers.append((record.on_delivery, KafkaError(KafkaError._MSG_TIMED_OUT), self._failed(record)))
                continue
            entry = self._cluster.write(record)
            error = KafkaError(KafkaError._MSG_TIMED_OUT) if self._nature.strikes("answer_lost", 0.02) else None
            self._answers.append((record.on_delivery, error, entry))
            if error is None and self._nature.strikes("written_twice", 0.02):
                self._cluster.write(record)

    def _failed(self, record: Waiting) -> Entry:
        return Entry((record.topic, record.partition, -1), 0, record.key, record.value, record.headers, 0)

    def _answer(self, count: int) -> None:
        answers, self._answers = self._answers[:count], self._answers[count:]
        for on_delivery, error, entry in answers:
            on_delivery(error, entry)
