"""The scrub over 100,000 live workflows: checkpoints proven per second, and what that takes in memory."""

from __future__ import annotations

import contextlib
import random
import resource
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import KafkaError, Message
from psycopg import sql

from consumers.clock import BrokerClock
from consumers.inspecting import Inspection
from consumers.kafka import producer_settings
from consumers.keeper.desk import Desk
from consumers.keeper.places import Places
from consumers.keeper.scrub import Scrubber
from consumers.outbox import Outbox
from engine.events import Delivered
from ops.keeper_tables import KeeperTables
from projections.migrate import migrate
from projections.store import Store
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.codec import Codec
from schemas.records.events import CheckpointCreated, StepSpec, WorkflowCompleted, WorkflowStarted
from schemas.registry import Registry
from schemas.topics import EVENTS

from .errors import build
from .figures import Benchmark, Figure, Setup
from .processes import WAIT_S, Ready, producer_of, ready, write
from .workload import document

WORKFLOWS, WORKFLOWS_QUICK = 100_000, 2_000
#: Of one state, before compression; stored as it is.
STATE_SIZE_BYTES = 1_000
_BATCH_RECORDS = 1_000
_GENERATION = "bench_scrub"
_TIMEOUT_S = 600.0
#: No bound: what is measured is how fast it can.
_PER_SECOND = 1e9
_MIB = 1024 * 1024


class Proven(NamedTuple):
    """What the child reports."""

    checkpoints: int
    seconds: float
    cpu_s: float
    read_alone_s: float
    peak_rss_bytes: int
    before_rss_bytes: int


def _measure(setup: Setup) -> list[Figure]:
    at, count = setup.stack, WORKFLOWS_QUICK if setup.quick else WORKFLOWS
    ids: list[str] = []
    with Registry(at.registry) as registry, psycopg.connect(at.postgres, autocommit=True) as connection:
        codec = Codec(registry)
        try:
            _drop(connection)
            migrate(at.postgres, generation=_GENERATION)
            setup.say(f"{count:,} live workflows with a checkpoint of {STATE_SIZE_BYTES:,} bytes each")
            ids = [workflow_id for batch in _fill(setup, codec, count) for workflow_id in batch]
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(_GENERATION, "workflow_checkpoints")))
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(_GENERATION, "workflows")))
            proven = _in_a_child(setup)
        finally:
            _drop(connection)
            write(at.kafka, [ready(codec, build(WorkflowCompleted, i)) for i in ids])
    if proven.checkpoints != count:
        raise RuntimeError(f"{proven.checkpoints:,} of {count:,} checkpoints were proven")
    rate = proven.checkpoints / proven.seconds
    return [
        Figure(name="scrub", measured=rate, unit="checkpoints/s", note="read, proven, compared with their rows"),
        Figure(
            name="reading alone",
            measured=proven.checkpoints / proven.read_alone_s,
            unit="checkpoints/s",
            note="the same records, with their checksums verified, and nothing done with them",
        ),
        Figure(name="scrub, CPU", measured=1e6 * proven.cpu_s / proven.checkpoints, unit="us/checkpoint"),
        Figure(name="peak memory", measured=proven.peak_rss_bytes / _MIB, unit="MiB", note="of the whole process"),
        Figure(
            name="memory beyond the program",
            measured=(proven.peak_rss_bytes - proven.before_rss_bytes) / _MIB,
            unit="MiB",
            at_most=256.0,
            note=f"with {count:,} checkpoints",
        ),
    ]


def _fill(setup: Setup, codec: Codec, count: int) -> Iterator[list[str]]:
    """Checkpoints into the log, and their rows, made by the projection, into tables of this benchmark's own."""
    draw = random.Random(1)
    producer = producer_of(setup.stack.kafka)
    store = Store(setup.stack.postgres, generation=_GENERATION)
    try:
        for partition in range(len(producer.list_topics(EVENTS, WAIT_S).topics[EVENTS].partitions)):
            store.claim(partition)
        at: dict[int, int] = {}
        for first in range(0, count, _BATCH_RECORDS):
            made = [_checkpoint(draw) for _ in range(min(_BATCH_RECORDS, count - first))]
            places: list[tuple[int, int, int] | None] = [None] * len(made)
            for number, record in enumerate(made):
                item: Ready = ready(codec, record)
                headers: Any = item.headers
                producer.produce(EVENTS, item.value, item.key, headers=headers, on_delivery=_noting(places, number))
            if producer.flush(WAIT_S):
                raise RuntimeError("the broker did not take the records in time")
            _project(store, made, places, at)
            yield [record.workflow_id for record in made]
    finally:
        store.close()


def _noting(places: list[tuple[int, int, int] | None], number: int) -> Callable[[KafkaError | None, Message], None]:
    def delivered(error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if error is None and partition is not None and offset is not None:
            places[number] = partition, offset, message.timestamp()[1] * 1000

    return delivered


def _project(
    store: Store,
    made: Sequence[CheckpointCreated],
    places: Sequence[tuple[int, int, int] | None],
    at: dict[int, int],
) -> None:
    """The start of each workflow is in the tables alone: a scrub reads no other record."""
    events: dict[int, list[Delivered]] = {}
    for record, place in zip(made, places, strict=True):
        if place is None:
            raise RuntimeError("a record was not delivered")
        partition, offset, timestamp_us = place
        started = build(WorkflowStarted, record.workflow_id, workflow_version="1", steps=(StepSpec(step_id="build"),))
        events.setdefault(partition, []).append(Delivered(started, partition, offset, timestamp_us))
        events[partition].append(Delivered(record, partition, offset, timestamp_us))
    for partition, batch in events.items():
        batch.sort(key=lambda event: event.offset)
        end = batch[-1].offset + 1
        store.apply(partition, batch, [], start=at.get(partition, batch[0].offset), end=end)
        at[partition] = end


def _checkpoint(draw: random.Random) -> CheckpointCreated:
    workflow_id = str(uuid.uuid4())
    state = {
        "workflow_id": workflow_id,
        "step_id": "build",
        "status": "running",
        "data": document(STATE_SIZE_BYTES - 200, draw),
    }
    data = canonical_bytes(state)
    digest = digest_of(data)
    return build(
        CheckpointCreated,
        workflow_id,
        checkpoint_id=str(uuid.uuid4()),
        step_id="build",
        checkpoint_type="step_start",
        sequence=1,
        state_version="1",
        codec="identity",
        size_bytes=len(data),
        digest=digest,
        chain_digest=chain_digest_of(None, digest),
        status="running",
        state=data,
    )


def _in_a_child(setup: Setup) -> Proven:
    """In a process of its own, so that its memory is that of a keeper."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    at = setup.stack
    objects = (setup.folder / "objects").as_uri()
    child = context.Process(target=_prove, args=(at.kafka, at.registry, at.postgres, objects, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not pipe.poll(_TIMEOUT_S):
            raise RuntimeError(f"the scrub did not end within {_TIMEOUT_S:.0f} s")
        found: Proven = pipe.recv()
        return found
    except EOFError:
        raise RuntimeError("the scrub ended without an answer") from None
    finally:
        child.join(5)
        if child.is_alive():
            child.kill()


def _prove(kafka: str, registry_url: str, postgres: str, objects_url: str, answer: Connection) -> None:
    from schemas.objects import Objects

    with ExitStack() as stack:
        codec, clock = Codec(stack.enter_context(Registry(registry_url))), BrokerClock()
        desk = Desk(Outbox(producer_settings(kafka, "bench-keeper", {}), clock), codec, clock)
        stack.callback(desk.close)
        tables = KeeperTables(postgres, generation=_GENERATION)
        stack.callback(tables.close)
        places = Places(kafka, EVENTS, None)
        stack.callback(places.close)
        scrubber = Scrubber(
            tables,
            places,
            codec,
            Inspection(),
            Objects(objects_url),
            desk,
            interval_s=30.0,
            per_second=_PER_SECOND,
            errors=True,
        )
        before_bytes, before = _peak_rss_bytes(), resource.getrusage(resource.RUSAGE_SELF)
        began_s = time.monotonic()
        for _ in scrubber.steps():
            pass
        seconds = time.monotonic() - began_s
        peak_bytes, after = _peak_rss_bytes(), resource.getrusage(resource.RUSAGE_SELF)
        sound = _sound()
        began_s = time.monotonic()
        known = [target.place for target in tables.targets(per_workflow=1, after=(-1, -1))]
        for _ in places.read(known):
            pass
        read_alone_s = time.monotonic() - began_s
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        answer.send(Proven(sound, seconds, cpu_s, read_alone_s, peak_bytes, before_bytes))


def _peak_rss_bytes() -> int:
    """Of this program. What `getrusage` gives begins with that of the process which started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _sound() -> int:
    from consumers import telemetry

    return int(telemetry.SCRUBBED.labels("sound")._value.get())


def _drop(connection: psycopg.Connection[Any]) -> None:
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(_GENERATION)))


BENCHMARK = Benchmark(
    name="scrub",
    measures="checkpoints of live workflows read again from the log, proven, and compared with their rows, per second",
    compared_to="reading the same records, found in the same way, and doing nothing with them",
    run=_measure,
)
