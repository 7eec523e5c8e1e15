"""Steps: with statements and functions, sync and asyncio, heartbeats, usage, and the errors that steps raise."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kintsugi_client import (
    BufferFullError,
    ConfigError,
    NotDeliveredError,
    OutcomeUnknownError,
    RetriableError,
    StateError,
    StepContext,
    SupersededError,
    WorkflowType,
)
from kintsugi_client._schemas.admission import check
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    ResourceUsageReported,
    StepCompleted,
    StepProgressed,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from kintsugi_client.run import Run

from .kit import Service, wait_for
from .test_checkpoints import state_of


@pytest.fixture
def kind(service: Service) -> WorkflowType:
    return service.client.workflow_type("development")


def test_a_step_tells_its_beginning_its_state_and_its_end(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    with workflow.step("build", timeout_ms=5_000) as step:
        step.state["made"] = 1
    assert service.names == [
        "WorkflowStarted",
        "StepStarted",
        "CheckpointCreated",
        "CheckpointCreated",
        "StepCompleted",
    ]
    (started,), (completed,) = service.of(StepStarted), service.of(StepCompleted)
    assert started.step_run_id == completed.step_run_id == step.run_id
    assert (started.step_id, started.timeout_ms, started.command_id) == ("build", 5_000, None)
    assert completed.duration_ms is not None and completed.duration_ms >= 0
    assert [c.checkpoint_type for c in service.of(CheckpointCreated)] == ["step_start", "critical_point"]
    assert workflow.completed == ["build"] and workflow.status == "running"
    workflow.complete({"ok": True})
    workflow.complete()
    (ended,) = service.of(WorkflowCompleted)
    assert ended.result == '{"ok": true}'
    assert service.client.workflows() == []


def test_checkpoints_are_made_as_the_type_says(service: Service) -> None:
    workflow = service.client.workflow_type("t", checkpoint_types=("step_complete",)).begin()
    with workflow.step("one"):
        pass
    assert [c.checkpoint_type for c in service.of(CheckpointCreated)] == ["step_complete"]


def test_declared_functions_run_in_order_on_threads_of_the_client(service: Service, kind: WorkflowType) -> None:
    seen: list[tuple[str, str]] = []

    def note(step: StepContext) -> None:
        seen.append((step.step_id, threading.current_thread().name))
        step.state.setdefault("order", []).append(step.step_id)

    for step_id in ("one", "two", "three"):
        assert kind.step(step_id)(note) is note
    workflow = kind.start()
    wait_for("the end", lambda: workflow.status == "completed")
    assert [s for s, _ in seen] == ["one", "two", "three"]
    assert all(name.startswith("kintsugi-run") for _, name in seen)
    assert state_of(service.of(CheckpointCreated)[-1])["data"] == {"order": ["one", "two", "three"]}


def test_a_workflow_is_told_before_start_returns(service: Service, kind: WorkflowType) -> None:
    kind.step("one")(lambda step: None)
    service.outbox.full_for = {"WorkflowStarted"}
    with pytest.raises(BufferFullError):
        kind.start()
    assert service.client.workflows() == []
    service.outbox.full_for = set()
    kind.start()
    assert service.names[0] == "WorkflowStarted"


def test_too_many_waiting_workflows_are_refused_before_they_are_told(
    service: Service, kind: WorkflowType, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    kind.step("one")(lambda step: go.wait(20) and None)
    running = [kind.start() for _ in range(16)]
    wait_for("the threads", lambda: service.client.stats()["queued"] == 0)
    monkeypatch.setattr("kintsugi_client.runner.QUEUE_MAX", 3)
    waiting = [kind.start() for _ in range(3)]
    with pytest.raises(RetriableError, match="3 workflows wait for a thread"):
        kind.start()
    assert len(service.of(WorkflowStarted)) == 19 == service.client.stats()["workflows"]
    go.set()
    wait_for("the end", lambda: all(w.status == "completed" for w in running + waiting))


def test_coroutine_functions_are_run_to_their_end(service: Service, kind: WorkflowType) -> None:
    @kind.step("fetch")
    async def fetch(step: StepContext) -> None:
        await asyncio.sleep(0)
        step.state["checkpoint"] = await step.checkpoint_async()

    workflow = kind.start()
    wait_for("the end", lambda: workflow.status == "completed")
    manual = [c.checkpoint_id for c in service.of(CheckpointCreated) if c.checkpoint_type == "manual"]
    assert manual == [workflow.data["checkpoint"]]


def test_asyncio_code_may_drive_a_workflow(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()

    async def drive() -> None:
        async with workflow.step("one") as step:
            await step.checkpoint_async()
        with pytest.raises(ValueError, match="broken"):
            async with workflow.step("two"):
                raise ValueError("broken")

    asyncio.run(drive())
    assert [s.step_id for s in service.of(StepCompleted)] == ["one"]
    assert [e.step_id for e in service.of(WorkflowErrorOccurred)] == ["two"]


def test_the_event_loop_goes_on_while_the_broker_confirms(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    service.outbox.confirms = False

    async def drive() -> None:
        async with workflow.step("one") as step:
            waiting = asyncio.ensure_future(step.checkpoint_async(timeout_s=0.2))
            turns = 0
            while not waiting.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 2
            with pytest.raises(NotDeliveredError, match="waits in the buffer"):
                await waiting

    asyncio.run(drive())


def test_a_state_that_is_no_data_is_refused_in_asyncio_too(kind: WorkflowType) -> None:
    async def drive() -> None:
        async with kind.begin().step("one") as step:
            step.state["x"] = math.nan
            await step.checkpoint_async()

    with pytest.raises(StateError, match=r"\$\.data\.x"):
        asyncio.run(drive())


@pytest.mark.parametrize("stop", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
def test_a_step_that_is_interrupted_has_failed(service: Service, kind: WorkflowType, stop: type[BaseException]) -> None:
    with pytest.raises(stop), kind.begin().step("one"):
        raise stop
    (error,) = service.of(WorkflowErrorOccurred)
    assert error.error_code == stop.__name__
    assert service.of(StepCompleted) == []


def test_heartbeats_carry_progress_token_and_message(service: Service, kind: WorkflowType) -> None:
    with kind.begin().step("one") as step:
        step.heartbeat()
        step.heartbeat(0.5, token="page-7", message="half way")
        step.heartbeat(math.nan, token="\ud800\x00", message="x" * 100_000)
    plain, full, odd = service.of(StepProgressed)
    assert (plain.progress, plain.progress_token, plain.message) == (None, None, None)
    assert (full.progress, full.progress_token, full.message) == (0.5, "page-7", "half way")
    assert (odd.progress, odd.progress_token) == (None, "\ufffd\ufffd")
    assert odd.message is not None and len(odd.message) <= 10_000
    assert {p.step_run_id for p in (plain, full, odd)} == {step.run_id}
    for record in (plain, full, odd):
        check(record)


def test_usage_is_reported(service: Service, kind: WorkflowType) -> None:
    with kind.begin().step("one") as step:
        step.report_usage(memory_mb=512, cpu_percent=12.5, api_calls=3)
        step.report_usage(memory_mb=math.inf, api_calls=2**70)
    usual, odd = service.of(ResourceUsageReported)
    assert (usual.memory_mb, usual.cpu_percent, usual.api_calls) == (512.0, 12.5, 3)
    assert (odd.memory_mb, odd.cpu_percent, odd.api_calls) == (None, None, 2**31 - 1)
    check(odd)


def test_a_full_buffer_stops_no_step(service: Service, kind: WorkflowType) -> None:
    service.outbox.full_for = {
        "StepStarted",
        "StepProgressed",
        "CheckpointCreated",
        "StepCompleted",
        "WorkflowCompleted",
    }
    workflow = kind.begin()
    with workflow.step("one") as step:
        step.heartbeat(0.1)
        step.report_usage(memory_mb=1)
        with pytest.raises(BufferFullError):
            step.checkpoint()
    workflow.complete()
    assert workflow.status == "completed"
    assert service.names == ["WorkflowStarted", "ResourceUsageReported"]


def test_a_step_that_fails_is_reported_and_its_workflow_rests(service: Service, kind: WorkflowType) -> None:
    kind.step("one")(lambda step: None)

    @kind.step("two")
    def two(step: StepContext) -> None:
        step.error_context["attempt"] = 1
        raise ConnectionError("the network failed")

    workflow = kind.start()
    (error,) = wait_for("the error", lambda: service.of(WorkflowErrorOccurred))
    assert (error.step_id, error.error_code, error.error_message) == ("two", "ConnectionError", "the network failed")
    assert error.context == '{"attempt": 1}'
    assert error.stack_trace is not None and 'raise ConnectionError("the network failed")' in error.stack_trace
    assert error.step_run_id == service.of(StepStarted)[-1].step_run_id
    assert error.detected_by == "service"
    evidence = service.of(CheckpointCreated)[-1]
    assert evidence.evidence and evidence.checkpoint_id == error.checkpoint_id
    assert workflow.completed == ["one"] and service.client.workflow(workflow.workflow_id) is workflow
    assert len(service.of(WorkflowErrorOccurred)) == 1


class CodedError(Exception):
    def __init__(self, code: object) -> None:
        super().__init__("coded")
        self.code = code


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    @property
    def code(self) -> str:
        raise RuntimeError("no")


class UnprintableSurrogatesError(Exception):
    def __str__(self) -> str:
        return "\ud800 and \x00"


_REPORTED: list[tuple[str, Callable[[], BaseException], str, str]] = [
    ("own code", lambda: CodedError("OUT_OF_MEMORY"), "OUT_OF_MEMORY", "coded"),
    ("a code that is no text", lambda: CodedError(404), "CodedError", "coded"),
    ("an empty code", lambda: CodedError(""), "CodedError", "coded"),
    ("an endless code", lambda: CodedError("C" * 10_000), "C" * 46 + "\n[...]\n" + "C" * 46, "coded"),
    ("odd text", lambda: UnprintableSurrogatesError(), "UnprintableSurrogatesError", "\ufffd and \ufffd"),
    ("no text", lambda: UnprintableError(), "UnprintableError", "<UnprintableError: str() failed with RuntimeError>"),
    ("odd code", lambda: CodedError("\ud800\x00"), "\ufffd\ufffd", "coded"),
]


@pytest.mark.parametrize(("make", "code", "message"), [r[1:] for r in _REPORTED], ids=[r[0] for r in _REPORTED])
def test_whatever_is_raised_is_reported(
    service: Service, kind: WorkflowType, make: Callable[[], BaseException], code: str, message: str
) -> None:
    failure = make()
    with pytest.raises(type(failure)), kind.begin().step("one"):
        raise failure
    (error,) = service.of(WorkflowErrorOccurred)
    assert (error.error_code, error.error_message) == (code, message)
    assert error.stack_trace is not None and "Traceback" in error.stack_trace
    check(error)


def test_a_giant_message_keeps_its_beginning_and_its_end(service: Service, kind: WorkflowType) -> None:
    with pytest.raises(ValueError, match="begin"), kind.begin().step("one"):
        raise ValueError("begin" + "x" * 50_000_000 + "end")
    (error,) = service.of(WorkflowErrorOccurred)
    assert error.error_message.startswith("begin") and error.error_message.endswith("end")
    assert len(error.error_message) <= 10_000
    assert error.stack_trace is not None and len(error.stack_trace) <= 100_000
    assert error.stack_trace.startswith("Traceback")


def test_a_long_chain_of_causes_is_bounded(service: Service, kind: WorkflowType) -> None:
    def fail(depth: int) -> None:
        if depth:
            try:
                fail(depth - 1)
            except ValueError as error:
                raise ValueError("y" * 5_000) from error
        raise ValueError("root")

    with pytest.raises(ValueError, match="y"), kind.begin().step("one"):
        fail(100)
    assert len(service.of(WorkflowErrorOccurred)[0].stack_trace or "") <= 100_000


_CONTEXTS: list[tuple[Any, str | None]] = [
    ({}, None),
    ({"a": [1, 2.5, None, True, "x"]}, '{"a": [1, 2.5, null, true, "x"]}'),
    ({"a": math.nan, "b": 2**60, 7: "é"}, '{"a": "nan", "b": "1152921504606846976", "7": "é"}'),
    ({"\ud800": "\x00"}, '{"\ufffd": "\ufffd"}'),
    ({"e": UnprintableError()}, '{"e": "UnprintableError()"}'),
    (["not", "a", "dict"], '["not", "a", "dict"]'),
    ("text", '"text"'),
]


@pytest.mark.parametrize(("context", "expected"), _CONTEXTS)
def test_context_is_made_into_json(service: Service, kind: WorkflowType, context: Any, expected: str | None) -> None:
    step = kind.begin().step("one").__enter__()
    step.error_context = context
    step.__exit__(ValueError, ValueError("broken"), None)
    assert service.of(WorkflowErrorOccurred)[0].context == expected


def test_giant_and_endless_contexts_are_bounded(service: Service, kind: WorkflowType) -> None:
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    workflow = kind.begin()
    for context in ({"big": ["x" * 1_000] * 100_000}, cycle, {str(n): n for n in range(1_000_000)}):
        workflow.report_error("one", ValueError("broken"), context=context)
    assert len(service.of(WorkflowErrorOccurred)) == 3
    assert all(len(e.context or "") <= 110_000 for e in service.of(WorkflowErrorOccurred))


def test_an_error_may_be_reported_without_an_exception(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    error_id = workflow.report_error("\ud800", code="API_RATE_LIMIT", message="429", context={"after_s": 30})
    workflow.report_error("", None)
    first, bare = service.of(WorkflowErrorOccurred)
    assert (first.error_id, first.step_id, first.error_code) == (error_id, "\ufffd", "API_RATE_LIMIT")
    assert (first.error_message, first.stack_trace, first.context) == ("429", None, '{"after_s": 30}')
    assert (bare.error_code, bare.error_message) == ("Error", "")
    check(first)


def test_an_error_is_reported_even_when_its_evidence_has_no_room(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    service.outbox.full_for = {"CheckpointCreated"}
    workflow.report_error("one", ValueError("x"))
    assert [e.checkpoint_id for e in service.of(WorkflowErrorOccurred)] == [None]


def test_results_are_written_as_json_and_bounded(service: Service, kind: WorkflowType) -> None:
    for result in (None, {"n": 1}, "\x00", {"big": ["x" * 1_000] * 20_000}):
        kind.begin().complete(result)
    none, plain, odd, big = [c.result for c in service.of(WorkflowCompleted)]
    assert (none, plain, odd) == (None, '{"n": 1}', '"\ufffd"')
    assert big is not None and len(big) <= 1_000_000 and '"$kintsugi": "cut"' in big


def test_a_replaced_run_records_nothing_more_and_touches_no_other_state(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin({"n": 1})
    step = workflow.step("one")
    step.__enter__()
    successor = Run("command")
    workflow.replace_run(successor)
    successor.data = {"n": 1}
    before = service.names
    assert step.cancelled
    step.state["n"] = 99
    for attempt in (
        step.check,
        step.heartbeat,
        step.report_usage,
        step.checkpoint,
        lambda: workflow.report_error("one", ValueError("late")),
        workflow.complete,
        workflow.step("two").__enter__,
        lambda: step.__exit__(None, None, None),
    ):
        with pytest.raises(SupersededError):
            attempt()
    assert service.names == before
    assert workflow.data == {"n": 1} and workflow.completed == [] and workflow.status == "running"


def test_an_error_of_a_replaced_run_is_not_reported(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    step = workflow.step("one").__enter__()
    workflow.replace_run(Run("command"))
    with pytest.raises(SupersededError):
        step.__exit__(ValueError, ValueError("late"), None)
    assert service.of(WorkflowErrorOccurred) == []


def test_a_defect_outside_of_any_step_is_reported_too(
    service: Service, kind: WorkflowType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind.step("one")(lambda step: None)

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("kintsugi_client.types.StepContext.__enter__", broken)
    kind.start()
    (error,) = wait_for("the error", lambda: service.of(WorkflowErrorOccurred))
    assert (error.step_id, error.error_code) == ("", "RuntimeError")


def test_close_lets_the_running_step_end_and_begins_no_other(service: Service, kind: WorkflowType) -> None:
    begun, go = threading.Event(), threading.Event()
    second: list[StepContext] = []

    @kind.step("one")
    def one(step: StepContext) -> None:
        begun.set()
        assert go.wait(20)

    kind.step("two")(second.append)
    workflow = kind.start()
    assert begun.wait(20)
    closing = threading.Thread(target=service.client.close)
    closing.start()
    wait_for("closing", lambda: service.client.closing)
    go.set()
    closing.join(20)
    assert workflow.completed == ["one"] and second == []
    assert service.of(WorkflowErrorOccurred) == [] and service.of(WorkflowCompleted) == []


def test_a_last_step_that_ends_while_closing_completes_the_workflow(service: Service, kind: WorkflowType) -> None:
    begun, go = threading.Event(), threading.Event()

    @kind.step("one")
    def one(step: StepContext) -> None:
        begun.set()
        assert go.wait(20)

    workflow = kind.start()
    assert begun.wait(20)
    closing = threading.Thread(target=service.client.close)
    closing.start()
    wait_for("closing", lambda: service.client.closing)
    go.set()
    closing.join(20)
    assert workflow.status == "completed"


def test_serve_belongs_in_the_main_thread(service: Service) -> None:
    refused: list[BaseException] = []

    def serve() -> None:
        try:
            service.client.serve()
        except ConfigError as error:
            refused.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(20)
    assert "only the main thread can" in str(refused[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_at_a_signal_and_closes(
    service: Service, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def listen(**_: object) -> bool:
        signal.raise_signal(number)
        return False

    before = signal.getsignal(number)
    monkeypatch.setattr(service.client, "listen", listen)
    assert not service.client.serve()
    assert signal.getsignal(number) is before
    assert service.client.closing


# -- digests and dependencies -----------------------------------------------------------------------------------------


def test_input_and_output_are_told_as_digests(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    for given, made in (({"a": 1, "b": [2]}, "made"), ({"b": [2], "a": 1}, "made"), ({"a": 2}, None)):
        with workflow.step("poll", given=given) as step:
            step.output(made)
    first, second, third = (s.input_digest for s in service.of(StepStarted))
    assert first == second == hashlib.sha256(b'{"a":1,"b":[2]}').hexdigest() != third
    made = hashlib.sha256(b'"made"').hexdigest()
    assert [c.output_digest for c in service.of(StepCompleted)] == [made, made, None]


@pytest.mark.parametrize("value", [None, object(), math.nan, {1: 2}, b"bytes"])
def test_what_is_no_json_has_no_digest(service: Service, kind: WorkflowType, value: Any) -> None:
    with kind.begin().step("one", given=value) as step:
        step.output(value)
    assert service.of(StepStarted)[0].input_digest is None
    assert service.of(StepCompleted)[0].output_digest is None


def test_a_steps_function_returns_its_output_and_its_input_is_picked_from_the_state(
    service: Service, kind: WorkflowType
) -> None:
    @kind.step("fetch", given=lambda state: state["page"])
    async def fetch(ctx: StepContext) -> list[int]:
        return [ctx.state["page"]]

    kind.start({"page": 7})
    (completed,) = wait_for("its end", lambda: service.of(StepCompleted))
    assert completed.output_digest == hashlib.sha256(b"[7]").hexdigest()
    assert service.of(StepStarted)[0].input_digest == hashlib.sha256(b"7").hexdigest()


def test_a_state_without_what_a_step_works_on_is_the_steps_error(service: Service, kind: WorkflowType) -> None:
    kind.step("fetch", given=lambda state: state["page"])(lambda ctx: None)
    kind.start()
    (error,) = wait_for("the error", lambda: service.of(WorkflowErrorOccurred))
    assert (error.step_id, error.error_code) == ("fetch", "KeyError")


class DownError(Exception):
    dependency = "cards"


def fails_inside(step: StepContext) -> None:
    with step.dependency("payments"):
        raise ConnectionError("refused")


def fails_because_of_it(step: StepContext) -> None:
    try:
        fails_inside(step)
    except ConnectionError as error:
        raise ValueError("no receipt") from error


def fails_in_the_inner_one(step: StepContext) -> None:
    with step.dependency("gateway"):
        fails_inside(step)


def fails_by_its_own_name(step: StepContext) -> None:
    raise DownError


def fails_later(step: StepContext) -> None:
    with contextlib.suppress(ConnectionError):
        fails_inside(step)
    raise ValueError("something else")


@pytest.mark.parametrize(
    ("fail", "dependency"),
    [
        (fails_inside, "payments"),
        (fails_because_of_it, "payments"),
        (fails_in_the_inner_one, "payments"),
        (fails_by_its_own_name, "cards"),
        (fails_later, None),
    ],
)
def test_an_error_names_the_dependency_that_it_is_put_down_to(
    service: Service, kind: WorkflowType, fail: Callable[[StepContext], None], dependency: str | None
) -> None:
    workflow = kind.begin()
    with pytest.raises(Exception), workflow.step("one") as step:  # noqa: B017, PT011
        fail(step)
    assert service.of(WorkflowErrorOccurred)[0].dependency == dependency


def test_an_unknown_outcome_is_told_as_such(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    with pytest.raises(OutcomeUnknownError), workflow.step("charge"):
        raise OutcomeUnknownError("no answer within 5 s", dependency="payments")
    (error,) = service.of(WorkflowErrorOccurred)
    assert (error.error_code, error.reason, error.dependency) == (
        "OutcomeUnknownError",
        "outcome_unknown",
        "payments",
    )
