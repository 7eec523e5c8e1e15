"""A snapshot is taken a few states at a time while folding goes on, and still is one moment of the log."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers import recovery as limits
from consumers.deadline import Deadline
from consumers.handler import LogRange
from consumers.outbox import Outbox
from consumers.recovery import Recovery
from consumers.snapshots import Dumping, Snapshots
from engine.graph import Graph
from engine.inforce import InForce
from engine.policy import default_policy
from engine.snapshot import Dump, dump, load
from engine.state import WorkflowState
from engine.testing import Service, World
from schemas.codec import Codec
from schemas.errors import KintsugiError
from schemas.records.events import StepSpec, WorkflowCompleted

STEPS = (StepSpec(step_id="build"), StepSpec(step_id="test"))
WORKFLOWS = 12


class Record:
    """A record of the log, as the client library gives it."""

    def __init__(self, key: bytes, value: bytes, offset: int, timestamp_us: int) -> None:
        self._parts = key, value, offset, timestamp_us

    def key(self) -> bytes:
        return self._parts[0]

    def value(self) -> bytes:
        return self._parts[1]

    def offset(self) -> int:
        return self._parts[2]

    def __len__(self) -> int:
        return len(self._parts[1])

    def partition(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 2, self._parts[3] // 1000

    def headers(self) -> None:
        return None


class Sink:
    """Takes what the role sends."""

    taken = on_its_way = 0
    crowded = False

    def send(self, *_: Any, **__: Any) -> None:
        """Into nothing: what the engine appends is in the log of the test already."""

    def flush(self) -> dict[int, KintsugiError]:
        return {}

    def end_batch(self, *_: int) -> None:
        """All is there at once."""

    def forget(self, *_: int) -> None:
        """Nothing is on its way."""

    def close(self) -> None:
        """Nothing is open."""


def log_of(seed: int) -> list[Message]:
    """Workflows side by side: steps, errors, commands, ends."""
    world = World(default_policy())
    services = [Service(world, STEPS) for _ in range(WORKFLOWS)]
    for number, service in enumerate(services):
        service.start("build")
        if (number + seed) % 3 == 0:
            service.fail("build", "TIMEOUT")
            service.acknowledge(world.commands[-1])
            service.start("build", world.commands[-1])
    for number, service in enumerate(services):
        service.complete("build", None)
        if number % 4 == 0:
            service.emit(WorkflowCompleted)
        else:
            service.start("test")
            if (number + seed) % 5 == 0:
                service.fail("test", "OUT_OF_MEMORY")
    codec = Codec()
    return [
        cast(Message, Record(e.record.workflow_id.encode(), codec.encode(e.record), e.offset, e.timestamp_us))
        for e in world.log
    ]


def role(folder: Path) -> tuple[Recovery, Snapshots]:
    snapshots = Snapshots(folder.as_uri(), cluster="c", group="g", topic="t")
    return Recovery(default_policy(), Codec(), cast(Outbox, Sink()), snapshots), snapshots


def states_of(recovery: Recovery) -> dict[str, bytes]:
    return {i: dump([state]) for i, state in recovery._memories[0].states.items()}


def fold(recovery: Recovery, messages: Sequence[Message]) -> None:
    if messages:
        recovery.handle(0, messages)
        while recovery.backlog:
            assert not recovery.work()
        recovery.flush()
        recovery.committed(0, (messages[-1].offset() or 0) + 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4), st.integers(1, 60), st.lists(st.integers(0, 9), max_size=40), st.integers(1, 3))
def test_a_snapshot_and_the_rest_of_the_log_give_the_same_states(
    tmp_path_factory: pytest.TempPathFactory, seed: int, begin: int, steps: list[int], slice_states: int
) -> None:
    """Whatever is folded between the slices: loading it and folding on equals folding everything."""
    folder, log = tmp_path_factory.mktemp("snapshots"), log_of(seed)
    whole, snapshots = role(folder)
    whole.assigned(LogRange(partition=0, low=0, high=len(log), committed=0))
    before, limits.DUMP_STATES = limits.DUMP_STATES, slice_states
    try:
        whole._snapshot_due_s[0] = 0.0
        fold(whole, log[:begin])
        at = begin
        for count in steps:
            whole.tick(0, lambda _: False)
            fold(whole, log[at : at + count])
            at = min(len(log), at + count)
        while whole._dumping is not None:
            whole.tick(0, lambda _: False)
        fold(whole, log[at:])
    finally:
        limits.DUMP_STATES = before
    snapshots.settle(Deadline(10))
    again, _ = role(folder)
    start = again.assigned(LogRange(partition=0, low=0, high=len(log), committed=len(log)))
    assert start == begin
    fold(again, log[begin:])
    assert states_of(again) == states_of(whole)
    whole.close()
    again.close()


def test_a_round_takes_only_so_many_states(tmp_path: Path) -> None:
    recovery, snapshots = role(tmp_path)
    recovery.assigned(LogRange(partition=0, low=0, high=0, committed=0))
    recovery._snapshot_due_s[0] = 0.0
    fold(recovery, log_of(0))
    rounds = 0
    before, limits.DUMP_STATES = limits.DUMP_STATES, 5
    try:
        while recovery._dumping is not None:
            assert recovery.tick(1_000, lambda _: False) == 1_000 + limits.DUMP_PAUSE_US
            rounds += 1
    finally:
        limits.DUMP_STATES = before
    assert rounds == -(-WORKFLOWS // 5) + (WORKFLOWS % 5 == 0)
    snapshots.settle(Deadline(10))
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1
    recovery.close()


def test_a_partition_that_is_handed_over_leaves_a_whole_snapshot_also_of_one_under_way(tmp_path: Path) -> None:
    recovery, _ = role(tmp_path)
    recovery.assigned(LogRange(partition=0, low=0, high=0, committed=0))
    recovery._snapshot_due_s[0] = 0.0
    log = log_of(1)
    fold(recovery, log)
    expected = states_of(recovery)
    recovery.revoked([0], Deadline(10))
    assert recovery.tick(0, lambda _: False) is not None
    assert recovery._dumping is None
    again, _ = role(tmp_path)
    assert again.assigned(LogRange(partition=0, low=0, high=len(log), committed=len(log))) == len(log)
    assert states_of(again) == expected
    again.close()
    recovery.close()


def test_of_a_partition_that_was_lost_nothing_is_written(tmp_path: Path) -> None:
    recovery, snapshots = role(tmp_path)
    recovery.assigned(LogRange(partition=0, low=0, high=0, committed=0))
    recovery._snapshot_due_s[0] = 0.0
    fold(recovery, log_of(2))
    recovery.lost([0])
    recovery.tick(0, lambda _: False)
    snapshots.settle(Deadline(10))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    recovery.close()


def test_a_state_that_cannot_be_taken_ends_the_snapshot_and_nothing_else(tmp_path: Path) -> None:
    good, bad = WorkflowState("a", "t", 0), WorkflowState("b", "t", 0)
    bad.checkpoints = cast(bytes, object())
    dumping = Dumping(1, {"a": good, "b": bad}, [], InForce(default_policy()))
    dumping.spare("b")
    assert dumping.take(1)
    assert dumping.failure is not None
    _, snapshots = role(tmp_path)
    snapshots.write(0, dumping)
    snapshots.settle(Deadline(10))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    snapshots.close()


def test_states_are_taken_once_in_their_order_but_for_those_that_changed_meanwhile() -> None:
    states = {str(n): WorkflowState(str(n), "t", 0) for n in range(4)}
    dumping = Dumping(1, states, ["x"], InForce(default_policy()))
    assert not dumping.take(1)
    for workflow_id in ("3", "0", "3"):
        dumping.spare(workflow_id)
    assert dumping.take(None)
    assert [s.workflow_id for s in load(dumping._dump.data())] == ["0", "3", "1", "2"]


def test_a_graph_that_is_gone_lends_its_place_to_no_other() -> None:
    """Between two rounds a workflow may change its graph: the old one is freed, and a new one may lie where it lay."""
    made = Dump()
    expected: list[str] = []
    for number in range(200):
        state = WorkflowState(str(uuid.uuid4()), "development", 0)
        step = StepSpec(step_id=f"step-{number}")
        state.graph = Graph((step,), {step.step_id: 0})  # as one beyond the shared ones: nobody else holds it
        state.steps = b"\x00"
        made.add(state)
        expected.append(step.step_id)
        del state
    assert [state.graph.steps[0].step_id for state in load(made.data())] == expected
