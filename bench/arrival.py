"""What proving checkpoints on arrival costs: the recovery role reads one log at full speed, with and without it."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from engine.effects import PRODUCER
from schemas.codec import Codec
from schemas.records.events import CheckpointCreated
from schemas.registry import Registry
from schemas.topics import EVENTS

from .figures import Benchmark, Figure, Setup, median
from .processes import Ready, Role, ready, stand_at_end, write
from .workload import history

WORKFLOWS, WORKFLOWS_QUICK = 6_000, 200
#: Each way this often, in turns, so that what else the machine does falls on both.
ROUNDS, ROUNDS_QUICK = 3, 1
_GOAL_CUT_PERCENT = 10.0
_POLL_S = 0.02
_UNVERIFIED = "workflow_error_handling: {error_detection: {state_corruption: {checksum_verification: false}}}\n"


def _measure(setup: Setup) -> list[Figure]:
    at = setup.stack
    events = [e.record for e in history(WORKFLOWS_QUICK if setup.quick else WORKFLOWS) if e.record.producer != PRODUCER]
    checkpoints = sum(type(record) is CheckpointCreated for record in events)
    policies: dict[str, Path | None] = {"verified": None, "not verified": setup.folder / "unverified.yaml"}
    (setup.folder / "unverified.yaml").write_text(_UNVERIFIED, encoding="utf-8")
    groups = {
        (way, number): f"bench-{uuid.uuid4()}"
        for number in range(ROUNDS_QUICK if setup.quick else ROUNDS)
        for way in policies
    }
    for group in groups.values():
        stand_at_end(at.kafka, group)
    before = _end_of_log(at.kafka)
    with Registry(at.registry) as registry:
        codec = Codec(registry)
        records: list[Ready] = [ready(codec, record) for record in events]
    setup.say(f"{len(records):,} events, {checkpoints:,} checkpoints among them")
    write(at.kafka, records)
    rates: dict[str, list[float]] = {way: [] for way in policies}
    costs: dict[str, list[float]] = {way: [] for way in policies}
    for (way, _), group in groups.items():
        setup.say(way)
        rate, cost_us = _run(setup, group, policies[way], before)
        rates[way].append(rate)
        costs[way].append(cost_us)
    verified, unverified = median(rates["verified"]), median(rates["not verified"])
    share = f"{len(records):,} events of services, {100 * checkpoints // len(records)} % are checkpoints of 2 KB"
    return [
        Figure(name="recovery role at full speed, verified", measured=verified, unit="events/s", note=share),
        Figure(name="recovery role at full speed, not verified", measured=unverified, unit="events/s"),
        Figure(
            name="cut by verification on arrival",
            measured=100 * (1 - verified / unverified),
            unit="%",
            at_most=_GOAL_CUT_PERCENT,
            note="decisions and commands are written meanwhile, and read back",
        ),
        *(
            Figure(name=f"CPU of the role's own process, {way}", measured=median(costs[way]), unit="us/event")
            for way in policies
        ),
    ]


def _run(setup: Setup, group: str, policy: Path | None, before: int) -> tuple[float, float]:
    """Events per second, and CPU of each in us, from the first that the group has not seen to the end of the log."""
    role = Role(setup.stack, setup.folder, "recovery", group=group, policy=policy)
    try:
        role.wait("partitions", lambda role: role.processed() > before)
        began_s, begun, cpu_s = time.monotonic(), role.processed(), role.cpu_s()
        while not role.caught_up():
            time.sleep(_POLL_S)
        count = role.processed() - begun
        return count / (time.monotonic() - began_s), 1e6 * (role.cpu_s() - cpu_s) / count
    finally:
        role.end()


def _end_of_log(servers: str) -> int:
    """Records in the event topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(EVENTS, 10).topics[EVENTS].partitions
        bounds = [consumer.get_watermark_offsets(TopicPartition(EVENTS, p), 10, cached=False) for p in partitions]
        return sum(high - low for low, high in bounds)
    finally:
        consumer.close()


BENCHMARK = Benchmark(
    name="arrival",
    measures="the recovery role reading a log at full speed, checkpoints proven on arrival or not",
    compared_to="the same log in the same run, with checksum_verification off",
    run=_measure,
)
