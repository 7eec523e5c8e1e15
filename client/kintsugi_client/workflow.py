"""A workflow in this process: its state, and the events that tell of it."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ._schemas.errors import StateError
from ._schemas.records import Record
from ._schemas.records.events import (
    CheckpointCreated,
    ResourceUsageReported,
    StatePersisted,
    StateRestored,
    StepCompleted,
    StepProgressed,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
)
from .checkpoints import Chain, json_text, new_id, next_link, now_us, store, store_evidence, type_of
from .errors import BufferFullError, NotDeliveredError, PausedError, SupersededError
from .outbox import Delivery

if TYPE_CHECKING:
    from .client import Client
    from .types import WorkflowType

#: How long a manual checkpoint waits for the broker before it tells the caller the truth.
CHECKPOINT_TIMEOUT_S = 10.0
_MESSAGE_MAX = 10_000
_STACK_MAX = 100_000
_CODE_MAX = 100

#: A run's way through the client's threads; abandoned: replaced while it still holds its thread.
IDLE, QUEUED, WORKING, ABANDONED, ENDED = range(5)

log = logging.getLogger("kintsugi_client")
R = TypeVar("R", bound=Record)


class Run:
    """One pass through a workflow's steps; a command replaces it by a new one."""

    __slots__ = ("command_id", "state", "step_timeout_ms", "stop", "superseded", "trace")

    def __init__(self, command_id: str | None = None, trace: str | None = None) -> None:
        self.command_id = command_id
        self.trace = trace
        self.state = IDLE
        self.superseded = threading.Event()
        self.stop: str | None = None
        self.step_timeout_ms: dict[str, int] = {}


class Workflow:
    """State and identity of one workflow. `data` is the service's own part of the state: JSON data only."""

    def __init__(self, kind: WorkflowType, client: Client, workflow_id: str, data: dict[str, Any]) -> None:
        self.kind = kind
        self.workflow_id = workflow_id
        self.data = data
        self.completed: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.status = "running"
        self.chain = Chain()
        self.partition = -1
        self.run: Run | None = None
        self._client = client
        self._lock = threading.RLock()
        self._started: Delivery | None = None

    @property
    def busy(self) -> bool:
        """Whether a thread of the client runs this workflow's steps, or is about to."""
        return self.run is not None and self.run.state in (QUEUED, WORKING)

    # -- events ---------------------------------------------------------------------------------------------------

    def emit(self, kind: type[R], run: Run | None = None, **fields: Any) -> Delivery:
        """Write one event. SupersededError when `run` is no longer this workflow's."""
        with self._lock:
            if run is not None and (run.superseded.is_set() or run is not self.run):
                raise SupersededError("a command has replaced this run")
            record = kind(
                event_id=new_id(),
                workflow_id=self.workflow_id,
                workflow_type=self.kind.name,
                occurred_at=now_us(),
                producer=self._client.producer_name,
                **fields,
            )
            return self._client.outbox.send(record, parent=run.trace if run else None)

    def tell(self, kind: type[R], run: Run | None = None, **fields: Any) -> Delivery | None:
        """As `emit`, for events whose loss must not stop the step: a full buffer is counted and logged."""
        try:
            return self.emit(kind, run, **fields)
        except (BufferFullError, NotDeliveredError) as error:
            log.warning("%s of %s: %s", kind.__name__, self.workflow_id, error)
            return None

    def announce(self, run: Run, input_data: Any) -> None:
        """WorkflowStarted, with the step graph."""
        self.run = run
        self._started = self.tell(
            WorkflowStarted,
            run,
            workflow_version=self.kind.version,
            steps=self.kind.specs(),
            timeout_ms=self.kind.timeout_ms,
            input=json_text(input_data),
        )

    def known_partition(self) -> int:
        """Partition of this workflow's events and commands; -1 while no event is confirmed."""
        if self.partition < 0 and self._started is not None:
            self.partition = self._started.partition
        return self.partition

    # -- state ----------------------------------------------------------------------------------------------------

    def document(self, step_id: str) -> dict[str, Any]:
        """The state as a checkpoint keeps it: enough for another process to go on."""
        return {
            "workflow_id": self.workflow_id,
            "workflow_type": self.kind.name,
            "version": self.kind.version,
            "step_id": step_id,
            "status": self.status,
            "completed_steps": list(self.completed),
            "data": self.data,
            "metadata": self.metadata,
        }

    def checkpoint(
        self, step_id: str, moment: str = "manual", *, run: Run | None = None, evidence: bool = False
    ) -> tuple[str, Delivery]:
        """Write a checkpoint; returns its id and its delivery. StateError when the state is no valid data."""
        with self._lock:
            document = self.document(step_id)
            kept = (
                store_evidence(document, codec=self.kind.codec) if evidence else store(document, codec=self.kind.codec)
            )
            link = next_link(self.chain, kept.digest)
            checkpoint_id = new_id()
            spec = self.kind.spec(step_id)
            delivery = self.emit(
                CheckpointCreated,
                run,
                checkpoint_id=checkpoint_id,
                step_id=step_id,
                checkpoint_type=type_of(step_id, moment, critical=bool(spec and spec.critical)),
                sequence=link.sequence,
                state_version=self.kind.version,
                parent_digest=self.chain.digest,
                chain_digest=link.chain_digest,
                status=self.status,
                evidence=evidence,
                **kept.fields(),
            )
            self.chain = link
            return checkpoint_id, delivery

    def persist(self, step_id: str) -> Delivery:
        """Record a version of the state that is no checkpoint."""
        with self._lock:
            kept = store(self.document(step_id), codec=self.kind.codec)
            number = int(self.metadata.get("persisted", 0)) + 1
            self.metadata["persisted"] = number
            return self.emit(
                StatePersisted,
                self.run,
                step_id=step_id,
                version=str(number),
                state_version=self.kind.version,
                status=self.status,
                **kept.fields(),
            )

    def adopt(self, document: Mapping[str, Any], chain: Chain, checkpoint_id: str) -> None:
        """Take a verified state: data, completed steps, and where it came from."""
        with self._lock:
            self.data = dict(document.get("data") or {})
            self.completed = [str(s) for s in document.get("completed_steps") or []]
            before = dict(document.get("metadata") or {})
            count = max(int(before.get("restore_count", 0)), int(self.metadata.get("restore_count", 0))) + 1
            self.metadata = {
                **before,
                "restored_from": checkpoint_id,
                "restored_at": now_us(),
                "restore_count": count,
            }
            self.status = "running"
            if chain.sequence >= self.chain.sequence:
                self.chain = chain

    def tell_restored(self, run: Run, step_id: str) -> None:
        """StateRestored, with the state that was restored."""
        kept = store(self.document(step_id), codec=self.kind.codec)
        self.tell(
            StateRestored,
            run,
            checkpoint_id=self.metadata["restored_from"],
            step_id=step_id,
            command_id=run.command_id,
            state_version=self.kind.version,
            status=self.status,
            restored_at=self.metadata["restored_at"],
            restore_count=self.metadata["restore_count"],
            **kept.fields(),
        )

    def reset(self, data: dict[str, Any]) -> None:
        """Clean state, for a complete restart. The chain of checkpoints goes on."""
        with self._lock:
            self.data, self.completed, self.metadata, self.status = data, [], {}, "running"

    # -- life -----------------------------------------------------------------------------------------------------

    def replace_run(self, run: Run) -> Run | None:
        """Make `run` the workflow's; returns the one before, which may still be at work."""
        with self._lock:
            before, self.run = self.run, run
            if before is None or before is run:
                return None
            before.superseded.set()
            return before

    def step(self, step_id: str, *, timeout_ms: int | None = None) -> StepContext:
        """A step of a service with its own control flow: `with workflow.step("build") as ctx:` (or `async with`)."""
        return StepContext(self, step_id, self._own_run(), timeout_ms=timeout_ms)

    def complete(self, result: Any = None, *, run: Run | None = None) -> None:
        """The workflow reached its end. SupersededError when `run` is no longer this workflow's: another goes on."""
        self.tell(WorkflowCompleted, run or self._own_run(), result=json_text(result))
        self.status = "completed"
        self._client.held.end(self.workflow_id)

    def cancelled(self, run: Run, reason: str, actor: str) -> None:
        """The workflow was cancelled by a command."""
        self.status = "cancelled"
        self.tell(WorkflowCancelled, run, reason=reason, actor=actor, command_id=run.command_id)
        self._client.held.end(self.workflow_id)

    def paused(self, run: Run, reason: str, actor: str) -> None:
        """The workflow stands still."""
        self.status = "paused"
        self.tell(WorkflowPaused, run, reason=reason, actor=actor, command_id=run.command_id)

    def resumed(self, run: Run, reason: str, actor: str) -> None:
        """The workflow goes on."""
        self.status = "running"
        self.tell(WorkflowResumed, run, reason=reason, actor=actor, command_id=run.command_id)

    def report_error(
        self,
        step_id: str,
        error: BaseException | None = None,
        *,
        code: str | None = None,
        message: str | None = None,
        context: Mapping[str, Any] | None = None,
        run: Run | None = None,
        step_run_id: str | None = None,
    ) -> str:
        """Report an error, with the state as evidence; returns its id. Never raises for what the evidence contains."""
        evidence_id: str | None = None
        try:
            evidence_id = self.checkpoint(step_id, "error_recovery", run=run, evidence=True)[0]
        except SupersededError:
            raise
        except Exception as failure:
            log.warning("no evidence for an error of %s: %s", self.workflow_id, failure)
        given = code or getattr(error, "code", None)
        named = given if isinstance(given, str) and given else type(error).__name__ if error else "Error"
        error_id = new_id()
        self.tell(
            WorkflowErrorOccurred,
            run,
            error_id=error_id,
            step_id=step_id,
            step_run_id=step_run_id,
            command_id=run.command_id if run else None,
            error_code=_clean(named)[:_CODE_MAX],
            error_message=_clean(message if message is not None else str(error))[:_MESSAGE_MAX],
            stack_trace=None if error is None else _clean("".join(traceback.format_exception(error)))[-_STACK_MAX:],
            context=json_text(dict(context)) if context else None,
            checkpoint_id=evidence_id,
            detected_by="service",
        )
        return error_id

    def _own_run(self) -> Run:
        if self.run is None:
            self.run = Run()
        return self.run


def _clean(text: str) -> str:
    """Text that Avro can carry: lone surrogates become replacement characters."""
    return text.encode("utf-8", "replace").decode()


class StepContext:
    """A run of a step: a context manager, sync and async. What the step's function is given."""

    def __init__(self, workflow: Workflow, step_id: str, run: Run, *, timeout_ms: int | None = None) -> None:
        self.workflow = workflow
        self.step_id = step_id
        self.run = run
        self.run_id = new_id()
        spec = workflow.kind.spec(step_id)
        self._heartbeat_timeout_ms = spec.heartbeat_timeout_ms if spec else None
        self._timeout_ms = run.step_timeout_ms.get(step_id, timeout_ms if timeout_ms is not None else None)
        self._began = 0.0
        self.error_context: dict[str, Any] = {}

    @property
    def state(self) -> dict[str, Any]:
        """The service's part of the state; change it in place."""
        return self.workflow.data

    @property
    def cancelled(self) -> bool:
        """Whether a command has replaced or stopped this run; a long step looks at it now and then."""
        return self.run.superseded.is_set() or self.run.stop is not None

    def check(self) -> None:
        """Raise SupersededError or PausedError when this run should end."""
        if self.run.superseded.is_set():
            raise SupersededError("a command has replaced this run")
        if self.run.stop is not None:
            raise PausedError(self.run.stop)

    def checkpoint(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """Save the state now; returns when the broker has confirmed it. Tells the truth when it has not.

        Raises StateError (the state is no valid data, with its path), BufferFullError, NotDeliveredError or
        SupersededError.
        """
        checkpoint_id, delivery = self.workflow.checkpoint(self.step_id, "manual", run=self.run)
        delivery.wait(timeout_s)
        return checkpoint_id

    async def checkpoint_async(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """`checkpoint` for asyncio code: the event loop goes on while the broker confirms."""
        import asyncio

        return await asyncio.to_thread(self.checkpoint, timeout_s=timeout_s)

    def heartbeat(self, progress: float | None = None, *, token: str | None = None, message: str | None = None) -> None:
        """Say that the step is alive, and how far it is (0 to 1). Raises when this run should end."""
        self.check()
        self.workflow.tell(
            StepProgressed,
            self.run,
            step_id=self.step_id,
            step_run_id=self.run_id,
            progress=progress,
            progress_token=token,
            message=message,
        )

    def report_usage(
        self, *, memory_mb: float | None = None, cpu_percent: float | None = None, api_calls: int | None = None
    ) -> None:
        """Say what the step uses."""
        self.workflow.tell(
            ResourceUsageReported,
            self.run,
            step_id=self.step_id,
            memory_mb=memory_mb,
            cpu_percent=cpu_percent,
            api_calls=api_calls,
        )

    def __enter__(self) -> StepContext:
        self.check()
        self._began = time.monotonic()
        workflow = self.workflow
        workflow.tell(
            StepStarted,
            self.run,
            step_id=self.step_id,
            step_run_id=self.run_id,
            command_id=self.run.command_id,
            timeout_ms=self._timeout_ms,
            heartbeat_timeout_ms=self._heartbeat_timeout_ms,
        )
        if "step_start" in workflow.kind.checkpoint_types:
            try:
                self._automatic("step_start")
            except StateError as error:
                workflow.report_error(self.step_id, error, run=self.run, step_run_id=self.run_id)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._completed()
        elif isinstance(error, Exception) and not isinstance(error, SupersededError | PausedError):
            self.workflow.report_error(
                self.step_id, error, context=self.error_context, run=self.run, step_run_id=self.run_id
            )

    async def __aenter__(self) -> StepContext:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _completed(self) -> None:
        workflow = self.workflow
        if self.step_id not in workflow.completed:
            workflow.completed.append(self.step_id)
        try:
            if "step_complete" in workflow.kind.checkpoint_types:
                self._automatic("step_complete")
        except SupersededError:
            raise
        except Exception as error:
            # The step's result cannot be saved: that is a failure of the step, not a detail.
            workflow.completed.remove(self.step_id)
            workflow.report_error(self.step_id, error, run=self.run, step_run_id=self.run_id)
            raise
        workflow.tell(
            StepCompleted,
            self.run,
            step_id=self.step_id,
            step_run_id=self.run_id,
            command_id=self.run.command_id,
            duration_ms=int((time.monotonic() - self._began) * 1000),
        )

    def _automatic(self, moment: str) -> None:
        try:
            self.workflow.checkpoint(self.step_id, moment, run=self.run)
        except (BufferFullError, NotDeliveredError) as error:
            log.warning("checkpoint of %s at %s: %s", self.workflow.workflow_id, self.step_id, error)
