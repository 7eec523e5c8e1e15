"""A service that is declared with kintsugi_client, on real Kafka and with the real recovery role."""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message
from kintsugi_client import Client, NotDeliveredError, StateError, Workflow, WorkflowType

from schemas.records import Record
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    RecoveryAttemptFinished,
    RecoveryDecided,
    StateRestored,
    StepCompleted,
    StepProgressed,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from schemas.topics import EVENTS

from .client_kit import Desk, Here, assert_chain, state_of
from .kit import Role, Topics, wait_for

Serve = Callable[..., Here]
Start = Callable[..., Role]


def names(records: list[Record]) -> list[str]:
    return [type(r).__name__ for r in records]


def header(message: Message, name: str) -> bytes:
    value = dict(message.headers() or [])[name]
    assert isinstance(value, bytes)
    return value


def completed(topics: Topics, workflow_id: str) -> None:
    """Wait until the log says that a workflow completed."""
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, {workflow_id}))


def test_what_a_workflow_does_is_in_the_log_in_order(topics: Topics, serve: Serve) -> None:
    here = serve()
    workflow = here.kind.start({"n": 1})
    completed(topics, workflow.workflow_id)
    records = topics.records(EVENTS, of={workflow.workflow_id})
    step = ["StepStarted", "CheckpointCreated", "CheckpointCreated", "StepCompleted"]
    assert names(records) == ["WorkflowStarted", *step * 3, "WorkflowCompleted"]
    assert len({r.event_id for r in records}) == len(records)
    assert {r.producer for r in records} == {here.client.producer_name}
    saved = topics.events(CheckpointCreated, {workflow.workflow_id})
    assert_chain(saved)
    assert state_of(saved[-1])["data"] == {"done": ["one", "two", "three"], "n": 1}
    messages = topics.read(EVENTS, {workflow.workflow_id})
    assert {m.key() for m in messages} == {workflow.workflow_id.encode()}
    assert len({header(m, "traceparent")[3:35] for m in messages}) == 1
    assert header(messages[0], "ce_type") == b"kintsugi.WorkflowStarted"
    # All in Confluent's form: the registry was there.
    assert {(m.value() or b"")[0] for m in messages} == {0}


def test_a_manual_checkpoint_is_in_the_log_when_the_call_returns(topics: Topics, serve: Serve) -> None:
    kind = serve().client.workflow_type(f"own-{uuid.uuid4()}")
    workflow = kind.begin()
    with workflow.step("long") as step:
        for number in range(3):
            step.state["position"] = number
            checkpoint_id = step.checkpoint()
            found = topics.events(CheckpointCreated, {workflow.workflow_id})[-1]
            assert (found.checkpoint_id, found.checkpoint_type) == (checkpoint_id, "manual")
            assert state_of(found)["data"] == {"position": number}
        step.heartbeat(0.5, token="t", message="half")
        step.report_usage(memory_mb=10)
    workflow.complete()
    completed(topics, workflow.workflow_id)
    assert_chain(topics.events(CheckpointCreated, {workflow.workflow_id}))
    assert [p.progress for p in topics.events(StepProgressed, {workflow.workflow_id})] == [0.5]


def test_asyncio_code_drives_a_workflow(topics: Topics, serve: Serve) -> None:
    kind = serve().client.workflow_type(f"own-{uuid.uuid4()}")

    async def drive() -> str:
        workflow = kind.begin()
        async with workflow.step("one") as step:
            step.state["x"] = 1
            saved = await step.checkpoint_async()
            assert saved in {c.checkpoint_id for c in topics.events(CheckpointCreated, {workflow.workflow_id})}
        workflow.complete()
        return workflow.workflow_id

    completed(topics, asyncio.run(drive()))


def test_a_failing_step_is_repaired_by_the_recovery_role(topics: Topics, serve: Serve, start: Start) -> None:
    start().wait_log("partitions assigned")
    here = serve()
    assert here.client.listen()
    workflow = here.kind.start({"plan": {"two": ["fail:TIMEOUT", "fail:TIMEOUT"]}})
    completed(topics, workflow.workflow_id)
    assert here.ran(workflow.workflow_id) == ["one", "two", "two", "two", "three"]
    of = {workflow.workflow_id}
    decided = topics.events(RecoveryDecided, of)
    assert [(d.strategy, d.attempt_number) for d in decided] == [
        ("increase_timeout_and_retry", 1),
        ("increase_timeout_and_retry", 2),
    ]
    wait_for("both ends", lambda: len(topics.events(RecoveryAttemptFinished, of)) == 2)
    assert [f.outcome for f in topics.events(RecoveryAttemptFinished, of)] == ["failed", "succeeded"]
    answers = [(a.command_id, a.status) for a in topics.events(CommandAcknowledged, of)]
    first, second = (d.command_id for d in decided)
    assert answers == [(first, "accepted"), (first, "failed"), (second, "accepted"), (second, "succeeded")]
    by_command = [s.command_id for s in topics.events(StepStarted, of)]
    assert by_command == [None, None, first, second, second]
    # One trace from the first event to the last.
    traces = {header(m, "traceparent")[3:35] for m in topics.read(EVENTS, of)}
    assert len(traces) == 1


def test_a_workflow_with_a_flow_of_its_own_is_repaired_by_its_handler(
    topics: Topics, serve: Serve, start: Start
) -> None:
    start().wait_log("partitions assigned")
    client = serve().client
    kind = client.workflow_type(f"own-{uuid.uuid4()}")

    def drive(workflow: Workflow, *, fails: bool) -> None:
        for step_id in ("one", "two"):
            if step_id not in workflow.completed:
                with workflow.step(step_id) as step:
                    step.state[step_id] = True
                    if step_id == "two" and fails:
                        raise TimeoutError("two is late")
        workflow.complete()

    @kind.on("RetryStep")
    def retry(command: Any, workflow: Workflow | None) -> None:
        drive(client.restore(command), fails=False)

    assert client.listen()
    workflow = kind.begin()
    with pytest.raises(TimeoutError):
        drive(workflow, fails=True)
    completed(topics, workflow.workflow_id)
    assert [s.step_id for s in topics.events(StepCompleted, {workflow.workflow_id})] == ["one", "two"]
    assert len(topics.events(StateRestored, {workflow.workflow_id})) == 1


_BAD: list[tuple[str, Callable[[], Any]]] = [
    ("NaN", lambda: math.nan),
    ("U+0000", lambda: "\x00"),
    ("lone surrogate", lambda: "\ud800"),
    ("20 MiB", lambda: "x" * (20 * 1024 * 1024)),
    ("depth", lambda: _nested(100)),
    ("no data", object),
]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("value", "where"), [(v, w) for _, v in _BAD for w in ("checkpoint", "end")],
                         ids=[f"{n}, {w}" for n, _ in _BAD for w in ("checkpoint", "end")])  # fmt: skip
def test_a_bad_state_fails_its_step_and_nothing_else(
    topics: Topics, serve: Serve, value: Callable[[], Any], where: str
) -> None:
    kind = serve().client.workflow_type(f"own-{uuid.uuid4()}", checkpoint_types=("step_complete", "error_recovery"))
    workflow = kind.begin()
    step = workflow.step("one").__enter__()
    step.state["bad"] = value()
    with pytest.raises(StateError) as refused:
        step.checkpoint() if where == "checkpoint" else step.__exit__(None, None, None)
    if where == "checkpoint":
        step.__exit__(StateError, refused.value, None)
    wait_for("the report", lambda: topics.events(WorkflowErrorOccurred, {workflow.workflow_id}))
    (error,) = topics.events(WorkflowErrorOccurred, {workflow.workflow_id})
    (evidence,) = topics.events(CheckpointCreated, {workflow.workflow_id})
    assert (error.error_code, error.checkpoint_id) == ("StateError", evidence.checkpoint_id)
    assert evidence.evidence and state_of(evidence)["$kintsugi"] == "repr"
    assert topics.events(StepCompleted, {workflow.workflow_id}) == []


def test_bad_states_and_texts_reach_the_engine_as_errors_and_park_nothing(
    topics: Topics, serve: Serve, start: Start
) -> None:
    """The partition moves on: each error is decided on, nothing is dead-lettered, and the workflow beside completes."""
    start().wait_log("partitions assigned")
    kind = serve().client.workflow_type(f"own-{uuid.uuid4()}")
    workflows = []
    for _, value in _BAD:
        workflows.append(kind.begin())
        with pytest.raises(StateError):
            _leave_behind(workflows[-1], value())
    odd = kind.begin()
    odd.report_error("\ud800\x00", code="\x00" * 500, message="\ud800" * 50_000, context={"\x00": "\udfff"})
    workflows.append(odd)
    of = {w.workflow_id for w in workflows}
    wait_for("a decision for each", lambda: {d.workflow_id for d in topics.events(RecoveryDecided, of)} == of)
    for workflow_id in of:
        assert topics.dead_letters(workflow_id.encode()) == []
    beside = kind.begin()
    with beside.step("one"):
        pass
    beside.complete()
    completed(topics, beside.workflow_id)


def _leave_behind(workflow: Workflow, value: Any) -> None:
    with workflow.step("one") as step:
        step.state["bad"] = value


def test_a_state_near_the_limit_that_does_not_compress_is_kept_and_restored(
    topics: Topics, desk: Desk, serve: Serve
) -> None:
    here = serve()
    assert here.client.listen()
    draw = random.Random(7)
    noise = draw.randbytes(5 * 1024 * 1024 - 4096).hex()
    workflow = here.kind.start({"plan": {"one": ["fail:BROKEN"]}, "noise": noise})
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, {workflow.workflow_id}))
    command = desk.build(ResumeFromCheckpoint, workflow.workflow_id, here.name, **desk.where(workflow.workflow_id))
    desk.send(command)
    completed(topics, workflow.workflow_id)
    last = state_of(topics.events(CheckpointCreated, {workflow.workflow_id})[-1])
    assert last["data"]["noise"] == noise
    assert not here.client.close()


def test_without_a_registry_records_are_written_and_read_all_the_same(
    topics: Topics, serve: Serve, start: Start
) -> None:
    start().wait_log("partitions assigned")
    here = serve(registry="http://127.0.0.1:9")
    workflow = here.kind.start({"plan": {"one": ["fail:TIMEOUT"]}})
    wait_for("a decision", lambda: topics.events(RecoveryDecided, {workflow.workflow_id}))
    producer = here.client.producer_name.encode()
    mine = [m for m in topics.read(EVENTS, {workflow.workflow_id}) if header(m, "ce_source") == producer]
    assert mine and {(m.value() or b"")[:2] for m in mine} == {b"\xc3\x01"}


def test_kafka_that_is_not_there_holds_nobody_up_at_start() -> None:
    client = Client.connect("absent", kafka="127.0.0.1:9", registry="http://127.0.0.1:9")
    kind: WorkflowType = client.workflow_type("absent")
    assert not client.listen(ready_timeout_s=0.2)
    workflow = kind.begin()
    with workflow.step("one") as step:
        step.heartbeat(0.5)
        with pytest.raises(NotDeliveredError, match="waits in the buffer"):
            step.checkpoint(timeout_s=0.1)
    workflow.complete()
    report = client.close(1.0)
    assert report.waiting == 8 and report.by_type["CheckpointCreated"] == 3


def test_the_same_start_is_told_once(topics: Topics, serve: Serve) -> None:
    here = serve()
    workflow_id = str(uuid.uuid4())
    workflow = here.kind.start({}, workflow_id=workflow_id)
    assert workflow.workflow_id == workflow_id
    completed(topics, workflow_id)
    assert len(topics.events(WorkflowStarted, {workflow_id})) == 1
    assert workflow.known_partition() >= 0
