"""A workflow in this process: its runs, and the events that tell of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ._schemas.errors import KintsugiError
from ._schemas.records import Record
from ._schemas.records.events import (
    InterventionPointReached,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
)
from .checkpoints import Chain, new_id, now_us
from .errors import BufferFullError, ClosedError, NotDeliveredError, PausedError, RefusedError, SupersededError
from .graph import check_step
from .outbox import Delivery
from .reports import report
from .run import Pause, Run, approved
from .saving import CHECKPOINT_TIMEOUT_S, Saver
from .settings import Seldom
from .standing import Standing, stand, take_over, tell_standing
from .step import StepContext
from .texts import CODE_MAX, MESSAGE_MAX, RESULT_MAX, clean, json_text

if TYPE_CHECKING:
    from .client import Client
    from .types import WorkflowType

ENDED = frozenset({"completed", "cancelled"})

log = logging.getLogger("kintsugi_client")
R = TypeVar("R", bound=Record)
_seldom = Seldom()


class Workflow:
    """Identity and present run of one workflow. `data` is the service's own part of the state: JSON data only."""

    def __init__(self, kind: WorkflowType, client: Client, workflow_id: str, run: Run) -> None:
        self.kind = kind
        self.workflow_id = workflow_id
        self.status = "running"
        self.run = run
        self.chain = Chain()
        #: Whether it has a state: it was started here, or restored.
        self.stands = False
        self._own_run = run
        self._client = client
        self.vault = client.vault
        self.grants = client.grants
        self.saver = Saver(self)
        self._lock = threading.RLock()
        self._started: Delivery | None = None
        #: Steps at work.
        self._open: list[StepContext] = []

    @property
    def data(self) -> dict[str, Any]:
        """The service's part of the state, as the present run has it."""
        return self.run.data

    @property
    def completed(self) -> list[str]:
        """Steps that have completed in the present run, or before its checkpoint."""
        return self.run.completed

    @property
    def metadata(self) -> dict[str, Any]:
        """Where the state came from: restored_from, restored_at, restore_count."""
        return self.run.metadata

    def known_partition(self) -> int:
        """Partition of this workflow's events; -1 while Kafka has not confirmed its start."""
        return -1 if self._started is None else self._started.partition

    # -- events ---------------------------------------------------------------------------------------------------

    def make(self, kind: type[R], **fields: Any) -> R:
        """An event of this workflow, not yet written."""
        return kind(
            event_id=new_id(),
            workflow_id=self.workflow_id,
            workflow_type=self.kind.name,
            occurred_at=now_us(),
            producer=self._client.producer_name,
            **fields,
        )

    def send(self, record: Record, run: Run) -> Delivery:
        """Write an event. SupersededError when `run` is no longer this workflow's."""
        with self._lock:
            self.check(run)
            return self._client.outbox.send(record, parent=run.trace)

    def send_link(self, record: Record, run: Run, before: Chain, after: Chain) -> Delivery:
        """Write a checkpoint that was chained to `before`. Raises as `send`."""
        with self._lock:
            if self.chain is not before:
                raise SupersededError("the workflow was restored while its state was being saved")
            delivery = self.send(record, run)
            self.chain = after
            return delivery

    def check(self, run: Run) -> None:
        """SupersededError when `run` is no longer this workflow's."""
        if run.superseded.is_set() or run is not self.run:
            raise SupersededError("a command has replaced this run")

    def emit(self, kind: type[R], run: Run, **fields: Any) -> Delivery:
        """Make an event and write it, with its texts sealed where states are. Raises as `send`."""
        self.check(run)
        return self.send(self.vault.seal_texts(self.make(kind, **fields)), run)

    def tell(self, kind: type[R], run: Run, **fields: Any) -> Delivery | None:
        """As `emit`, for events whose loss must not stop the step: a full buffer is counted and logged."""
        try:
            return self.emit(kind, run, **fields)
        except (BufferFullError, NotDeliveredError) as error:
            if _seldom.due(kind):
                log.warning("%s of %s: %s", kind.__name__, self.workflow_id, error)
            return None

    def send_anyway(self, kind: type[R], run: Run, **fields: Any) -> None:
        """As `emit`, also of a run that was replaced: for what is true of it all the same."""
        self._client.outbox.send(self.vault.seal_texts(self.make(kind, **fields)), parent=run.trace)

    def announce(self, input_text: str) -> None:
        """WorkflowStarted, with the step graph. A workflow that cannot be announced is not begun."""
        self._started = self.emit(
            WorkflowStarted,
            self.run,
            workflow_version=self.kind.version,
            steps=self.kind.graph.specs(),
            timeout_ms=self.kind.timeout_ms,
            input=input_text,
            state_version=self.kind.version,
            state_schema=self.kind.state_schema,
        )

    # -- state ----------------------------------------------------------------------------------------------------

    def document(self, step_id: str, run: Run) -> dict[str, Any]:
        """The state as a checkpoint keeps it: enough for another process to go on."""
        return {
            "workflow_id": self.workflow_id,
            "workflow_type": self.kind.name,
            "version": self.kind.version,
            "step_id": step_id,
            "status": self.status,
            "completed_steps": list(run.completed),
            "data": run.data,
            "metadata": run.metadata,
        }

    def checkpoint(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """Save the state now, in a step or between two, under the last completed step: see `StepContext.checkpoint`."""
        return self.saver.manual(self._stands_at(), self._own_run, timeout_s)

    async def checkpoint_async(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """`checkpoint` for asyncio code."""
        return await self.saver.manual_async(self._stands_at(), self._own_run, timeout_s)

    def persist(self) -> None:
        """Record a version of the state that is no checkpoint: see `StepContext.persist`."""
        self.saver.persist(self._stands_at(), self._own_run)

    def _stands_at(self) -> str:
        completed = self._own_run.completed
        return completed[-1] if completed else ""

    # -- runs -----------------------------------------------------------------------------------------------------

    def replace_run(self, run: Run) -> None:
        """Make `run` the workflow's present one; nothing of the one before is recorded from now on.

        KintsugiError when the workflow has ended.
        """
        with self._lock:
            if self.status in ENDED:
                raise KintsugiError(f"the workflow is {self.status}")
            self.let_go()
            before, self.run = self.run, run
            take_over(run, before)
            self.status = "running"

    def hand_over(self, workflow: Workflow) -> None:
        """Give identity and state to another object; nothing of this one is recorded from now on."""
        with self._lock:
            if self.status in ENDED:
                raise KintsugiError(f"the workflow is {self.status}")
            if self.run is not workflow.run:
                self.let_go()
                take_over(workflow.run, self.run)
            else:  # restored twice for one command
                self.run = Run()
            workflow.chain, workflow.stands, workflow._started = self.chain, self.stands, self._started

    def let_go(self) -> None:
        """End the present run's right to record: a command has replaced it, here or in another process."""
        with self._lock:
            self.run.superseded.set()
            if self.run.stop is not None:
                self.run.stop.order.settle("failed", "another command took over before the workflow was paused")

    def stand(self, run: Run, standing: Standing, reason: str | None = None) -> None:
        """Let the run begin where it should; what was migrated and restored is told to the log."""
        with self._lock:
            self.stands = True
            restored = stand(self, run, standing)
        tell_standing(self, run, standing, restored, reason)

    def enter(self, context: StepContext) -> None:
        """A step begins; raises as `boundary` does, and PausedError when a human is to be asked first."""
        run, step_id = context.run, context.step_id
        asks = self.kind.graph.asks(step_id) and step_id not in approved(run.metadata)
        if asks:
            self.boundary(run)
            question = self.kind.graph.question(step_id)
            self.tell(InterventionPointReached, run, step_id=step_id, reason=question)
        with self._lock:
            self.boundary(run)
            if asks:
                self._rest_before(step_id, run)
            run.open_steps += 1
            self._open.append(context)

    def _rest_before(self, step_id: str, run: Run) -> None:
        run.stop = Pause(Run(), f"a human is asked before step {step_id!r}", "service")
        self._come_to_rest(run, run.stop)
        if not run.recovers:  # the command has led as far as it can
            run.settle("succeeded")
        raise PausedError(run.stop.reason)

    def leave(self, context: StepContext) -> None:
        """A step has ended."""
        with self._lock:
            context.run.open_steps -= 1
            self._open.remove(context)

    def cancel_step(self, step_id: str, step_run_id: str | None = None) -> None:
        """Tell a step that is at work to end; the workflow itself goes on. RefusedError when it is not at work."""
        with self._lock:
            found = [c for c in self._open if c.step_id == step_id and step_run_id in (None, c.run_id)]
            for context in found:
                context.cancel()
        if not found:
            raise RefusedError("not_running", f"step {step_id!r} is not at work here")

    def boundary(self, run: Run) -> None:
        """Between two steps: raises when the run ends here. A pause that was asked for comes about now."""
        with self._lock:
            if self._client.closing:
                raise ClosedError("the client is closing: no step begins")
            if run.superseded.is_set() or run is not self.run:
                raise SupersededError("a command has replaced this run")
            if run.stop is None:
                return
            self._come_to_rest(run, run.stop)
            raise PausedError(run.stop.reason)

    def step(
        self, step_id: str, *, timeout_ms: int | None = None, given: Any = None, instead_of: str | None = None
    ) -> StepContext:
        """A step of a service with its own control flow: `with workflow.step("build") as ctx:` (or `async with`).

        `given` is what the step works on, if it is JSON: its digest tells a run that repeats from one that progresses.
        `instead_of` names the step whose alternative this is.
        """
        check_step(step_id, timeout_ms)
        return StepContext(self, step_id, self._own_run, timeout_ms=timeout_ms, given=given, instead_of=instead_of)

    # -- life -----------------------------------------------------------------------------------------------------

    def complete(self, result: Any = None, *, run: Run | None = None) -> None:
        """The workflow reached its end."""
        run = run or self._own_run
        with self._lock:
            if self.status == "completed":
                return
            self.tell(WorkflowCompleted, run, result=json_text(result, RESULT_MAX))
            self.status = "completed"
            if run.stop is not None:
                run.stop.order.settle("failed", "the workflow completed before it was paused")
        self._client.work.end(self)

    def cancel(self, reason: str, actor: str = "service", *, order: Run | None = None) -> None:
        """Stop for good, now: what a running step still does is not recorded."""
        order = order or Run()
        with self._lock:
            self.replace_run(order)
            said = {"reason": clean(reason, MESSAGE_MAX), "actor": clean(actor, CODE_MAX)}
            self.tell(WorkflowCancelled, order, command_id=order.command_id, **said)
            self.status = "cancelled"
            order.superseded.set()
        self._client.work.end(self)

    def pause(self, reason: str, actor: str = "service", *, order: Run | None = None) -> None:
        """Pause at the next step boundary; now, when no step is at work."""
        order = order or Run()
        with self._lock:
            if self.status in ENDED or self.status == "paused":
                raise KintsugiError(f"the workflow is {self.status}")
            if self.run.stop is not None:
                raise KintsugiError("the workflow is about to be paused")
            self.run.stop = Pause(order, clean(reason, MESSAGE_MAX), clean(actor, CODE_MAX))
            if not self.run.open_steps and self.run.phase not in ("queued", "running"):
                self._come_to_rest(self.run, self.run.stop)

    def resume(self, reason: str, actor: str = "service", *, run: Run | None = None) -> bool:
        """Go on with a new run. False when a pause had not come about yet: then the old run simply goes on."""
        run = run or Run()
        with self._lock:
            before, stop = self.run, self.run.stop
            if stop is None:
                raise KintsugiError("the workflow is not paused")
            if not stop.done:
                before.stop = None
                stop.order.settle("failed", "resumed before the workflow was paused")
                return False
            self.replace_run(run)
            self._own_run = run
            said = {"reason": clean(reason, MESSAGE_MAX), "actor": clean(actor, CODE_MAX)}
            self.tell(WorkflowResumed, run, command_id=run.command_id, **said)
            return True

    def _come_to_rest(self, run: Run, stop: Pause) -> None:
        if stop.done:
            return
        stop.done = True
        self.tell(WorkflowPaused, run, reason=stop.reason, actor=stop.actor, command_id=stop.order.command_id)
        self.status = "paused"
        stop.order.settle("succeeded")

    def report_error(
        self,
        step_id: str,
        error: BaseException | None = None,
        *,
        code: str | None = None,
        reason: str | None = None,
        message: str | None = None,
        context: Mapping[str, Any] | None = None,
        dependency: str | None = None,
        run: Run | None = None,
        step_run_id: str | None = None,
        evidence: bool = True,
    ) -> str:
        """Report an error, with the state as evidence; returns its id. Never raises for what it is given.

        `dependency` names the outside system that failed. SupersededError and ClosedError say that nothing of this run
        is recorded any more.
        """
        return report(
            self,
            run or self._own_run,
            step_id,
            error,
            code=code,
            reason=reason,
            message=message,
            context=context,
            dependency=dependency,
            step_run_id=step_run_id,
            evidence=evidence,
        )
