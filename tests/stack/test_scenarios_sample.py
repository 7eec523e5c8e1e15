"""A handful of the labelled scenarios, played against the recovery role on the real stack, with the same labels."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml
from confluent_kafka import Consumer, TopicPartition

from engine.fold import evolve
from engine.inspection import Inspector
from engine.state import WorkflowState
from engine.testing import World
from schemas.codec import Unknown
from schemas.records import Command, Record
from schemas.topics import COMMANDS, EVENTS
from tests.scenarios.clock import Clock
from tests.scenarios.model import Scenario, load_all
from tests.scenarios.play import end_of, judge, result_of
from tests.scenarios.service import SimulatedService

from .kit import Role, Topics

SEED = 5
FAMILIES = 8
#: What takes minutes in a scenario takes seconds here.
FASTER = 50
#: Nothing that a scenario means to be in time may come near a deadline, on a busy machine.
RUN_MS_MAX = 60_000
DEADLINE_S = 90.0
#: After all have come to their ends: time for what must not happen.
QUIET_S = 1.0

#: The story's policy, as much faster; the longest wait for an answer is the machine's, not the scenario's.
POLICY = {
    "error_detection": {"timeouts": {"default_step_timeout": 300_000 // FASTER, "critical_step_timeout": 12_000}},
    "recovery_strategies": {
        "infinite_loop": {
            "strategy": "restart_from_checkpoint",
            "max_restarts": 3,
            "fallback_strategy": "complete_restart",
        },
        "resource_exhaustion": {
            "strategy": "scale_resources_and_retry",
            "max_scaling_attempts": 3,
            "fallback_strategy": "queue_for_later",
            "queue_delay": 60_000 // FASTER,
        },
        "timeout": {"strategy": "increase_timeout_and_retry", "max_retries": 3, "max_timeout": 1_800_000 // FASTER},
        "state_corruption": {
            "strategy": "restore_from_last_valid_checkpoint",
            "max_restore_attempts": 5,
            "fallback_strategy": "complete_restart",
        },
        "unknown_error": {
            "strategy": "retry_step",
            "max_retries": 3,
            "backoff_strategy": "exponential",
            "backoff_base": 1_000 // FASTER,
            "fallback_strategy": "manual_intervention",
        },
    },
    "resource_scaling": {"settle_time": 5_000 // FASTER},
}


class Live:
    """What a simulated service needs of a world, on the real log; what stands in it is folded as it is read."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._inspector = Inspector()
        self._read: list[Record] = []
        self.commands: list[Command] = []
        self.state: WorkflowState | None = None

    @property
    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def new_id(self) -> str:
        return str(uuid.uuid4())

    def append(self, record: Record) -> None:
        self._topics.raw(record.workflow_id.encode(), self._topics.codec.encode(record), flush=False)

    def settle(self) -> None:
        self._topics.producer.poll(0)

    def take(self, record: Record, partition: int, offset: int, timestamp_us: int) -> None:
        """A record of the workflow was read."""
        self._read.append(record)
        self.state = evolve(self.state, self._inspector.deliver(record, partition, offset, timestamp_us))

    def records(self, kind: type[Any]) -> list[Any]:
        return [r for r in self._read if isinstance(r, kind)]


class Play:
    """One scenario on the real stack."""

    def __init__(self, scenario: Scenario, topics: Topics) -> None:
        self.scenario = scenario
        self.live = Live(topics)
        world = cast(World, self.live)
        self.clock = Clock(world)
        self.service = SimulatedService(world, _faster(scenario), self.clock)
        self._received = 0

    def go_on(self) -> None:
        """Receive what was sent, and do what is due."""
        while self._received < len(self.live.commands):
            self.service.receive(self.live.commands[self._received])
            self._received += 1
        while (action := self.clock.take()) is not None:
            action()

    @property
    def at_rest(self) -> bool:
        """Whether the workflow has ended, or waits for a human."""
        state = self.live.state
        if state is None or self.clock.busy:
            return False
        return end_of(state) != "running"

    def disagreements(self) -> list[str]:
        """Where what came of it differs from the label."""
        assert self.live.state is not None
        came = result_of(self.service, self.live.records, self.live.commands, end_of(self.live.state), [])
        return judge(self.scenario, came)


def _faster(scenario: Scenario) -> Scenario:
    runs = {
        step: [replace(o, after_ms=max(1, o.after_ms // FASTER)) for o in outcomes]
        for step, outcomes in scenario.runs.items()
    }
    usage = {s: u.model_copy(update={"every": max(1, u.every // FASTER)}) for s, u in scenario.usage.items()}
    return scenario.model_copy(update={"runs": runs, "usage": usage})


def _fits(scenario: Scenario) -> bool:
    """Whether a scenario means the same when it is played as much faster by a machine that may be busy."""
    timed = any(step.timeout or step.heartbeat for step in scenario.graph)
    waits = any(a.kind in ("ignore", "lie") or a.late_ms for answers in scenario.answers.values() for a in answers)
    long = any(o.after_ms > RUN_MS_MAX for outcomes in scenario.runs.values() for o in outcomes)
    other = scenario.policy or scenario.people or scenario.happens or scenario.timeout or len(scenario.path or ()) > 50
    return not (timed or waits or long or other)


def sample() -> list[Scenario]:
    """One scenario of each of some families, failing and healthy; the same ones in every run."""
    draw = random.Random(SEED)
    by_family: dict[str, list[Scenario]] = {}
    for scenario in load_all():
        if _fits(scenario):
            by_family.setdefault(scenario.family, []).append(scenario)
    healthy = sorted(f for f, of in by_family.items() if of[0].healthy)
    failing = sorted(f for f, of in by_family.items() if not of[0].healthy)
    chosen = [*draw.sample(failing, FAMILIES - 2), *draw.sample(healthy, 2)]
    return [draw.choice(by_family[family]) for family in chosen]


@contextmanager
def _tail(servers: str) -> Iterator[Consumer]:
    """Reads both topics from their present ends."""
    settings = {"bootstrap.servers": servers, "group.id": "scenarios", "enable.auto.commit": False, "log_level": 0}
    consumer = Consumer(settings)
    places = []
    for topic in (EVENTS, COMMANDS):
        for partition in consumer.list_topics(topic, 10).topics[topic].partitions:
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)
            places.append(TopicPartition(topic, partition, end))
    consumer.assign(places)
    try:
        yield consumer
    finally:
        consumer.close()


def _read(consumer: Consumer, topics: Topics, plays: dict[str, Play]) -> None:
    for message in consumer.consume(200, 0.005):
        if message.error():
            continue
        record = topics.codec.decode(cast(bytes, message.value()))
        play = None if isinstance(record, Unknown) else plays.get(record.workflow_id)
        if play is None:
            continue
        if isinstance(record, Command):
            play.live.commands.append(record)
        else:
            place = cast(int, message.partition()), cast(int, message.offset())
            play.live.take(cast(Record, record), *place, message.timestamp()[1] * 1_000)


def test_a_sample_of_the_scenarios_comes_out_as_labelled(
    topics: Topics, start: Callable[..., Role], tmp_path: Path
) -> None:
    policy = tmp_path / "faster.yaml"
    policy.write_text(yaml.safe_dump({"workflow_error_handling": POLICY}))
    role = start("recovery", "--policy", str(policy))
    role.wait_log("partitions assigned")
    plays = [Play(scenario, topics) for scenario in sample()]
    by_id = {play.service.reporter.workflow_id: play for play in plays}
    with _tail(topics.at.kafka) as consumer:
        for play in plays:
            play.service.begin()
        end = time.monotonic() + DEADLINE_S
        rest_s: float | None = None
        while time.monotonic() < end and (rest_s is None or time.monotonic() < rest_s + QUIET_S):
            _read(consumer, topics, by_id)
            for play in plays:
                play.go_on()
            if not all(play.at_rest for play in plays):
                rest_s = None
            elif rest_s is None:
                rest_s = time.monotonic()
    assert topics.producer.flush(20) == 0
    assert {play.scenario.name: found for play in plays if (found := play.disagreements())} == {}, f"seed {SEED}"
    assert role.stop() == 0
