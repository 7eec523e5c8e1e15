"""Commands to a service, written into the real topic: what is done, what is answered, what is never done twice."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from fastavro import parse_schema, schemaless_writer
from kintsugi_client import RetriableError, Workflow

from schemas.catalog import shipped
from schemas.records import Record
from schemas.records.commands import (
    CancelWorkflow,
    CompensateStep,
    PauseWorkflow,
    RestartWorkflow,
    ResumeFromCheckpoint,
    ResumeWorkflow,
    RetryStep,
    ScaleResources,
)
from schemas.records.events import (
    CommandAcknowledged,
    StateRestored,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowResumed,
)

from .client_kit import Desk, Here
from .kit import Topics, wait_for

Serve = Callable[..., Here]
DONE = (("accepted", False), ("succeeded", False))
REFUSED = (("accepted", False), ("failed", False))


def failed(topics: Topics, here: Here, step_id: str = "two") -> str:
    """A workflow that has failed once; its id."""
    workflow = here.kind.start({"plan": {step_id: ["fail:BROKEN"]}})
    of = {workflow.workflow_id}
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, of))
    return workflow.workflow_id


def completed(topics: Topics, workflow_id: str) -> None:
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, {workflow_id}))


@pytest.fixture
def here(serve: Serve) -> Here:
    found = serve()
    assert found.client.listen()
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (RetryStep, ["one", "two", "two", "three"]),
        (ResumeFromCheckpoint, ["one", "two", "two", "three"]),
        (RestartWorkflow, ["one", "two", "one", "two", "three"]),
    ],
)
def test_what_begins_a_run_is_carried_out_and_answered(
    topics: Topics, desk: Desk, here: Here, kind: Any, expected: list[str]
) -> None:
    workflow_id = failed(topics, here)
    command = desk.build(kind, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    answers = desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    assert here.ran(workflow_id) == expected
    assert {a.causation_id for a in answers} == {command.event_id}
    assert topics.events(StepStarted, {workflow_id})[-1].command_id == command.command_id
    restored = topics.events(StateRestored, {workflow_id})
    assert [r.checkpoint_id for r in restored] == ([] if kind is RestartWorkflow else [command.checkpoint_id])


def test_a_workflow_is_paused_resumed_and_cancelled(topics: Topics, desk: Desk, here: Here) -> None:
    workflow = here.kind.start({"plan": {"one": ["hang"], "two": ["hang"]}})
    workflow_id = workflow.workflow_id
    wait_for("its first step", lambda: here.ran(workflow_id) == ["one"])
    pause = desk.build(PauseWorkflow, workflow_id, here.name)
    desk.send(pause)
    desk.wait_answers(pause, ("accepted", False))
    (here.folder / "release").touch()
    desk.wait_answers(pause, *DONE)
    (here.folder / "release").unlink()
    assert here.ran(workflow_id) == ["one"]
    resume = desk.build(ResumeWorkflow, workflow_id, here.name)
    desk.send(resume)
    desk.wait_answers(resume, *DONE)
    wait_for("its second step", lambda: here.ran(workflow_id) == ["one", "two"])
    cancel = desk.build(CancelWorkflow, workflow_id, here.name)
    desk.send(cancel)
    desk.wait_answers(cancel, *DONE)
    of = {workflow_id}
    assert [e.command_id for e in topics.events(WorkflowPaused, of)] == [pause.command_id]
    assert [e.command_id for e in topics.events(WorkflowResumed, of)] == [resume.command_id]
    assert [e.command_id for e in topics.events(WorkflowCancelled, of)] == [cancel.command_id]
    wait_for("the hung step's end", lambda: here.client.stats()["abandoned"] == 0)
    assert here.client.workflows() == [] and topics.events(WorkflowCompleted, of) == []


def test_a_hung_step_is_replaced(topics: Topics, desk: Desk, here: Here) -> None:
    workflow = here.kind.start({"plan": {"two": ["hold"]}})
    workflow_id = workflow.workflow_id
    wait_for("the hung step", lambda: here.ran(workflow_id) == ["one", "two"])
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    assert here.client.stats()["abandoned"] == 1
    before = len(topics.records("workflow.events", of={workflow_id}))
    (here.folder / "release").touch()
    wait_for("the hung step's end", lambda: here.client.stats()["abandoned"] == 0)
    assert len(topics.records("workflow.events", of={workflow_id})) == before
    assert here.ran(workflow_id) == ["one", "two", "two", "three"]


def test_a_workflow_that_this_process_never_had_is_taken_over(topics: Topics, desk: Desk, serve: Serve) -> None:
    first = serve()
    workflow_id = failed(topics, first, "three")
    first.client.close()
    second = serve()
    assert second.client.listen()
    command = desk.build(RetryStep, workflow_id, second.name, step_id="three", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    assert second.ran(workflow_id) == ["one", "two", "three", "three"]


@pytest.mark.parametrize(
    ("kind", "detail", "reason"),
    [
        (ScaleResources, "no handler for ScaleResources is registered", None),
        (CompensateStep, "nothing is registered that undoes step 'one'", "no_compensation"),
    ],
)
def test_a_command_without_a_handler_fails_with_the_reason(
    topics: Topics, desk: Desk, here: Here, kind: Any, detail: str, reason: str | None
) -> None:
    command = desk.build(kind, str(uuid.uuid4()), here.name, step_id="one", resource="memory", factor=2.0)
    desk.send(command)
    answers = desk.wait_answers(command, *REFUSED)
    assert (answers[-1].detail, answers[-1].reason) == (detail, reason)


def test_a_command_of_a_newer_release_fails_with_the_reason(topics: Topics, desk: Desk, here: Here) -> None:
    """Its schema is registered by a release that this client does not know."""
    raw = json.loads(shipped()["CancelWorkflow"].text)
    raw["name"] = "TeleportWorkflow"
    raw["fields"].append({"name": "destination", "type": "string", "doc": "Where to."})
    with SchemaRegistryClient({"url": topics.at.registry}) as registry:
        schema_id = registry.register_schema("test-kintsugi.TeleportWorkflow", RegistrySchema(json.dumps(raw), "AVRO"))
    like = desk.build(CancelWorkflow, str(uuid.uuid4()), here.name)
    buffer = BytesIO()
    buffer.write(b"\x00" + schema_id.to_bytes(4, "big"))
    schemaless_writer(buffer, parse_schema(raw), {**_fields(like), "destination": "the moon"})
    desk.raw(like.workflow_id, buffer.getvalue())
    answers = desk.wait_answers(like, *REFUSED)
    assert answers[-1].detail == "this version of the client does not know TeleportWorkflow"


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def test_a_registered_handler_is_used(topics: Topics, desk: Desk, serve: Serve) -> None:
    here = serve()
    seen: list[tuple[Any, Workflow | None]] = []

    @here.kind.on("RetryStep")
    def retry(command: Any, workflow: Workflow | None) -> None:
        seen.append((command, workflow))
        if len(seen) == 2:
            raise RetriableError("not now")

    assert here.client.listen()
    workflow_id = failed(topics, here)
    for expected in (DONE, REFUSED):
        command = desk.build(RetryStep, workflow_id, here.name, step_id="two")
        desk.send(command)
        answers = desk.wait_answers(command, *expected)
    assert answers[-1].detail == "RetriableError: not now"
    assert [w.workflow_id for _, w in seen if w is not None] == [workflow_id] * 2
    assert here.ran(workflow_id) == ["one", "two"]


def test_a_slow_handler_holds_up_no_other_command(topics: Topics, desk: Desk, serve: Serve) -> None:
    here = serve()
    go = threading.Event()
    here.kind.on("CompensateStep")(lambda command, workflow: go.wait(60) and None)
    assert here.client.listen()
    slow = desk.build(CompensateStep, str(uuid.uuid4()), here.name, step_id="one")
    quick = desk.build(CancelWorkflow, str(uuid.uuid4()), here.name)
    desk.send(slow)
    desk.wait_answers(slow, ("accepted", False))
    desk.send(quick)
    desk.wait_answers(quick, *DONE)
    go.set()
    desk.wait_answers(slow, *DONE)


def test_a_copy_is_answered_again_and_not_carried_out(topics: Topics, desk: Desk, here: Here) -> None:
    workflow_id = failed(topics, here)
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(command, command)
    desk.wait_answers(command, ("accepted", False), ("accepted", True), ("succeeded", False))
    completed(topics, workflow_id)
    desk.send(command)
    desk.wait_answers(command, ("accepted", False), ("accepted", True), ("succeeded", False), ("succeeded", True))
    assert here.ran(workflow_id) == ["one", "two", "two", "three"]
    assert here.client.stats()["repeated"] == 2


def test_an_expired_command_is_refused(topics: Topics, desk: Desk, here: Here) -> None:
    workflow_id = failed(topics, here)
    now_us = topics.read("workflow.events", {workflow_id})[-1].timestamp()[1] * 1000
    command = desk.build(
        RestartWorkflow, workflow_id, here.name, expires_at=now_us - 1_000_000, **desk.where(workflow_id)
    )
    desk.send(command)
    (answer,) = desk.wait_answers(command, ("failed", False))
    assert answer.detail == "expired before it arrived"
    assert here.ran(workflow_id) == ["one", "two"] and here.client.stats()["expired"] == 1


def test_a_command_that_expires_while_it_is_accepted_is_refused_by_the_brokers_time(
    topics: Topics, desk: Desk, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = failed(topics, here)
    accept = here.client._commands.accept
    late = desk.build(
        RestartWorkflow,
        workflow_id,
        here.name,
        expires_at=time.time_ns() // 1000 + 3_000_000,
        **desk.where(workflow_id),
    )

    def slow(received: Any) -> Any:
        while time.time_ns() // 1000 <= late.expires_at + 100_000:
            time.sleep(0.05)
        return accept(received)

    monkeypatch.setattr(here.client._commands, "accept", slow)
    desk.send(late)
    answers = desk.wait_answers(late, *REFUSED)
    assert answers[-1].detail == "expired before it could be accepted"
    assert here.ran(workflow_id) == ["one", "two"]


def test_a_machine_an_hour_ahead_forgets_no_command(
    topics: Topics, desk: Desk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may still be valid is measured in the broker's time, so a copy is known whatever the clock here says."""
    first = serve()
    assert first.client.listen()
    workflow_id = failed(topics, first)
    command = desk.build(RetryStep, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    first.client.close()
    for hours in (1, -1):
        real = time.time_ns
        with monkeypatch.context() as clock:
            clock.setattr(time, "time_ns", lambda real=real, hours=hours: real() + hours * 3_600_000_000_000)
            clock.setattr(time, "time", lambda real=real, hours=hours: real() / 1e9 + hours * 3_600)
            again = serve()
            assert again.client.listen()
            desk.send(command)
            copies = 1 if hours == 1 else 2
            desk.wait_answers(command, *DONE, *[("unknown", True)] * copies)
            again.client.close()
    assert first.ran(workflow_id) == ["one", "two", "two", "three"]


def test_junk_and_other_services_commands_are_passed_over(topics: Topics, desk: Desk, here: Here) -> None:
    workflow_id = str(uuid.uuid4())
    like = desk.build(CancelWorkflow, workflow_id, here.name)
    good = topics.codec.encode(like)
    junk = [None, b"", b"\x00\x7f\xff\xff\xffx", b"junk", good[:-3], good + b"x", b"\x02" * (1024 * 1024)]
    for value in junk:
        desk.raw(workflow_id, value)
    desk.raw(workflow_id, topics.codec.encode(dataclasses.replace(like, command_id="no uuid")))
    theirs = desk.build(CancelWorkflow, workflow_id, "another-service")
    desk.send(theirs, like)
    desk.wait_answers(like, *DONE)
    assert desk.answers(theirs) == []
    assert here.client.stats()["unreadable"] >= len(junk) + 1


def test_a_damaged_checkpoint_is_reported_as_corrupt_and_not_restored(topics: Topics, desk: Desk, serve: Serve) -> None:
    def damage(record: Any) -> Any:
        name = type(record).__name__
        if name != "CheckpointCreated" or (record.step_id, record.checkpoint_type) != ("two", "step_start"):
            return record
        middle = len(record.state) // 2
        spoiled = record.state[:middle] + bytes([record.state[middle] ^ 0xFF]) + record.state[middle + 1 :]
        return dataclasses.replace(record, state=spoiled)

    here = serve(interceptors=[damage])
    assert here.client.listen()
    workflow_id = failed(topics, here)
    command = desk.build(ResumeFromCheckpoint, workflow_id, here.name, **desk.where(workflow_id))
    desk.send(command)
    answers = desk.wait_answers(command, *REFUSED)
    assert "does not verify" in (answers[-1].detail or "")
    error = topics.events(WorkflowErrorOccurred, {workflow_id})[-1]
    assert (error.error_code, error.command_id) == ("STATE_CORRUPTION", command.command_id)
    # The one before it is sound.
    again = desk.build(ResumeFromCheckpoint, workflow_id, here.name, **desk.where(workflow_id, -2))
    desk.send(again)
    desk.wait_answers(again, *DONE)
    completed(topics, workflow_id)
    assert topics.events(StateRestored, {workflow_id})[0].command_id == again.command_id


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"checkpoint_offset": 10**9}, "is not in the log"),
        ({"checkpoint_partition": 99}, "there is no such partition"),
        ({"checkpoint_offset": -1}, "is no place in the log"),
        ({"checkpoint_digest": "0" * 64}, "its digest is not the one that the command names"),
        ({"checkpoint_id": str(uuid.uuid4())}, "is another one"),
    ],
)
def test_a_checkpoint_that_is_not_where_the_command_says_is_not_restored(
    topics: Topics, desk: Desk, here: Here, change: dict[str, Any], reason: str
) -> None:
    workflow_id = failed(topics, here)
    place = {**desk.where(workflow_id), **change}
    command = desk.build(ResumeFromCheckpoint, workflow_id, here.name, **place)
    desk.send(command)
    answers = desk.wait_answers(command, *REFUSED)
    assert reason in (answers[-1].detail or "")
    assert here.ran(workflow_id) == ["one", "two"]


def test_a_command_whose_acceptance_is_not_confirmed_in_time_is_refused_behind_it(
    topics: Topics, desk: Desk, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = failed(topics, here)
    monkeypatch.setattr("kintsugi_client.listener.ACCEPT_TIMEOUT_S", 0.3)
    monkeypatch.setattr("kintsugi_client.outbox.Delivery.settle", lambda self, error, message: None)
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    answers = desk.wait_answers(command, *REFUSED)
    assert "its acceptance is not in the log" in (answers[-1].detail or "")
    assert here.ran(workflow_id) == ["one", "two"]
    monkeypatch.undo()
    # Nothing is left of it: the next command is carried out.
    again = desk.build(RetryStep, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(again)
    desk.wait_answers(again, *DONE)
    completed(topics, workflow_id)


def test_a_buffer_without_room_for_the_acceptance_leaves_the_command_undone(
    topics: Topics, desk: Desk, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = failed(topics, here)
    monkeypatch.setattr(here.client.outbox, "_records_max", 0)
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    wait_for("its arrival", lambda: here.client._listener.ledger.taken(command.command_id))  # type: ignore[union-attr]
    monkeypatch.undo()
    desk.send(command)
    desk.wait_answers(command, ("unknown", True))
    assert here.ran(workflow_id) == ["one", "two"]


def test_many_commands_are_carried_out_once_each(topics: Topics, desk: Desk, serve: Serve) -> None:
    here = serve()
    seen: list[str] = []
    here.kind.on("CompensateStep")(lambda command, workflow: seen.append(command.command_id))
    assert here.client.listen()
    commands = [desk.build(CompensateStep, str(uuid.uuid4()), here.name, step_id="one") for _ in range(300)]
    for command in commands:
        desk.producer.produce("workflow.commands", topics.codec.encode(command), command.workflow_id)
        desk.producer.produce("workflow.commands", topics.codec.encode(command), command.workflow_id)
    assert desk.producer.flush(20) == 0
    wait_for("all of them", lambda: here.client.stats()["succeeded"] == len(commands))
    wait_for("all copies", lambda: here.client.stats()["repeated"] == len(commands))
    assert sorted(seen) == sorted(c.command_id for c in commands)
    of = {c.workflow_id for c in commands}
    wait_for(
        "all answers",
        lambda: len([a for a in topics.events(CommandAcknowledged, of) if not a.duplicate]) == 2 * len(commands),
    )
