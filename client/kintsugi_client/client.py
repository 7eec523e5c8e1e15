"""The client: one connection, the workflows in this process, and the threads that run them."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ._schemas.codec import Codec
from ._schemas.errors import ConfigError, KintsugiError
from ._schemas.ids import uuid_bytes
from ._schemas.records import Command
from ._schemas.records.commands import (
    CancelWorkflow,
    PauseWorkflow,
    RestartWorkflow,
    ResumeFromCheckpoint,
    ResumeWorkflow,
    RetryStep,
)
from ._schemas.records.events import CommandAcknowledged, StepSpec
from ._schemas.registry import Registry
from .checkpoints import new_id, now_us
from .errors import NotDeliveredError, PausedError, RestoreError, SupersededError
from .held import Held
from .listener import Listener
from .outbox import Delivery, Interceptor, Outbox, Undelivered
from .restore import LogReader
from .types import CHECKPOINT_TYPES, WorkflowType
from .workflow import ABANDONED, ENDED, QUEUED, WORKING, Run, Workflow

#: Threads that run steps, and workflows that may wait for one.
WORKERS = 16
QUEUE_MAX = 10_000
#: Threads left behind by hung steps that a command replaced. Python cannot end a thread; beyond this commands fail.
ABANDONED_MAX = 64
_ACCEPT_TIMEOUT_S = 10.0
_DETAIL_MAX = 1000

log = logging.getLogger("kintsugi_client")


class Client:
    """Make one per process with `Client.connect`, and close it."""

    def __init__(
        self,
        service: str,
        *,
        kafka: str,
        registry: str | None,
        interceptors: Sequence[Interceptor] = (),
        workers: int = WORKERS,
        config: Mapping[str, Any] | None = None,
        consumer_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.service = service
        self.producer_name = f"{service}/{socket.gethostname()}/{os.getpid()}"[:255]
        base = {"bootstrap.servers": kafka, "client.id": f"kintsugi-client-{service}", **(config or {})}
        self._registry = Registry(registry) if registry else None
        self._base = base
        self._consumer_config = dict(consumer_config or {})
        self.outbox = Outbox(base, Codec(self._registry), tuple(interceptors))
        self._reader = LogReader(base, Codec(self._registry))
        self._types: dict[str, WorkflowType] = {}
        self.held = Held()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="kintsugi-run")
        self._queued = 0
        self._abandoned = 0
        self._closed = False
        self._listener: Listener | None = None
        self._counts = {"accepted": 0, "succeeded": 0, "failed": 0, "unknown": 0, "repeated": 0, "expired": 0}

    @classmethod
    def connect(cls, service: str, *, kafka: str | None = None, registry: str | None = None, **options: Any) -> Client:
        """Connect with the given addresses, else KINTSUGI_KAFKA and KINTSUGI_REGISTRY. Kafka need not be there yet."""
        kafka = kafka or os.environ.get("KINTSUGI_KAFKA")
        if not kafka:
            raise ConfigError("KINTSUGI_KAFKA is not set", hint="Client.connect(..., kafka='host:9092')")
        return cls(service, kafka=kafka, registry=registry or os.environ.get("KINTSUGI_REGISTRY") or None, **options)

    def workflow_type(
        self,
        name: str,
        *,
        version: str = "1",
        steps: Sequence[StepSpec] = (),
        timeout_ms: int | None = None,
        checkpoint_types: Sequence[str] = CHECKPOINT_TYPES,
        codec: str = "gzip",
    ) -> WorkflowType:
        """Declare a workflow type of this service."""
        if name in self._types:
            raise ConfigError(f"workflow type {name!r} is declared twice")
        kind = self._types[name] = WorkflowType(
            self,
            name,
            version=version,
            steps=steps,
            timeout_ms=timeout_ms,
            checkpoint_types=checkpoint_types,
            codec=codec,
        )
        return kind

    def listen(self, *, ready_timeout_s: float = 30.0) -> bool:
        """Begin to carry out commands, in the group named after the service. True once partitions are assigned."""
        if self._listener is None:
            config = {**self._base, "group.id": f"{self.service}-commands", **self._consumer_config}
            self._listener = Listener(
                config,
                Codec(self._registry),
                self._accept,
                self._repeat,
                self._elsewhere,
                self._types.__contains__,
            )
            self._listener.start()
        return self._listener.ready(ready_timeout_s)

    def stats(self) -> dict[str, int]:
        """Counters: commands by what became of them, workflows here, runs waiting, threads left behind."""
        with self._lock:
            unreadable = self._listener.unreadable if self._listener else 0
            return {
                **self._counts,
                "unreadable": unreadable,
                "workflows": len(self.held),
                "queued": self._queued,
                "abandoned": self._abandoned,
            }

    def close(self, timeout_s: float = 10.0) -> Undelivered:
        """Stop listening, let running steps end within the time, flush; returns what Kafka never confirmed."""
        self._closed = True
        deadline = time.monotonic() + timeout_s
        if self._listener is not None:
            self._listener.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while time.monotonic() < deadline and any(w.busy for w in self.workflows()):
            time.sleep(0.02)
        report = self.outbox.close(max(0.5, deadline - time.monotonic()))
        self._reader.close()
        if self._registry is not None:
            self._registry.close()
        return report

    # -- workflows in this process --------------------------------------------------------------------------------

    def workflows(self) -> list[Workflow]:
        """Workflows that this process holds."""
        return self.held.all()

    def adopt(self, kind: WorkflowType, data: dict[str, Any], workflow_id: str | None) -> Workflow:
        """Hold a new workflow. ConfigError when the id is no UUID or is held already."""
        workflow_id = workflow_id or new_id()
        try:
            uuid_bytes(workflow_id)
        except ValueError as error:
            raise ConfigError(f"workflow_id: {error}") from None
        workflow = Workflow(kind, self, workflow_id, dict(data))
        self.held.add(workflow)
        return workflow

    def submit(
        self, workflow: Workflow, run: Run, *, announce: dict[str, Any] | None = None, command: Command | None = None
    ) -> None:
        """Queue a run of the declared steps. ConfigError when too many wait, or the client is closed."""
        with self._lock:
            if self._queued >= QUEUE_MAX:
                raise ConfigError(f"{QUEUE_MAX} workflows wait for a thread", hint="start fewer, or add processes")
            self._queued += 1
        self._replace(workflow, run)
        run.state = QUEUED
        try:
            self._pool.submit(self._run, workflow, run, announce, command)
        except RuntimeError as error:
            raise ConfigError("the client is closed") from error

    def _replace(self, workflow: Workflow, run: Run) -> None:
        """A hung step keeps its thread: the pool gets another one for that time, up to a bound."""
        before = workflow.replace_run(run)
        with self._lock:
            if before is None or before.state != WORKING:
                return
            if self._abandoned >= ABANDONED_MAX:
                raise KintsugiError(f"{ABANDONED_MAX} threads hang in replaced steps", hint="restart the service")
            before.state = ABANDONED
            self._abandoned += 1
            self._pool._max_workers += 1

    def _run(self, workflow: Workflow, run: Run, announce: dict[str, Any] | None, command: Command | None) -> None:
        with self._lock:
            self._queued -= 1
            if run.superseded.is_set() or self._closed:
                run.state = ENDED
                return
            run.state = WORKING
        outcome, detail = "succeeded", None
        try:
            if announce is not None:
                workflow.announce(run, announce)
            workflow.kind.carry_out(workflow, run)
        except SupersededError:
            outcome, detail = "unknown", "another command took over"
        except PausedError as stop:
            detail = str(stop)
            self._stopped(workflow, run, detail)
        except Exception as error:
            outcome, detail = "failed", f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                if run.state == ABANDONED:
                    self._abandoned -= 1
                    self._pool._max_workers -= 1
                run.state = ENDED
        if command is not None:
            self._acknowledge(command, run, outcome, detail)

    def _stopped(self, workflow: Workflow, run: Run, what: str) -> None:
        kind, _, rest = what.partition("|")
        actor, _, reason = rest.partition("|")
        if kind == "cancel":
            workflow.cancelled(run, reason, actor)
        else:
            workflow.paused(run, reason, actor)

    # -- commands -------------------------------------------------------------------------------------------------

    def _accept(self, command: Command, trace: str | None) -> None:
        run = Run(command.command_id, trace)
        delivery = self._tell(command, trace, "accepted")
        try:
            delivery.wait(_ACCEPT_TIMEOUT_S)
        except NotDeliveredError as error:
            log.error("command %s not carried out, its acceptance is not in the log: %s", command.command_id, error)
            return
        if delivery.timestamp_us > command.expires_at:
            self._count("expired")
            self._acknowledge(command, run, "failed", "expired before it could be accepted")
            return
        try:
            self._carry_out(command, run)
        except RestoreError as error:
            if error.corrupt:
                self._report_corrupt(command, run, error)
            self._acknowledge(command, run, "failed", str(error))
        except Exception as error:
            log.exception("command %s failed", command.command_id)
            self._acknowledge(command, run, "failed", f"{type(error).__name__}: {error}")

    def _carry_out(self, command: Command, run: Run) -> None:
        name = type(command).__name__
        kind = self._types[command.workflow_type]
        workflow = self.held.get(command.workflow_id)
        handler = kind.handlers.get(name)
        if handler is not None:
            handler(command, workflow)
            self._acknowledge(command, run, "succeeded", None)
        elif self.held.has_ended(command.workflow_id):
            raise KintsugiError("the workflow has ended")
        elif isinstance(command, PauseWorkflow | CancelWorkflow):
            self._stop(command, workflow, run)
        elif not kind.functions:
            raise KintsugiError(f"no handler for {name} is registered")
        elif isinstance(command, RetryStep):
            workflow = workflow or self._restored(command, kind, run)
            if command.timeout_ms is not None:
                run.step_timeout_ms[command.step_id] = command.timeout_ms
            if command.step_id in workflow.completed:
                workflow.completed.remove(command.step_id)
            self.submit(workflow, run, command=command)
        elif isinstance(command, ResumeFromCheckpoint):
            self.submit(self._restored(command, kind, run), run, command=command)
        elif isinstance(command, RestartWorkflow):
            self.submit(self._clean(command, kind, run), run, command=command)
        elif isinstance(command, ResumeWorkflow):
            if workflow is None:
                raise KintsugiError("the workflow is not in this process")
            workflow.resumed(run, command.reason, command.actor)
            self.submit(workflow, run, command=command)
        else:
            raise KintsugiError(f"no handler for {name} is registered")

    def _stop(self, command: Command, workflow: Workflow | None, run: Run) -> None:
        """Pause or cancel: at the next step boundary when a step runs, else now."""
        if workflow is None:
            kind = self._types[command.workflow_type]
            workflow = Workflow(kind, self, command.workflow_id, {})
        word = "cancel" if isinstance(command, CancelWorkflow) else "pause"
        current = workflow.run
        if workflow.busy and current is not None:
            current.stop = f"{word}|{command.actor}|{command.reason}"
        else:
            workflow.run = run
            self._stopped(workflow, run, f"{word}|{command.actor}|{command.reason}")
        self._acknowledge(command, run, "succeeded", None)

    def _restored(self, command: RetryStep | ResumeFromCheckpoint, kind: WorkflowType, run: Run) -> Workflow:
        """The workflow, standing at the command's checkpoint; without one, at its beginning."""
        if command.checkpoint_id is None or command.checkpoint_offset is None:
            return self._clean(command, kind, run)
        with self._taken_over(command, kind, run) as workflow:
            document, chain = self._reader.checkpoint(
                command.workflow_id,
                command.checkpoint_id,
                command.checkpoint_partition or 0,
                command.checkpoint_offset,
                command.checkpoint_digest,
            )
            workflow.adopt(document, chain, command.checkpoint_id)
            workflow.tell_restored(run, str(document.get("step_id", "")))
        return workflow

    def _clean(self, command: Any, kind: WorkflowType, run: Run) -> Workflow:
        if command.started_offset is None:
            raise RestoreError("the workflow's start is not in the log")
        with self._taken_over(command, kind, run) as workflow:
            data = self._reader.input_of(command.workflow_id, command.started_partition or 0, command.started_offset)
            workflow.reset(data)
        return workflow

    @contextmanager
    def _taken_over(self, command: Command, kind: WorkflowType, run: Run) -> Iterator[Workflow]:
        """End what runs here before the state is read: meanwhile it might complete what is about to be repeated.

        A workflow that could not be restored is not held: a later command would take it for the workflow's state.
        """
        workflow = self.held.get_or_add(Workflow(kind, self, command.workflow_id, {}))
        try:
            self._replace(workflow, run)
            yield workflow
        except BaseException:
            self.held.drop(command.workflow_id)
            raise

    def _report_corrupt(self, command: Command, run: Run, error: RestoreError) -> None:
        workflow = Workflow(self._types[command.workflow_type], self, command.workflow_id, {})
        workflow.run = run
        step_id = str(getattr(command, "step_id", None) or "")
        workflow.report_error(step_id, error, code="STATE_CORRUPTION", run=run)

    def _elsewhere(self, workflow_id: str) -> None:
        """Another process has this workflow now: end what runs here."""
        workflow = self.held.drop(workflow_id)
        if workflow is not None:
            nobody = Run()
            nobody.superseded.set()
            self._replace(workflow, nobody)

    def _repeat(self, command: Command, trace: str | None, status: str) -> None:
        self._count("repeated")
        self._tell(command, trace, status, duplicate=True, detail="handled before; not carried out again")

    def _acknowledge(self, command: Command, run: Run, status: str, detail: str | None) -> None:
        if self._listener is not None:
            self._listener.settle(command.command_id, status)
        try:
            self._tell(command, run.trace, status, detail=detail)
        except KintsugiError as error:
            log.error("command %s: %s, and that could not be told: %s", command.command_id, status, error)

    def _tell(
        self, command: Command, trace: str | None, status: str, *, detail: str | None = None, duplicate: bool = False
    ) -> Delivery:
        if not duplicate:
            self._count(status)
        text = None if detail is None else detail.encode("utf-8", "replace").decode()[:_DETAIL_MAX]
        record = CommandAcknowledged(
            event_id=new_id(),
            workflow_id=command.workflow_id,
            workflow_type=command.workflow_type,
            external_id=command.external_id,
            correlation_id=command.correlation_id,
            causation_id=command.event_id,
            occurred_at=now_us(),
            producer=self.producer_name,
            command_id=command.command_id,
            error_id=command.error_id,
            attempt_number=command.attempt_number,
            status=status,
            step_id=getattr(command, "step_id", None),
            detail=text,
            duplicate=duplicate,
        )
        return self.outbox.send(record, parent=trace)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1
