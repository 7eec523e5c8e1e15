"""An engine's restore command -> verified state in the service, by size of the state and by how it is kept."""

from __future__ import annotations

import os
import queue
import random
import time
import uuid
from typing import Any, NamedTuple

from confluent_kafka import Producer
from kintsugi_client import Client, Workflow

from consumers.log_reader import LogReader
from schemas.canonical import parse_state, verify_stored
from schemas.codec import Codec
from schemas.headers import headers_for
from schemas.keys import KeyRing
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import CheckpointCreated
from schemas.registry import Registry
from schemas.topics import COMMANDS, EVENTS

from .checkpoint import data_of
from .figures import Benchmark, Figure, Latencies, Setup
from .processes import WAIT_S

#: State sizes: how many restores of each, and the goal for their p99.
SIZES_KB = {1_000: (100, 100.0), 10_000: (30, 1_000.0)}
_QUICK_SHARE = 0.1
_COUNT_MIN = 5
#: First calls pay for connections and for the broker's compilation.
_WARM = 5
_ALWAYS, _NEVER = 0, 2**40


class Kept(NamedTuple):
    """How states are kept, and the client's options for that."""

    name: str
    options: dict[str, Any]


class Target(NamedTuple):
    """A checkpoint and where it is in the log."""

    record: CheckpointCreated
    partition: int
    offset: int


def _measure(setup: Setup) -> list[Figure]:
    keys = setup.folder / "keys.json"
    keys.touch(mode=0o600)
    keys.write_bytes(KeyRing("bench", {"bench": os.urandom(32)}).dump())
    store = {"objects": (setup.folder / "objects").as_uri()}
    sealed = {**store, "keys": keys.as_uri()}
    ways = (
        Kept("in clear, in the log", {**store, "keys": "", "claim_from_bytes": _NEVER}),
        Kept("sealed, in object storage", {**sealed, "claim_from_bytes": _ALWAYS}),
    )
    figures: list[Figure] = []
    for size_kb, (count, goal_ms) in SIZES_KB.items():
        count = max(_COUNT_MIN, int(count * _QUICK_SHARE)) if setup.quick else count
        for kept in ways:
            setup.say(f"{count} restores of {size_kb} KB, {kept.name}")
            figures += _measure_one(setup, kept, size_kb, count, goal_ms)
    return figures


def _measure_one(setup: Setup, kept: Kept, size_kb: int, count: int, goal_ms: float) -> list[Figure]:
    at, name = setup.stack, f"bench-{uuid.uuid4()}"
    arrived: queue.SimpleQueue[float] = queue.SimpleQueue()
    with Client.connect(name, kafka=at.kafka, registry=at.registry, **kept.options) as client:
        kind = client.workflow_type(name, checkpoint_types=())

        @kind.on("ResumeFromCheckpoint")
        def resume(command: Any, held: Workflow | None) -> None:
            client.restore(command)
            arrived.put(time.perf_counter())

        with Registry(at.registry) as registry:
            codec = Codec(registry)
            workflow, target = _saved(setup, client, codec, name, size_kb)
            if not client.listen(ready_timeout_s=WAIT_S):
                raise RuntimeError("the service was given no partition")
            producer = Producer({"bootstrap.servers": at.kafka, "linger.ms": 0})
            taken = Latencies()
            for number in range(_WARM + count):
                command = _command(workflow, target, epoch=number + 1)
                value, headers = codec.encode(command), headers_for(command)
                began_s = time.perf_counter()
                producer.produce(COMMANDS, value, workflow.workflow_id.encode(), headers=headers)  # type: ignore[arg-type]
                producer.poll(0)
                taken.samples_s.append(_next(arrived) - began_s)
            producer.flush(WAIT_S)
            taken.samples_s = taken.samples_s[_WARM:]
    figures = taken.figures(f"restore {size_kb} KB, {kept.name}", p99_ms_max=goal_ms)
    return [*figures, *([] if target.record.state is None else _parts(target.record, size_kb, count))]


def _next(arrived: queue.SimpleQueue[float]) -> float:
    try:
        return arrived.get(timeout=WAIT_S)
    except queue.Empty:
        raise RuntimeError(f"a workflow was not restored within {WAIT_S:.0f} s") from None


def _saved(setup: Setup, client: Client, codec: Codec, name: str, size_kb: int) -> tuple[Workflow, Target]:
    """A workflow with one checkpoint, and where that is."""
    with LogReader(setup.stack.kafka) as log:
        before = {partition: end for partition, (_, end) in log.bounds(EVENTS).items()}
        workflow = client.kind(name).begin(data_of(size_kb * 1000, random.Random(size_kb)))
        with workflow.step("build") as step:
            step.checkpoint(timeout_s=WAIT_S)
        partition = workflow.known_partition()
        for message in log.read(EVENTS, {partition: (before[partition], log.bounds(EVENTS)[partition][1])}):
            record = codec.decode(message.value())
            if isinstance(record, CheckpointCreated) and record.workflow_id == workflow.workflow_id:
                return workflow, Target(record, partition, message.offset() or 0)
    raise RuntimeError("the checkpoint is not in the log")


def _command(workflow: Workflow, target: Target, *, epoch: int) -> ResumeFromCheckpoint:
    now_us = time.time_ns() // 1000
    return ResumeFromCheckpoint(
        event_id=str(uuid.uuid4()),
        workflow_id=workflow.workflow_id,
        workflow_type=workflow.kind.name,
        occurred_at=now_us,
        producer="bench",
        command_id=str(uuid.uuid4()),
        expires_at=now_us + int(WAIT_S * 1_000_000),
        reason="measured",
        actor="engine",
        epoch=epoch,
        last_sequence=target.record.sequence,
        checkpoint_id=target.record.checkpoint_id,
        checkpoint_partition=target.partition,
        checkpoint_offset=target.offset,
        checkpoint_digest=target.record.digest,
    )


def _parts(record: CheckpointCreated, size_kb: int, count: int) -> list[Figure]:
    """What a restore cannot do without: the digest, and the state out of its bytes."""
    made = Latencies()
    for _ in range(count):
        began_s = time.perf_counter()
        stored = record.state or b""
        parse_state(verify_stored(stored, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest))
        made.samples_s.append(time.perf_counter() - began_s)
    note = f"{len(record.state or b''):,} -> {record.size_bytes:,} bytes"
    return [
        Figure(name=f"restore {size_kb} KB: unpack, digest, parse p50", measured=made.ms(0.5), unit="ms", note=note)
    ]


BENCHMARK = Benchmark(
    name="restore",
    measures="a restore command until its service has the verified state and has told the log so",
    compared_to="proving and parsing the same bytes alone, in the same run",
    run=_measure,
)
