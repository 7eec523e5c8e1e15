"""What each command does to a workflow, and how it is answered. The log is a dictionary here; Kafka is in the stack's
tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from kintsugi_client import (
    ConfigError,
    KintsugiError,
    PausedError,
    RestoreError,
    SupersededError,
    Workflow,
    WorkflowType,
    restore,
)
from kintsugi_client._schemas.errors import RetriableError
from kintsugi_client._schemas.records import Command, Record
from kintsugi_client._schemas.records.commands import (
    CancelWorkflow,
    CompensateStep,
    PauseWorkflow,
    RestartWorkflow,
    ResumeFromCheckpoint,
    ResumeWorkflow,
    RetryStep,
    ScaleResources,
)
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CommandAcknowledged,
    StateRestored,
    StepCompleted,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowResumed,
)
from kintsugi_client.inbox import ForeignCommand, Received

from .flow import STEPS, Flow, flip, spoil
from .kit import Service, wait_for


@pytest.fixture
def flow(service: Service, monkeypatch: pytest.MonkeyPatch) -> Flow:
    return Flow(service, monkeypatch)


# -- retry, resume from a checkpoint, restart -------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_a_retry_runs_the_step_again_from_its_checkpoint(service: Service, flow: Flow, held: bool) -> None:
    workflow = flow.failed_workflow()
    workflow.data["dirt"] = "left behind by the run that failed"
    if not held:
        flow.forget(workflow)
    received = flow.send(RetryStep, workflow, step_id="two", timeout_ms=9_000, **flow.where(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert flow.ran == ["one", "two", "two", "three"]
    (restored,) = service.of(StateRestored)
    assert (restored.command_id, restored.restore_count) == (received.command.command_id, 1)
    again = [s for s in service.of(StepStarted) if s.command_id == received.command.command_id]
    assert [(s.step_id, s.timeout_ms) for s in again] == [("two", 9_000), ("three", None)]
    last = service.of(CheckpointCreated)[-1]
    assert b"dirt" not in (last.state or b"") and b'"done":["one","two","three"]' in (last.state or b"")


def test_a_retry_is_answered_when_its_step_has_completed_not_when_the_workflow_has(
    service: Service, flow: Flow
) -> None:
    workflow = flow.failed_workflow()
    flow.gates["three"] = threading.Event()
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(received) == ("succeeded", None)
    assert not service.of(WorkflowCompleted)
    names = service.names
    assert names.index("CommandAcknowledged") > [i for i, n in enumerate(names) if n == "StepCompleted"][1]
    flow.fails["three"] = [ValueError("another")]
    flow.gates["three"].set()
    wait_for("the error", lambda: len(flow.errors(workflow)) == 2)
    assert service.answers(received) == [("succeeded", None)]


def test_a_retry_that_fails_again_says_so(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    flow.fails["two"] = [ValueError("once more")]
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(received) == ("failed", "ValueError: once more")
    assert flow.errors(workflow)[-1].command_id == received.command.command_id


def test_without_a_checkpoint_a_retry_goes_on_with_a_copy_of_what_is_in_memory(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(service, monkeypatch, checkpoint_types=())
    workflow = flow.failed_workflow()
    before = workflow.run
    received = flow.send(RetryStep, workflow, step_id="two", **flow.start_of(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert flow.ran == ["one", "two", "two", "three"]
    assert workflow.data["done"] == ["one", "two", "three"]
    assert before.data["done"] == ["one"]


def test_without_a_checkpoint_another_process_begins_at_the_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(service, monkeypatch, checkpoint_types=())
    workflow = flow.failed_workflow()
    flow.forget(workflow)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.start_of(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert flow.ran == ["one", "two", "one", "two", "three"]


def test_resuming_from_a_checkpoint_repeats_what_came_after_it(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow("three")
    received = flow.send(ResumeFromCheckpoint, workflow, **flow.where(workflow, 1))  # "one" has just completed
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert flow.ran == ["one", "two", "three", "two", "three"]
    present = service.of(CheckpointCreated)[-1]
    (restored,) = service.of(StateRestored)
    assert present.state is not None and f'"restored_from":"{restored.checkpoint_id}"'.encode() in present.state


def test_every_restore_is_counted(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    for count in (1, 2, 3):
        flow.fails["two"] = [ValueError("again")]
        received = flow.send(ResumeFromCheckpoint, workflow, **flow.where(workflow))
        assert service.answer(received)[0] == "failed"
        assert service.of(StateRestored)[-1].restore_count == count


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_a_restart_begins_with_the_first_input(service: Service, flow: Flow, held: bool) -> None:
    workflow = flow.failed_workflow("three")
    if not held:
        flow.forget(workflow)
    received = flow.send(RestartWorkflow, workflow, **flow.start_of(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert flow.ran == [*STEPS, *STEPS]
    assert b'"data":{"done":["one","two","three"],"in":1}' in (service.of(CheckpointCreated)[-1].state or b"")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"started_offset": None}, "the workflow's start is not in the log"),
        ({"started_offset": 2}, "is not this workflow's start"),
    ],
)
def test_a_restart_without_a_start_fails(service: Service, flow: Flow, change: dict[str, Any], reason: str) -> None:
    workflow = flow.failed_workflow()
    flow.forget(workflow)
    received = flow.send(RestartWorkflow, workflow, **{**flow.start_of(workflow), **change})
    status, detail = service.answer(received)
    assert status == "failed" and reason in (detail or "")
    wait_for("nothing held", lambda: flow.present(workflow) is None)


def test_a_step_without_a_function_cannot_be_retried(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    received = flow.send(RetryStep, workflow, step_id="nine", **flow.where(workflow))
    assert service.answer(received) == ("failed", "workflow type 'development' has no function for step 'nine'")


def test_a_command_for_a_workflow_that_has_ended_runs_nothing(service: Service, flow: Flow) -> None:
    workflow = flow.kind.start()
    flow.completed(workflow)
    wait_for("the end", lambda: flow.present(workflow) is None)
    for kind in (RetryStep, RestartWorkflow, CancelWorkflow):
        received = flow.send(kind, workflow, step_id="two", **flow.start_of(workflow))
        assert service.answer(received) == ("failed", "the workflow has ended")
    assert flow.ran == list(STEPS)


# -- what cannot be restored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RetryStep, ResumeFromCheckpoint])
@pytest.mark.parametrize(
    ("damage", "what", "fault"),
    [
        ({"state": flip}, "does not verify", "digest"),
        ({"state": b""}, "does not verify", "size"),
        ({"digest": "0" * 64}, "its digest is not the one", "digest"),
        ({"codec": "lz4"}, "does not verify", "codec"),
        ({"size_bytes": 2**40}, "does not verify", "limit"),
        ({"state": None}, "neither a state nor a claim", "structure"),
        ({"claim_uri": "claim:sha256:" + "0" * 64}, "both a state and a claim", "structure"),
        ({"protection": "hmac-sha256"}, "does not verify", "decryption"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_not_restored(
    service: Service, flow: Flow, kind: type[Command], damage: dict[str, Any], what: str, fault: str
) -> None:
    workflow = flow.failed_workflow()
    place = spoil(flow, workflow, **damage)
    received = flow.send(kind, workflow, step_id="two", **place)
    status, detail = service.answer(received)
    assert status == "failed" and what in (detail or "")
    (error,) = [e for e in flow.errors(workflow) if e.command_id == received.command.command_id]
    assert (error.error_code, error.reason) == ("STATE_CORRUPTION", fault)
    assert error.step_id == ("two" if kind is RetryStep else "")
    (rejected,) = service.of(CheckpointRejected)
    assert (rejected.checkpoint_id, rejected.reason, rejected.detected_by) == (place["checkpoint_id"], fault, "restore")
    assert what in rejected.detail
    assert service.reason(received) == "corrupt"
    assert service.of(StateRestored) == [] and flow.ran == ["one", "two"]


@pytest.mark.parametrize(
    ("damage", "what", "reason"),
    [
        ({"evidence": True}, "evidence of an error", "checkpoint_missing"),
        ({"state": None, "claim_uri": "claim:sha256:" + "0" * 64}, "object storage", "object_missing"),
        ({"state_version": "2"}, "the state has version '2', the service runs '1'", "downgrade"),
        ({"state_version": "0"}, "no migration '0' -> '1' is registered", "migration_missing"),
        ({"checkpoint_id": "6b696e74-0000-5000-8000-64656d6f0000"}, "is another one", "checkpoint_missing"),
        ({"workflow_id": "6b696e74-0000-5000-8000-64656d6f0000"}, "is another one", "checkpoint_missing"),
    ],
)
def test_what_must_not_be_restored_fails_without_talk_of_corruption(
    service: Service, flow: Flow, damage: dict[str, Any], what: str, reason: str
) -> None:
    workflow = flow.failed_workflow()
    place = spoil(flow, workflow, **damage)
    flow.forget(workflow)
    received = flow.send(ResumeFromCheckpoint, workflow, **place)
    status, detail = service.answer(received)
    assert status == "failed" and what in (detail or "")
    assert service.reason(received) == reason
    assert len(flow.errors(workflow)) == 1 and service.of(StateRestored) == service.of(CheckpointRejected) == []
    wait_for("nothing held", lambda: flow.present(workflow) is None)


def test_a_place_that_holds_something_else_is_not_restored(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    place = {**flow.where(workflow), "checkpoint_offset": 2}
    received = flow.send(ResumeFromCheckpoint, workflow, **place)
    assert service.answer(received) == ("failed", "RestoreError: the checkpoint at 3@2 is a StepStarted")


def test_what_was_not_restored_is_no_state_for_the_next_command(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    place = spoil(flow, workflow, state=flip)
    flow.forget(workflow)
    service.answer(flow.send(ResumeFromCheckpoint, workflow, **place))
    wait_for("nothing held", lambda: flow.present(workflow) is None)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.start_of(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert flow.ran == ["one", "two", "one", "two", "three"]


def away(partition: int, offset: int) -> Record:
    raise RetriableError("Kafka is away")


def test_a_log_that_cannot_be_read_fails_the_command_in_the_end(
    service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = flow.failed_workflow()
    monkeypatch.setattr(service.client.reader, "fetch", away)
    monkeypatch.setattr(restore, "PATIENCE_S", 0.5)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(received) == ("failed", "RestoreError: Kafka is away")
    assert service.reason(received) == "unavailable"
    assert [e.error_code for e in flow.errors(workflow)] == ["ValueError"] and not service.of(CheckpointRejected)


def test_a_log_that_cannot_be_read_for_a_moment_is_waited_for(
    service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = flow.failed_workflow()
    tries: list[int] = []

    def away_twice(partition: int, offset: int) -> Record:
        tries.append(offset)
        return away(partition, offset) if len(tries) <= 2 else flow.fetch(partition, offset)

    monkeypatch.setattr(service.client.reader, "fetch", away_twice)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(received) == ("succeeded", None)
    assert len(tries) == 3


def test_another_command_ends_the_wait_for_a_log_that_is_away(
    service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = flow.failed_workflow()
    first_try = threading.Event()

    def away_at_first(partition: int, offset: int) -> Record:
        if first_try.is_set():
            return flow.fetch(partition, offset)
        first_try.set()
        return away(partition, offset)

    monkeypatch.setattr(restore, "_PAUSE_S", restore.PATIENCE_S / 2)
    monkeypatch.setattr(service.client.reader, "fetch", away_at_first)
    first = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert first_try.wait(20)
    second = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(second) == ("succeeded", None)
    assert service.answer(first) == ("unknown", "another command took over")


# -- replacing what is at work ----------------------------------------------------------------------------------------


def test_a_hung_step_is_replaced_and_its_thread_left_behind(service: Service, flow: Flow) -> None:
    flow.gates["two"] = hung = threading.Event()
    workflow = flow.kind.start({"in": 1})
    assert flow.entered["two"].wait(20)
    flow.gates.clear()
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert service.client.stats()["abandoned"] == 1
    before = service.names
    hung.set()  # the old run wakes up: it may neither tell of its step nor go on to the next
    wait_for("the thread", lambda: service.client.stats()["abandoned"] == 0)
    assert service.names == before
    assert flow.ran == ["one", "two", "two", "three"]


def test_threads_left_behind_are_bounded(service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.runner.ABANDONED_MAX", 1)
    gates = [threading.Event(), threading.Event()]
    for number, gate in enumerate(gates):
        flow.gates["two"] = gate
        flow.entered["two"].clear()
        workflow = flow.kind.start()
        assert flow.entered["two"].wait(20)
        flow.gates.clear()
        received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
        if number == 0:
            flow.completed(workflow)
    assert service.answer(received) == ("failed", "1 threads hang in replaced steps")
    assert not workflow.run.superseded.is_set()
    gates[1].set()  # the step that could not be replaced goes on as if nothing had been asked
    flow.completed(workflow)
    gates[0].set()


def test_of_two_commands_the_later_one_counts(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    flow.gates["two"] = gate = threading.Event()
    flow.entered["two"].clear()
    first = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert flow.entered["two"].wait(20)
    flow.gates.clear()
    second = flow.send(ResumeFromCheckpoint, workflow, **flow.where(workflow))
    flow.completed(workflow)
    gate.set()
    assert service.answer(second) == ("succeeded", None)
    assert service.answer(first) == ("unknown", "another command took over")


def test_a_command_that_still_waits_for_a_thread_is_replaced_in_its_place(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    gate = flow.occupy_all_threads()
    first = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    flow.kind.start()
    second = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(first) == ("failed", "another command took over")
    assert service.answers(second) == []
    assert service.client.stats()["queued"] == 2
    gate.set()
    assert service.answer(second) == ("succeeded", None)


def test_what_waits_for_a_thread_when_the_service_stops_is_answered(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    gate = flow.occupy_all_threads()
    waiting = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    service.client.close(0.1)
    gate.set()
    assert service.answers(waiting) == [("failed", "the service stopped before it was begun")]


def test_what_is_at_work_when_the_service_stops_is_left_to_the_engine(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    flow.gates["two"] = gate = threading.Event()
    flow.entered["two"].clear()
    running = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert flow.entered["two"].wait(20)
    service.client.close(0.1)
    gate.set()
    assert service.answers(running) == []  # nothing was recorded after the close: the engine finds it out by its timer


# -- pause, resume, cancel --------------------------------------------------------------------------------------------


def test_a_pause_comes_about_at_the_end_of_the_step(service: Service, flow: Flow) -> None:
    flow.gates["one"] = gate = threading.Event()
    workflow = flow.kind.start()
    assert flow.entered["one"].wait(20)
    received = flow.send(PauseWorkflow, workflow)
    assert service.answers(received) == [] and service.of(WorkflowPaused) == []
    gate.set()
    assert service.answer(received) == ("succeeded", None)
    (paused,) = service.of(WorkflowPaused)
    assert (paused.reason, paused.actor, paused.command_id) == ("because", "engine", received.command.command_id)
    assert [c.step_id for c in service.of(StepCompleted)] == ["one"]
    assert workflow.status == "paused" and flow.ran == ["one"]
    assert service.of(WorkflowErrorOccurred) == []
    # Goes on with the next step, not with the one that it ended with.
    wait_for("rest", lambda: workflow.run.phase == "ended")
    resumed = flow.send(ResumeWorkflow, workflow)
    assert service.answer(resumed) == ("succeeded", None)
    flow.completed(workflow)
    assert flow.ran == list(STEPS)
    assert [r.command_id for r in service.of(WorkflowResumed)] == [resumed.command.command_id]


def test_a_workflow_that_rests_is_paused_at_once(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    assert service.answer(flow.send(PauseWorkflow, workflow)) == ("succeeded", None)
    assert workflow.status == "paused"
    assert service.answer(flow.send(PauseWorkflow, workflow)) == ("failed", "the workflow is paused")
    # The engine's own repair overrides the pause.
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)


def test_a_pause_may_be_taken_back_before_it_comes_about(service: Service, flow: Flow) -> None:
    flow.gates["one"] = gate = threading.Event()
    workflow = flow.kind.start()
    assert flow.entered["one"].wait(20)
    paused, again = flow.send(PauseWorkflow, workflow), flow.send(PauseWorkflow, workflow)
    assert service.answer(again) == ("failed", "the workflow is about to be paused")
    resumed = flow.send(ResumeWorkflow, workflow)
    assert service.answer(resumed) == ("succeeded", None)
    assert service.answer(paused) == ("failed", "resumed before the workflow was paused")
    gate.set()
    flow.completed(workflow)
    assert service.of(WorkflowPaused) == []


def test_a_pause_during_the_last_step_is_too_late(service: Service, flow: Flow) -> None:
    flow.gates["three"] = gate = threading.Event()
    workflow = flow.kind.start()
    assert flow.entered["three"].wait(20)
    received = flow.send(PauseWorkflow, workflow)
    gate.set()
    flow.completed(workflow)
    assert service.answer(received) == ("failed", "the workflow completed before it was paused")


def test_a_pause_that_another_command_overtakes_has_failed(service: Service, flow: Flow) -> None:
    flow.gates["one"] = gate = threading.Event()
    workflow = flow.kind.start()
    assert flow.entered["one"].wait(20)
    received = flow.send(PauseWorkflow, workflow)
    flow.gates.clear()
    flow.send(RestartWorkflow, workflow, **flow.start_of(workflow))
    assert service.answer(received) == ("failed", "another command took over before the workflow was paused")
    gate.set()
    flow.completed(workflow)


def test_a_workflow_that_is_not_paused_cannot_be_resumed(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    assert service.answer(flow.send(ResumeWorkflow, workflow)) == ("failed", "the workflow is not paused")


def test_a_step_of_a_paused_workflow_that_waits_in_the_queue_does_not_run(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    flow.gates["two"] = gate = threading.Event()
    flow.entered["two"].clear()
    flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert flow.entered["two"].wait(20)
    paused = flow.send(PauseWorkflow, workflow)
    gate.set()
    assert service.answer(paused) == ("succeeded", None)
    assert workflow.completed == ["one", "two"]


@pytest.mark.parametrize("at_work", [True, False])
def test_a_cancel_takes_effect_at_once(service: Service, flow: Flow, at_work: bool) -> None:
    gate = threading.Event()
    if at_work:
        flow.gates["two"] = gate
        workflow = flow.kind.start()
        assert flow.entered["two"].wait(20)
    else:
        workflow = flow.failed_workflow()
    received = flow.send(CancelWorkflow, workflow)
    assert service.answer(received) == ("succeeded", None)
    (cancelled,) = service.of(WorkflowCancelled)
    assert (cancelled.reason, cancelled.command_id) == ("because", received.command.command_id)
    assert flow.present(workflow) is None and workflow.status == "cancelled"
    before = service.names
    gate.set()
    wait_for("the thread", lambda: service.client.stats()["abandoned"] == 0)
    assert service.names == before and "three" not in flow.ran
    again = flow.send(CancelWorkflow, workflow)
    assert service.answer(again) == ("failed", "the workflow has ended")


def test_a_workflow_of_no_process_can_be_cancelled(service: Service, flow: Flow) -> None:
    workflow_id = "6b696e74-0000-5000-8000-64656d6f0000"
    received = service.carry_out(CancelWorkflow, workflow_id)
    assert service.answer(received) == ("succeeded", None)
    assert [c.workflow_id for c in service.of(WorkflowCancelled)] == [workflow_id]


def test_a_workflow_that_waits_for_a_thread_is_cancelled(service: Service, flow: Flow) -> None:
    gate = flow.occupy_all_threads()
    workflow = flow.kind.start()
    assert service.answer(flow.send(CancelWorkflow, workflow)) == ("succeeded", None)
    assert service.client.stats()["queued"] == 0
    gate.set()


def test_another_process_takes_over_and_this_one_lets_go(service: Service, flow: Flow) -> None:
    flow.gates["two"] = gate = threading.Event()
    workflow = flow.kind.start()
    assert flow.entered["two"].wait(20)
    commands = service.client._commands
    commands.given_away(service.command(ScaleResources, workflow.workflow_id, resource="memory", factor=2.0))
    assert flow.present(workflow) is workflow
    commands.given_away(service.command(RetryStep, workflow.workflow_id, step_id="two"))
    assert flow.present(workflow) is None and workflow.run.superseded.is_set()
    before = service.names
    gate.set()
    wait_for("the thread", lambda: service.client.stats()["abandoned"] == 0)
    assert service.names == before and flow.ran == ["one", "two"]


# -- handlers, and commands that nobody knows -------------------------------------------------------------------------


def test_a_handler_takes_the_place_of_what_the_client_does(service: Service, flow: Flow) -> None:
    seen: list[tuple[Command, Workflow | None, str]] = []

    @flow.kind.on("RetryStep")
    def retry(command: Command, workflow: Workflow | None) -> None:
        seen.append((command, workflow, threading.current_thread().name))

    workflow = flow.failed_workflow()
    received = flow.send(RetryStep, workflow, step_id="two")
    assert service.answer(received) == ("succeeded", None)
    ((command, given, thread),) = seen
    assert command is received.command and given is workflow and thread.startswith("kintsugi-run")
    assert flow.ran == ["one", "two"]


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (ValueError("no"), ("failed", "ValueError: no")),
        (SystemExit(3), ("failed", "SystemExit: 3")),
        (SupersededError("x"), ("unknown", "another command took over")),
    ],
)
def test_what_a_handler_raises_is_the_answer(
    service: Service, flow: Flow, failure: BaseException, answer: tuple[str, str]
) -> None:
    @flow.kind.on("CompensateStep")
    def compensate(command: Command, workflow: Workflow | None) -> None:
        assert workflow is None
        raise failure

    received = service.carry_out(CompensateStep, "6b696e74-0000-5000-8000-64656d6f0000", step_id="two")
    assert service.answer(received) == answer


def test_a_handler_may_be_a_coroutine_function(service: Service, flow: Flow) -> None:
    done = []

    @flow.kind.on("ScaleResources")
    async def scale(command: Command, workflow: Workflow | None) -> None:
        assert isinstance(command, ScaleResources)
        done.append(command.factor)

    received = service.carry_out(ScaleResources, "6b696e74-0000-5000-8000-64656d6f0000", resource="memory", factor=2.0)
    assert service.answer(received) == ("succeeded", None)
    assert done == [2.0]


def test_a_command_without_a_handler_fails(service: Service, flow: Flow) -> None:
    received = flow.send(ScaleResources, flow.failed_workflow(), resource="memory", factor=2.0)
    assert service.answer(received) == ("failed", "no handler for ScaleResources is registered")


def test_a_command_of_a_newer_release_fails(service: Service, flow: Flow) -> None:
    like = service.command(CancelWorkflow, flow.failed_workflow().workflow_id).command
    fields = {name: getattr(like, name) for name in Command.__dataclass_fields__}
    received = Received(command=ForeignCommand(name="Teleport", **fields), trace=None, place=(0, 0), timestamp_ms=1)
    service.client._commands.carry_out(received)
    assert service.answer(received) == ("failed", "this version of the client does not know Teleport")


def test_a_service_with_its_own_control_flow_restores_in_a_handler(service: Service, flow: Flow) -> None:
    kind = service.client.workflow_type("own")
    workflow = kind.begin({"in": 1})
    old = workflow.step("two")
    with workflow.step("one") as step:
        step.state["made"] = True
    old.__enter__()
    old.state["dirt"] = 1
    old.__exit__(ValueError, ValueError("broken"), None)
    resumed: list[Workflow] = []

    @kind.on("RetryStep")
    def retry(command: Command, given: Workflow | None) -> None:
        assert given is workflow
        restored = service.client.restore(command)
        resumed.append(restored)
        assert restored.completed == ["one"] and restored.data == {"in": 1, "made": True}
        with restored.step("two") as again:
            again.state["made"] = 2
        restored.complete()

    received = flow.send(RetryStep, workflow, workflow_type="own", step_id="two", **flow.where(workflow))
    assert service.answer(received) == ("succeeded", None)
    assert service.of(StepCompleted)[-1].command_id == received.command.command_id
    assert [c.workflow_id for c in service.of(WorkflowCompleted)] == [workflow.workflow_id]
    # The object that the old code drives is not the workflow any more.
    for attempt in (workflow.step("three").__enter__, workflow.complete, old.heartbeat):
        with pytest.raises(SupersededError):
            attempt()


def test_a_handler_learns_that_a_checkpoint_is_corrupt_and_so_does_the_log(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    place = spoil(flow, workflow, state=flip)

    @flow.kind.on("ResumeFromCheckpoint")
    def resume(command: Command, given: Workflow | None) -> None:
        with pytest.raises(RestoreError) as refused:
            service.client.restore(command)
        assert refused.value.corrupt
        raise refused.value

    received = flow.send(ResumeFromCheckpoint, workflow, **place)
    status, detail = service.answer(received)
    assert status == "failed" and "does not verify" in (detail or "")
    assert flow.errors(workflow)[-1].error_code == "STATE_CORRUPTION"


def test_only_commands_that_name_a_state_restore_one(service: Service, flow: Flow) -> None:
    received = service.command(CancelWorkflow, "6b696e74-0000-5000-8000-64656d6f0000")
    with pytest.raises(KintsugiError, match="CancelWorkflow names nothing to restore"):
        service.client.restore(received.command)


def test_own_control_flow_is_paused_between_its_steps(service: Service) -> None:
    kind = service.client.workflow_type("development")
    workflow = kind.begin()
    with workflow.step("one"):
        received = service.carry_out(PauseWorkflow, workflow.workflow_id)
        assert service.answers(received) == []
    with pytest.raises(PausedError), workflow.step("two"):
        pytest.fail("the step must not run")
    assert service.answer(received) == ("succeeded", None)
    assert service.answer(service.carry_out(ResumeWorkflow, workflow.workflow_id)) == (
        "failed",
        "no handler for ResumeWorkflow is registered",
    )

    @kind.on("ResumeWorkflow")
    def resume(command: Command, given: Workflow | None) -> None:
        assert given is workflow
        with workflow.step("two"):
            pass

    again = service.carry_out(ResumeWorkflow, workflow.workflow_id)
    assert service.answer(again) == ("succeeded", None)
    assert [r.command_id for r in service.of(WorkflowResumed)] == [again.command.command_id]
    assert workflow.completed == ["one", "two"]


def test_a_service_may_pause_resume_and_cancel_its_own_workflows(service: Service) -> None:
    workflow = service.client.workflow_type("development").begin()
    workflow.pause("maintenance")
    with pytest.raises(PausedError, match="maintenance"), workflow.step("one"):
        pytest.fail("the step must not run")
    assert workflow.resume("done")
    with workflow.step("one"):
        pass
    workflow.cancel("no longer wanted")
    with pytest.raises(SupersededError), workflow.step("two"):
        pytest.fail("the step must not run")
    assert [w.actor for w in service.of(WorkflowCancelled)] == ["service"]
    assert service.client.workflows() == []


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_names_its_command(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    received = service.command(
        RetryStep, workflow.workflow_id, step_id="two", error_id=workflow.workflow_id, attempt_number=3
    )
    commands = service.client._commands
    commands.accept(received)
    commands.repeat(received, "unknown")
    accepted, repeated = service.of(CommandAcknowledged)
    assert (accepted.status, accepted.duplicate) == ("accepted", False)
    assert (accepted.command_id, accepted.error_id) == (received.command.command_id, workflow.workflow_id)
    assert (accepted.attempt_number, accepted.step_id) == (3, "two")
    assert accepted.causation_id == received.command.event_id
    assert (repeated.status, repeated.duplicate) == ("unknown", True)
    assert repeated.event_id != accepted.event_id
    stats = service.client.stats()
    assert (stats["accepted"], stats["repeated"], stats["unknown"]) == (1, 1, 0)


def test_an_answer_that_cannot_be_told_stops_nothing(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    service.outbox.full_for = {"CommandAcknowledged"}
    flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    flow.completed(workflow)
    assert service.of(CommandAcknowledged) == []


@pytest.mark.parametrize("wrong", [lambda k: k.on("RetryStep"), lambda k: k.step("two")])
def test_declarations_stay_as_they_are(flow: Flow, wrong: Callable[[WorkflowType], object]) -> None:
    flow.kind.on("RetryStep")(lambda command, workflow: None)
    with pytest.raises(ConfigError):
        wrong(flow.kind)


def test_workflows_that_rest_are_bounded(service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.work.RESTING_MAX", 2)
    workflows = [flow.failed_workflow() for _ in range(4)]
    wait_for("the bound", lambda: [flow.present(w) for w in workflows] == [None, None, *workflows[2:]])
    # What memory has forgotten the log still knows.
    received = flow.send(RetryStep, workflows[0], step_id="two", **flow.where(workflows[0]))
    assert service.answer(received) == ("succeeded", None)
