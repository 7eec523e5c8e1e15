"""Processes around a measurement: the role under test, an open-loop publisher, and a receiver. Each has its own.

Times of different processes are compared, so all are read from the machine's monotonic clock.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from ops.stack import Addresses
from schemas.codec import Codec
from schemas.headers import Headers, headers_for
from schemas.records import Record
from schemas.registry import Registry
from schemas.topics import EVENTS, MESSAGE_SIZE_BYTES_MAX

WAIT_S = 60.0
#: Between the order to publish and the first record.
LEAD_S = 0.3

_processes = multiprocessing.get_context("spawn")


class Ready(NamedTuple):
    """A record in bytes, so that nothing is encoded while the clock runs."""

    key: bytes
    value: bytes
    headers: Headers


class Published(NamedTuple):
    """When a record was to be sent, how late it was sent, and where and when (broker time) it entered the log."""

    due_s: float
    late_s: float
    partition: int
    timestamp_ms: int


class Received(NamedTuple):
    """A record and when it was in the receiver's hands: monotonic and wall clock."""

    at_s: float
    wall_s: float
    partition: int
    value: bytes


def ready(codec: Codec, record: Record) -> Ready:
    """Encode a record as a service's client would send it."""
    return Ready(record.workflow_id.encode(), codec.encode(record), headers_for(record))


class Role:
    """`kintsugi run ROLE` as a child, in a group of its own that stands at the end of the log."""

    def __init__(self, at: Addresses, folder: Path, role: str, *, group: str, policy: Path | None = None) -> None:
        self._log = folder / f"{role}-{uuid.uuid4().hex[:8]}.log"
        command = [sys.executable, "-m", "ops.cli", "run", role, "--group", group]
        command += ["--policy", str(policy)] if policy is not None else []
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment(at, folder), stdout=out, stderr=subprocess.STDOUT)

    def wait(self, what: str, found: Callable[[Role], bool]) -> None:
        """Until `found`. RuntimeError with the end of its log when the role ended or the time is up."""
        end_s = time.monotonic() + WAIT_S
        while not found(self):
            if self.process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the role under test: no {what}:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def partitions(self) -> set[int]:
        """Partitions it owns, by its log."""
        owned: set[int] = set()
        for line in self._lines():
            if line.get("event") == "partitions assigned":
                owned |= {int(p) for p in line["partitions"]}
            elif line.get("event") in ("partitions handed over", "partitions lost"):
                owned -= {int(p) for p in line["partitions"]}
        return owned

    def metric(self, name: str) -> float:
        """Sum of a metric's samples; NaN before it serves any."""
        url = next((line["metrics"] for line in self._lines() if line.get("event") == "started"), None)
        if url is None:
            return float("nan")
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def caught_up(self) -> bool:
        """Whether it owns partitions and has read the log to its end, as of its last look."""
        return self.metric("kintsugi_partitions_assigned") > 0 and self.metric("kintsugi_consumer_lag_records") == 0

    def processed(self) -> float:
        """Records it has processed so far."""
        return self.metric("kintsugi_events_processed_total")

    def cpu_s(self) -> float:
        """Seconds of CPU it has used so far, in all its threads."""
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    def end(self) -> None:
        """SIGKILL: what it leaves does not matter."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def _lines(self) -> list[dict[str, Any]]:
        whole = self._log.read_text("utf-8").rpartition("\n")[0]  # the last line may still be on its way
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def environment(at: Addresses, folder: Path) -> dict[str, str]:
    """Environment of a role: the stack's addresses, and an object store of this benchmark's own."""
    return {**os.environ, **at.environment(), "KINTSUGI_OBJECTS": (folder / "objects").as_uri()}


def stand_at_end(servers: str, group: str, topic: str = EVENTS) -> None:
    """Commit the end of a topic as a group's position, so that its role acts on nothing written before."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False})
    try:
        ends = [
            TopicPartition(topic, p.partition, consumer.get_watermark_offsets(p, 10)[1])
            for p in _partitions(consumer, topic)
        ]
        consumer.commit(offsets=ends, asynchronous=False)
    finally:
        consumer.close()


def write(servers: str, records: Sequence[Ready]) -> None:
    """Write events as fast as they go, and wait until they are in the log."""
    producer = producer_of(servers)
    for record in records:
        while True:
            try:
                producer.produce(EVENTS, record.value, record.key, headers=cast(Any, record.headers))
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(WAIT_S):
        raise RuntimeError("the broker did not take the records in time")


def timed_writes(servers: str, registry: Registry, record: Record, count: int) -> list[float]:
    """Seconds from produce to the broker's answer, of one record written so often, one after the other."""
    producer, item, taken = producer_of(servers), ready(Codec(registry), record), []
    producer.list_topics(EVENTS, timeout=WAIT_S)
    for _ in range(count):
        began_s = time.perf_counter()
        producer.produce(EVENTS, item.value, item.key, headers=cast(Any, item.headers))
        if producer.flush(WAIT_S):
            raise RuntimeError("the broker did not take a record in time")
        taken.append(time.perf_counter() - began_s)
    return taken


class Publisher:
    """Sends records at fixed moments, whatever becomes of them: an answer that is late delays nothing (open loop).

    `first` are sent before, as a service that has run for a while has sent some: a producer's first records wait for
    its id and its connections.
    """

    def __init__(
        self, servers: str, records: Sequence[Ready], *, per_second: float, first: Sequence[Ready] = ()
    ) -> None:
        self._pipe, theirs = _processes.Pipe()
        arguments = (servers, list(first), list(records), per_second, theirs)
        self._process = _processes.Process(target=_publish, args=arguments, daemon=True)
        self._process.start()
        if not self._pipe.poll(WAIT_S):
            raise RuntimeError("the publisher did not start")
        self._pipe.recv()
        self.begin_s = time.monotonic() + LEAD_S
        self._pipe.send(self.begin_s)

    def result(self, timeout_s: float) -> list[Published]:
        """What became of each record, in order; waits for the end."""
        return cast(list[Published], _answer(self._pipe, self._process, "publisher", timeout_s))


class Receiver:
    """Reads a topic from its end on, until `stop` or the time is up; given keys, until each of them has come once.

    Records with other keys are then not its concern: the log may be somebody else's too.
    """

    def __init__(self, servers: str, topic: str, *, keys: Iterable[bytes] = (), timeout_s: float) -> None:
        self._pipe, theirs = _processes.Pipe()
        arguments = (servers, topic, set(keys), timeout_s, theirs)
        self._process = _processes.Process(target=_receive, args=arguments, daemon=True)
        self._process.start()
        self._timeout_s = timeout_s
        if not self._pipe.poll(WAIT_S):
            raise RuntimeError("the receiver did not start")
        self._pipe.recv()

    def stop(self) -> None:
        """Read no further."""
        self._pipe.send("stop")

    def result(self) -> list[Received]:
        """What came, in order of arrival."""
        return cast(list[Received], _answer(self._pipe, self._process, "receiver", self._timeout_s + WAIT_S))


def _answer(pipe: Connection, process: Any, who: str, timeout_s: float) -> Any:
    try:
        if not pipe.poll(timeout_s):
            raise RuntimeError(f"the {who} gave no answer within {timeout_s:.0f} s")
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"the {who} ended without an answer") from None
    finally:
        process.join(1)
        if process.is_alive():
            process.kill()


def producer_of(servers: str) -> Producer:
    """A producer as a service has it."""
    return Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "message.max.bytes": MESSAGE_SIZE_BYTES_MAX,
            "log_level": 3,
        }
    )


def _publish(servers: str, first: list[Ready], records: list[Ready], per_second: float, pipe: Connection) -> None:
    producer = producer_of(servers)
    producer.list_topics(EVENTS, timeout=WAIT_S)
    for item in first:
        producer.produce(EVENTS, item.value, item.key, headers=cast(Any, item.headers))
    producer.flush(WAIT_S)
    sent: list[Published | None] = [None] * len(records)
    gc.disable()
    pipe.send("ready")
    begin_s: float = pipe.recv()

    def report(number: int, due_s: float, late_s: float) -> Callable[[KafkaError | None, Message], None]:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                place = message.partition()
                sent[number] = Published(due_s, late_s, -1 if place is None else place, message.timestamp()[1])

        return delivered

    for number, record in enumerate(records):
        due_s = begin_s + number / per_second
        wait_s = due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        late_s = time.monotonic() - due_s
        headers = cast(Any, record.headers)
        producer.produce(EVENTS, record.value, record.key, headers=headers, on_delivery=report(number, due_s, late_s))
        producer.poll(0)
    producer.flush(WAIT_S)
    if None in sent:
        raise RuntimeError("a record was not delivered")
    pipe.send(sent)


def _receive(servers: str, topic: str, keys: set[bytes], timeout_s: float, answer: Connection) -> None:
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": "bench", "enable.auto.commit": False, "log_level": 3}
    )
    ends = [
        TopicPartition(topic, p.partition, consumer.get_watermark_offsets(p, WAIT_S)[1])
        for p in _partitions(consumer, topic)
    ]
    consumer.assign(ends)
    consumer.poll(0.5)  # connections to the partitions' leaders are up before the clock runs
    found: list[Received] = []
    gc.disable()
    answer.send("ready")
    end_s = time.monotonic() + timeout_s
    everything = not keys
    while (everything or keys) and (left_s := end_s - time.monotonic()) > 0:
        message = consumer.poll(min(left_s, 0.1))
        if message is None or message.error() is not None:
            if answer.poll():
                break
            continue
        at_s, wall_s, key = time.monotonic(), time.time(), cast(bytes, message.key())
        if everything or key in keys:
            keys.discard(key)
            found.append(Received(at_s, wall_s, message.partition() or 0, cast(bytes, message.value())))
    answer.send(found)
    consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in consumer.list_topics(topic, WAIT_S).topics[topic].partitions]
