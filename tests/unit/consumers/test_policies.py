"""Applied policies: the chain of entries, what was in force where, and a partition whose policy changes."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.deadline import Deadline
from consumers.log_reader import LogReader
from consumers.memory import Memory
from consumers.policies import NAME, NOTHING, OFFSETS, Applied, Entry, read_policies
from consumers.snapshots import Snapshots
from engine.fold import evolve
from engine.inforce import InForce
from engine.inspection import deliver
from engine.policy import default_policy
from engine.testing import START_US
from schemas.records.events import BreakerChanged, PolicyChanged, StepStarted


def text_of(step_timeout_ms: int) -> str:
    timeouts = {"timeouts": {"default_step_timeout": step_timeout_ms}}
    return json.dumps({"workflow_error_handling": {"error_detection": timeouts}})


def entry(sequence: int, supersedes: int, offsets: dict[int, int] | None = None, **fields: Any) -> Entry:
    return Entry(
        key=f"{NAME}@v{sequence}/x",
        sequence=sequence,
        version=f"v{sequence}",
        text=text_of(1_000 + sequence),
        actor="ana",
        reason="because",
        at="2026-11-25T10:00:00.000Z",
        supersedes=supersedes,
        written_ms=0,
        offsets=offsets or {},
        **fields,
    )


def changed(text: str, sequence: int) -> PolicyChanged:
    return PolicyChanged(
        event_id=str(uuid.uuid4()),
        workflow_id=str(uuid.uuid4()),
        workflow_type="kintsugi",
        occurred_at=START_US,
        producer="test",
        name=NAME,
        policy_version="v",
        policy_text=text,
        sequence=sequence,
        reason="because",
        actor="ana",
    )


def test_of_two_that_supersede_the_same_entry_the_first_counts() -> None:
    applied = Applied([entry(0, NOTHING), entry(2, 0), entry(3, 0), entry(4, 2), entry(5, 3)])
    assert [e.sequence for e in applied.entries if e.void] == [3, 5]
    assert applied.newest is not None and applied.newest.sequence == 4
    assert Applied([]).newest is None


def test_what_was_in_force_before_an_offset_is_the_newest_entry_that_had_reached_the_partition() -> None:
    applied = Applied([entry(0, NOTHING, {0: 10, 1: 20}), entry(2, 0, {0: 50}), entry(3, 0, {0: 60, 1: 60})])
    found = {
        (partition, offset): None if (e := applied.before(partition, offset)) is None else e.sequence
        for partition, offset in [(0, 10), (0, 11), (0, 50), (0, 51), (0, 99), (1, 20), (1, 99), (2, 99)]
    }
    assert found == {
        (0, 10): None,
        (0, 11): 0,
        (0, 50): 0,
        (0, 51): 2,
        (0, 99): 2,
        (1, 20): None,
        (1, 99): 0,
        (2, 99): None,
    }


def test_a_policy_that_changes_moves_the_timers_of_workflows_that_run() -> None:
    memory = Memory(0, default_policy(), effects_from=0, next_offset=0)
    workflow_id = str(uuid.uuid4())
    started = StepStarted(
        event_id=str(uuid.uuid4()),
        workflow_id=workflow_id,
        workflow_type="t",
        occurred_at=START_US,
        producer="test",
        step_id="s",
        step_run_id=str(uuid.uuid4()),
    )
    assert memory.take(deliver(started, 0, 0, START_US)) is False
    memory.keep(evolve(None, deliver(started, 0, 0, START_US)))
    assert memory.next_due_us == START_US + 300_000_000
    assert memory.take(deliver(changed(text_of(700), 3), 0, 1, START_US))
    assert memory.next_due_us == START_US + 700_000
    assert memory.take(deliver(changed(text_of(9_000), 2), 0, 2, START_US)), "folded, and of no effect"
    assert memory.next_due_us == START_US + 700_000


def test_a_snapshot_carries_what_is_in_force(tmp_path: Path) -> None:
    in_force = InForce(default_policy())
    in_force.take(deliver(changed(text_of(700), 3), 0, 1, START_US))
    opened = BreakerChanged(
        event_id=str(uuid.uuid4()),
        workflow_id=str(uuid.uuid4()),
        workflow_type="kintsugi",
        occurred_at=START_US,
        producer="test",
        breaker="github",
        kind="dependency",
        state="open",
        sequence=1,
        reason="many fail",
    )
    in_force.take(deliver(opened, 0, 2, START_US))
    snapshots = Snapshots(tmp_path.as_uri(), cluster="c", group="g", topic="t")
    snapshots.save(0, 3, [], [], in_force)
    snapshots.settle(Deadline(10))
    found = snapshots.newest(0, low=0, high=9)
    snapshots.close()
    assert found is not None
    memory = Memory(0, default_policy(), effects_from=3, next_offset=3)
    memory.restore(found.states, found.ended, found.in_force)
    assert memory.in_force.policy.timeouts.step_ms == 700
    assert (memory.in_force.sequence, memory.in_force.breakers.is_open("github")) == (3, True)


class Message:
    """A record of the topic, as the client library gives it."""

    def __init__(self, offset: int, key: str, value: bytes | None) -> None:
        self._parts = offset, key.encode(), value

    def key(self) -> bytes:
        return self._parts[1]

    def value(self) -> bytes | None:
        return self._parts[2]

    def offset(self) -> int:
        return self._parts[0]

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000


class Log:
    """A reader of one topic."""

    def __init__(self, *values: tuple[str, bytes | None]) -> None:
        self._messages = [Message(offset, key, value) for offset, (key, value) in enumerate(values)]

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {0: (0, len(self._messages))}

    def read(self, topic: str, ranges: object) -> list[Message]:
        return self._messages


def test_entries_and_their_places_are_read_as_they_were_written() -> None:
    written = entry(0, NOTHING, {0: 5, 3: 7}, coordinated=True)
    log = Log((written.key, written.value()), (written.key + OFFSETS, written.offsets_value()))
    [found] = read_policies(cast(LogReader, log)).entries
    assert found == replace(written, written_ms=1_000)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[]",
        b'{"name": "other"}',
        b'{"name": "recovery", "supersedes": "0"}',
        b'{"name": "recovery"}',
    ],
)
def test_what_is_no_entry_is_passed_over(value: bytes | None) -> None:
    first, second = entry(0, NOTHING), entry(2, 0)
    log = Log((first.key, first.value()), ("junk", value), (second.key, second.value()))
    assert [e.sequence for e in read_policies(cast(LogReader, log)).entries if not e.void] == [0, 2]


@pytest.mark.parametrize("value", [b"{}", b'{"sequence": 0, "offsets": [1]}', b'{"sequence": 9, "offsets": {"0": 1}}'])
def test_places_that_are_not_of_the_entry_are_passed_over(value: bytes) -> None:
    written = entry(0, NOTHING)
    log = Log((written.key, written.value()), (written.key + OFFSETS, value))
    assert read_policies(cast(LogReader, log)).entries[0].offsets == {}
