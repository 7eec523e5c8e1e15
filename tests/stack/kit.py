"""What tests of the roles share: a service's records, the roles as processes, and a look at whole topics."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.deadline import Deadline
from consumers.snapshots import Snapshots
from engine.inforce import InForce
from engine.policy import default_policy
from ops.stack import Addresses
from schemas.codec import Codec, Unknown
from schemas.headers import headers_for
from schemas.records import Command, Record
from schemas.records.events import StepSpec, StepStarted, WorkflowErrorOccurred, WorkflowStarted
from schemas.registry import Registry
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS

from .starter import Forked, starter

R = TypeVar("R", bound=Record)
#: Long enough for a busy machine: only a test that fails waits for so long.
WAIT_S = 90.0


def wait_for(what: str, check: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """The first true answer of `check`; fails with `what` when there is none in time."""
    end = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


def ends_of(servers: str, topic: str = EVENTS) -> list[TopicPartition]:
    """Where each partition of a topic ends now."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "log_level": 0})
    try:
        places = [TopicPartition(topic, p) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
        return [TopicPartition(topic, p.partition, consumer.get_watermark_offsets(p, 10)[1]) for p in places]
    finally:
        consumer.close()


def stand_at(servers: str, group: str, places: Sequence[TopicPartition]) -> None:
    """Commit these places as the position of a group."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False, "log_level": 0})
    try:
        consumer.commit(offsets=list(places), asynchronous=False)
    finally:
        consumer.close()


def stand_at_end(servers: str, group: str, topic: str = EVENTS) -> None:
    """Commit the end of a topic as the position of a group."""
    stand_at(servers, group, ends_of(servers, topic))


def know_nothing(servers: str, objects: str, group: str, places: Sequence[TopicPartition]) -> None:
    """Leave recovery a snapshot without workflows for each of these places, so that it reads nothing before them."""
    cluster = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).cluster_id
    snapshots = Snapshots(objects, cluster=cluster, group=group, topic=EVENTS)
    try:
        for place in places:
            snapshots.save(place.partition, place.offset, (), (), InForce(default_policy()))
        snapshots.settle(Deadline(WAIT_S))
    finally:
        snapshots.close()


class Topics:
    """Reads whole topics and writes records as a service would."""

    def __init__(self, at: Addresses) -> None:
        self.at = at
        self.registry = Registry(at.registry)
        self.codec = Codec(self.registry)
        self._read: dict[str, list[Message]] = {}
        self._reading = threading.Lock()
        self.producer = Producer(
            {"bootstrap.servers": at.kafka, "acks": "all", "enable.idempotence": True, "message.max.bytes": 16_000_000}
        )

    def read(self, topic: str, of: set[str] | None = None) -> list[Message]:
        """Every record of a topic, of some keys only. What was read before is not asked for again."""
        with self._reading:
            found = self._read.setdefault(topic, [])
            lows = self._read_on(topic, found)
            found[:] = [m for m in found if (m.offset() or 0) >= lows[m.partition() or 0]]
            if of is None:
                return list(found)
            return [m for m in found if (m.key() or b"").decode("utf-8", "replace") in of]  # type: ignore[union-attr]

    def _read_on(self, topic: str, found: list[Message]) -> dict[int, int]:
        """Add what has come since; where each partition begins now."""
        consumer = Consumer(
            {"bootstrap.servers": self.at.kafka, "group.id": "reader", "enable.auto.commit": False, "log_level": 0}
        )
        try:
            count = len(consumer.list_topics(topic, 10).topics[topic].partitions)
            ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), 10) for p in range(count)}
            starts = {p: low for p, (low, _) in ends.items()}
            for message in found:
                starts[message.partition() or 0] = max(starts[message.partition() or 0], (message.offset() or 0) + 1)
            if any(starts[p] > high for p, (_, high) in ends.items()):  # the topic was made anew
                found.clear()
                starts = {p: low for p, (low, _) in ends.items()}
            open_ = {p for p, (_, high) in ends.items() if high > starts[p]}
            consumer.assign([TopicPartition(topic, p, starts[p]) for p in sorted(open_)])
            end = time.monotonic() + WAIT_S
            while open_ and time.monotonic() < end:
                message = consumer.poll(0.5)
                if message is None or message.error():
                    continue
                if (message.offset() or 0) + 1 >= ends[message.partition() or 0][1]:
                    open_.discard(message.partition() or 0)
                found.append(message)
            assert not open_, f"{topic} could not be read to its end"
            return {p: low for p, (low, _) in ends.items()}
        finally:
            consumer.close()

    def records(self, topic: str, *, of: set[str]) -> list[Record]:
        """Decoded records of some workflows."""
        found = [self.codec.decode(m.value()) for m in self.read(topic, of)]
        return [r for r in found if not isinstance(r, Unknown)]

    def events(self, kind: type[R], of: set[str]) -> list[R]:
        """Events of one type, of some workflows."""
        return [r for r in self.records(EVENTS, of=of) if isinstance(r, kind)]

    def commands(self, of: set[str]) -> list[Command]:
        """Commands to some workflows."""
        return [r for r in self.records(COMMANDS, of=of) if isinstance(r, Command)]

    def dead_letters(self, key: bytes | None) -> list[Message]:
        """Dead letters with this key."""
        return [m for m in self.read(DEAD_LETTERS) if m.key() == key]

    def put(self, *records: Record, headers: list[tuple[str, bytes]] | None = None) -> None:
        """Write events and wait until they are in the log."""
        for record in records:
            self.raw(
                record.workflow_id.encode(), self.codec.encode(record), headers or headers_for(record), flush=False
            )
        assert self.producer.flush(20) == 0

    def raw(
        self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]] | None = None, flush: bool = True
    ) -> None:
        """Write bytes to the event topic."""
        self.producer.produce(EVENTS, key=key, value=value, headers=headers or [])  # type: ignore[arg-type]
        if flush:
            assert self.producer.flush(20) == 0


def build(kind: type[R], workflow_id: str, **fields: Any) -> R:
    """An event of a workflow, now, with a fresh id."""
    return kind(
        event_id=str(uuid.uuid4()),
        workflow_id=workflow_id,
        workflow_type="development",
        occurred_at=time.time_ns() // 1000,
        producer="test",
        **fields,
    )


def failing(workflow_id: str, code: str = "TIMEOUT", step: str = "build") -> list[Record]:
    """A workflow that starts a step, which fails. TIMEOUT is answered with a command at once, without backoff."""
    run_id = str(uuid.uuid4())
    return [
        build(WorkflowStarted, workflow_id, workflow_version="1", steps=(StepSpec(step_id=step),)),
        build(StepStarted, workflow_id, step_id=step, step_run_id=run_id),
        build(
            WorkflowErrorOccurred,
            workflow_id,
            error_id=str(uuid.uuid4()),
            step_id=step,
            step_run_id=run_id,
            error_code=code,
            error_message="it failed",
            detected_by="service",
        ),
    ]


class Role:
    """`kintsugi run ROLE` as a process."""

    def __init__(self, role: str, environment: dict[str, str], log: Path, *arguments: str, crash_at: str = "") -> None:
        self.log_file = log
        self.process: subprocess.Popen[bytes] | Forked
        if not crash_at:
            self.process = starter().start(["run", role, *arguments], environment, log)
            return
        # The point is armed by the import.
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "run", role, *arguments],
                env={**environment, "KINTSUGI_CRASH_AT": crash_at},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The process's log so far."""
        found = []
        for line in self.log_file.read_text(encoding="utf-8").splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
        return found

    def wait_log(self, event: str, timeout_s: float = WAIT_S, **fields: Any) -> dict[str, Any]:
        """The first log line of this event with these fields."""

        def find() -> dict[str, Any] | None:
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode}:\n{self.log_file.read_text()[-3000:]}"
            )
            return next(
                (x for x in self.lines if x.get("event") == event and all(x.get(k) == v for k, v in fields.items())),
                None,
            )

        found: dict[str, Any] = wait_for(f"{event} {fields}", find, timeout_s)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        url = self.wait_log("started")["metrics"]
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        total = 0.0
        for line in text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
