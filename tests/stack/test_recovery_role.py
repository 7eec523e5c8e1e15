"""The recovery role as a process, on the real stack."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest

from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records import Command
from schemas.records.events import (
    CommandAcknowledged,
    ErrorClassified,
    RecoveryDecided,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from schemas.topics import COMMANDS, EVENTS

from .kit import Role, Topics, build, failing, wait_for

Start = Callable[..., Role]
PROTOCOLS = ("classic", "consumer")
CRASH_POINTS = ("after_poll", "after_fold", "after_append", "after_flush", "after_commit")
Tried = TypeVar("Tried", RecoveryDecided, Command)


def first_tries(found: Iterable[Tried]) -> list[Tried]:
    """Nobody answers here: on a slow machine a second try has begun meanwhile, as it should."""
    return [record for record in found if record.attempt_number == 1]


def test_an_error_is_answered_with_one_command_in_the_same_trace(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    workflow_id = str(uuid.uuid4())
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    *before, error = failing(workflow_id)
    topics.put(*before)
    topics.put(error, headers=headers_for(error, parent=trace))
    command = wait_for("a command", lambda: topics.commands({workflow_id}))[0]
    decided = first_tries(topics.events(RecoveryDecided, {workflow_id}))
    assert [d.command_id for d in decided] == [command.command_id]
    assert len(topics.events(ErrorClassified, {workflow_id})) == 1
    for topic in (EVENTS, COMMANDS):
        for message in topics.read(topic, {workflow_id})[-1:]:
            assert dict(message.headers() or [])["traceparent"][3:35] == trace[3:35].encode()
    logged = role.wait_log("command", workflow_id=workflow_id)
    assert (logged["command_id"], logged["trace_id"]) == (command.command_id, trace[3:35])
    assert role.stop() == 0


def test_a_passed_deadline_is_answered_and_not_before(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    workflow_id = str(uuid.uuid4())
    topics.put(build(StepStarted, workflow_id, step_id="hung", step_run_id=str(uuid.uuid4()), timeout_ms=300))
    wait_for("a command", lambda: topics.commands({workflow_id}))
    begun = topics.read(EVENTS, {workflow_id})[0].timestamp()[1]
    sent = topics.read(COMMANDS, {workflow_id})[0].timestamp()[1]
    assert begun + 300 <= sent, "never before its time; how soon after is the bench's to say"


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_any_point_it_decides_once(topics: Topics, start: Start, point: str) -> None:
    """FAULTS.md row 1: die at the named point, twice in different batches, then go on."""
    ids: set[str] = set()
    for nth in (1, 4):
        role = start("recovery", crash_at=f"{point}:{nth}")
        wait_for("partitions", lambda role=role: "partitions assigned" in role.log_file.read_text() or None)
        while role.process.poll() is None:
            workflow_id = str(uuid.uuid4())
            ids.add(workflow_id)
            topics.put(*failing(workflow_id))
            time.sleep(0.02)
        assert role.process.returncode == -signal.SIGKILL
    role = start()
    role.wait_log("partitions assigned")
    wait_for("all commands", lambda: {c.workflow_id for c in topics.commands(ids)} == ids)
    decided = first_tries(topics.events(RecoveryDecided, ids))
    assert {d.workflow_id for d in decided} == ids
    # Copies may be in the log; what they say is one thing.
    assert len({d.event_id for d in decided}) == len(ids) == len({d.command_id for d in decided})
    assert {c.command_id for c in first_tries(topics.commands(ids))} == {d.command_id for d in decided}
    assert role.stop() == 0


def test_a_killed_member_is_replaced(topics: Topics, start: Start) -> None:
    first, second = start(), start()
    for role in (first, second):
        wait_for("both members", lambda role=role: role.metric("kintsugi_partitions_assigned") == 4)
    ids = {str(uuid.uuid4()) for _ in range(20)}
    first.process.kill()
    for workflow_id in ids:
        topics.put(*failing(workflow_id))
    wait_for("all commands", lambda: {c.workflow_id for c in topics.commands(ids)} == ids)
    assert len({c.command_id for c in first_tries(topics.commands(ids))}) == len(ids)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_members_come_and_go_without_loss(topics: Topics, start: Start, protocol: str) -> None:
    option = ("-X", f"group.protocol={protocol}")
    ids: list[str] = []

    def more(count: int) -> None:
        for _ in range(count):
            ids.append(str(uuid.uuid4()))
            topics.put(*failing(ids[-1]))

    first = start("recovery", *option)
    first.wait_log("partitions assigned")
    more(10)
    second = start("recovery", *option)
    wait_for("a share", lambda: second.metric("kintsugi_partitions_assigned") == 4)
    more(10)
    assert first.stop() == 0
    more(10)
    wait_for("all commands", lambda: {c.workflow_id for c in topics.commands(set(ids))} == set(ids))
    decided = first_tries(topics.events(RecoveryDecided, set(ids)))
    assert len({d.event_id for d in decided}) == len(ids)
    assert {c.command_id for c in first_tries(topics.commands(set(ids)))} == {d.command_id for d in decided}
    assert second.stop() == 0


def test_a_restart_takes_up_from_the_snapshot_without_repeating_effects(topics: Topics, start: Start) -> None:
    workflow_id = str(uuid.uuid4())
    first = start()
    first.wait_log("partitions assigned")
    *before, error = failing(workflow_id)
    topics.put(*before)
    wait_for("folded", lambda: first.metric("kintsugi_consumer_lag_records") == 0)
    assert first.stop() == 0
    second = start()
    second.wait_log("partitions assigned")
    assert second.metric("kintsugi_snapshots_total", outcome="loaded") >= 1
    topics.put(error)
    wait_for("a command", lambda: topics.commands({workflow_id}))
    assert second.metric("kintsugi_events_processed_total", outcome="replayed") == 0
    assert len(first_tries(topics.commands({workflow_id}))) == 1


def test_an_event_that_comes_twice_has_one_effect(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    workflow_id = str(uuid.uuid4())
    records = failing(workflow_id)
    topics.put(*records, *records, records[-1])
    wait_for("a command", lambda: topics.commands({workflow_id}))
    time.sleep(0.5)
    assert len(first_tries(topics.commands({workflow_id}))) == 1
    assert len(first_tries(topics.events(RecoveryDecided, {workflow_id}))) == 1


def test_strange_but_readable_records_move_on(topics: Topics, start: Start) -> None:
    """For a workflow never started, out of order, for an unknown command, with a clock an hour off."""
    role = start()
    role.wait_log("partitions assigned")
    stray, late, unknown, skewed = (str(uuid.uuid4()) for _ in range(4))
    hour_us = 3_600_000_000
    topics.put(failing(stray)[-1])
    topics.put(build(WorkflowCompleted, late), *failing(late)[:2])
    topics.put(build(CommandAcknowledged, unknown, command_id=derive_id("no", "such"), status="failed"))
    for record in failing(skewed):
        fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
        topics.put(type(record)(**{**fields, "occurred_at": record.occurred_at - hour_us}))
    wait_for("commands", lambda: {c.workflow_id for c in topics.commands({stray, skewed})} == {stray, skewed})
    assert topics.commands({late, unknown}) == []
    assert role.metric("kintsugi_events_processed_total", outcome="folded") >= 10
    assert not [m for key in (stray, late, unknown, skewed) for m in topics.dead_letters(key.encode())]
    kinds = {type(r) for r in topics.records(EVENTS, of={stray})}
    assert {WorkflowErrorOccurred, ErrorClassified, RecoveryDecided} <= kinds
    assert WorkflowStarted not in kinds
