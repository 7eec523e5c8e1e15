"""Carries commands out, and answers them: accepted, then succeeded, failed, or unknown.

A command that begins a run (again, from a checkpoint, from the start) takes the workflow from the run it had, here or
in another process, and restores what the command names from the log: so a retry is the same wherever it runs.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from ._schemas.errors import KintsugiError
from ._schemas.records import Command
from ._schemas.records.commands import (
    CancelStep,
    CancelWorkflow,
    CompensateStep,
    PauseWorkflow,
    ReconcileStep,
    ResumeWorkflow,
    ScaleResources,
)
from ._schemas.records.events import CommandAcknowledged
from .checkpoints import new_id, now_us
from .errors import reason_of
from .inbox import ForeignCommand, Received
from .limits import Scaler
from .outbox import Delivery
from .repairs import BEGINNINGS, FOUND, Repairs
from .run import Answer, Run
from .texts import CODE_MAX, DETAIL_MAX, clean, describe
from .types import CommandHandler, wait_for
from .workflow import Workflow

if TYPE_CHECKING:
    from .client import Client

#: Commands after which a workflow belongs to the process that carries them out.
_TAKES_OVER = (*BEGINNINGS, CompensateStep, CancelWorkflow)

log = logging.getLogger("kintsugi_client")


class Commands:
    """Implements `listener.Carrier`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._work = client.work
        self._repairs = Repairs(client)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(accepted=0, succeeded=0, failed=0, unknown=0, repeated=0, expired=0)
        #: Runs of commands whose handlers are at work, for `Client.restore`.
        self._handled: dict[str, Run] = {}

    def counts(self) -> dict[str, int]:
        """Commands by what became of them."""
        with self._lock:
            return dict(self._counts)

    def holds(self, workflow_id: str) -> bool:
        """Whether the workflow is in this process."""
        return self._work.get(workflow_id) is not None

    # -- answers --------------------------------------------------------------------------------------------------

    def accept(self, received: Received) -> Delivery:
        """Say that the command is accepted."""
        delivery = self._tell(received, "accepted")
        self._client.settle(received.command.command_id, "accepted")
        return delivery

    def refuse(self, received: Received, reason: str, *, expired: bool = False) -> None:
        """Say that the command failed."""
        if expired:
            self._count("expired")
        self._answer(received, "failed", reason)

    def repeat(self, received: Received, status: str) -> None:
        """Say again how the command ended: "unknown" when another process had it."""
        self._count("repeated")
        self._tell(received, status, detail="received before; not carried out again", duplicate=True)

    def _answer(
        self,
        received: Received,
        status: str,
        detail: str | None = None,
        reason: str | None = None,
        result: str | None = None,
    ) -> None:
        command_id = received.command.command_id
        self._client.settle(command_id, status)
        if status != "succeeded":
            log.warning("command %s (%s) %s: %s", command_id, type(received.command).__name__, status, detail)
        try:
            self._tell(received, status, detail=detail, reason=reason, result=result)
        except KintsugiError as error:
            log.error("command %s: %s, and that could not be told: %s", command_id, status, error)

    def _tell(
        self,
        received: Received,
        status: str,
        *,
        detail: str | None = None,
        reason: str | None = None,
        result: str | None = None,
        duplicate: bool = False,
    ) -> Delivery:
        command = received.command
        record = CommandAcknowledged(
            event_id=new_id(),
            workflow_id=command.workflow_id,
            workflow_type=command.workflow_type,
            external_id=command.external_id,
            correlation_id=command.correlation_id,
            causation_id=command.event_id,
            occurred_at=now_us(),
            producer=self._client.producer_name,
            command_id=command.command_id,
            error_id=command.error_id,
            attempt_number=command.attempt_number,
            status=status,
            step_id=getattr(command, "step_id", None),
            detail=None if detail is None else clean(detail, DETAIL_MAX),
            duplicate=duplicate,
            reason=reason,
            result=result,
        )
        delivery = self._client.outbox.send(self._client.vault.seal_texts(record), parent=received.trace)
        if not duplicate:
            self._count(status)
        return delivery

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    # -- what is done ---------------------------------------------------------------------------------------------

    def given_away(self, received: Received) -> None:
        """Another process has this command: let the workflow go when it takes the workflow over."""
        workflow = self._work.get(received.command.workflow_id)
        if workflow is None or not isinstance(received.command, _TAKES_OVER):
            return
        log.info("workflow %s goes on in another process", workflow.workflow_id)
        workflow.let_go()
        self._work.release(workflow, workflow.run, "another process took over")

    def carry_out(self, received: Received) -> None:
        """Begin to carry an accepted command out. Its outcome is answered when it is known."""
        command = received.command
        run = _run_of(command, received.trace, partial(self._answer, received))
        try:
            self._carry_out(command, run)
        except Exception as error:
            if not isinstance(error, KintsugiError):
                log.exception("command %s failed", command.command_id)
            run.settle("failed", describe(error), reason_of(error))

    def _carry_out(self, command: Command, run: Run) -> None:
        if isinstance(command, ForeignCommand):
            raise KintsugiError(f"this version of the client does not know {command.name}")
        name = type(command).__name__
        kind = self._client.kind(command.workflow_type)
        workflow = self._work.get(command.workflow_id)
        handler = kind.handlers.get(name)
        if handler is not None:
            self._hand_over(handler, command, workflow, run)
        elif isinstance(command, CancelWorkflow):
            self._cancel(command, workflow or Workflow(kind, self._client, command.workflow_id, Run()), run)
        elif isinstance(command, PauseWorkflow) and workflow is not None:
            workflow.pause(command.reason, command.actor, order=run)
        elif isinstance(command, CancelStep) and workflow is not None:
            workflow.cancel_step(command.step_id, command.step_run_id)
            run.settle("succeeded")
        elif isinstance(command, ScaleResources) and self._client.scaler is not None:
            self._work.aside(command.command_id, run, partial(_scale, self._client.scaler, command))
        elif not kind.functions:
            raise KintsugiError(f"no handler for {name} is registered")
        elif isinstance(command, ResumeWorkflow) and workflow is not None:
            self._resume(command, workflow, run)
        elif isinstance(command, BEGINNINGS):
            self._repairs.begin(command, kind, run)
        elif isinstance(command, CompensateStep):
            self._repairs.compensate(command, kind, run)
        elif isinstance(command, ReconcileStep):
            self._repairs.reconcile(command, kind, workflow, run)
        else:
            raise KintsugiError(f"no handler for {name} is registered")

    def _cancel(self, command: CancelWorkflow, workflow: Workflow, run: Run) -> None:
        self._work.check_open(command.workflow_id)
        before = workflow.run
        workflow.cancel(command.reason, command.actor, order=run)
        run.settle("succeeded")
        self._work.release(workflow, before, "the workflow was cancelled")

    def _resume(self, command: ResumeWorkflow, workflow: Workflow, run: Run) -> None:
        self._work.runner.check_room()
        if workflow.resume(command.reason, command.actor, run=run):
            self._work.submit(workflow, run, urgent=True)
        run.settle("succeeded")

    # -- handlers -------------------------------------------------------------------------------------------------

    def restore(self, command: Command) -> Workflow:
        """The workflow, standing where the command says, for a handler to go on with."""
        if not isinstance(command, BEGINNINGS):
            raise KintsugiError(f"{type(command).__name__} names nothing to restore")
        with self._lock:
            run = self._handled.get(command.command_id) or _run_of(command)
        kind = self._client.kind(command.workflow_type)
        workflow = self._work.renew(kind, command.workflow_id, run)
        try:
            self._repairs.stand(command, workflow, run)
        except BaseException:
            if not workflow.stands:
                self._work.forget(workflow)
            raise
        return workflow

    def _hand_over(self, handler: CommandHandler, command: Command, workflow: Workflow | None, run: Run) -> None:
        """Let the service's handler do it, on a thread of its own."""
        if isinstance(command, ResumeWorkflow) and workflow is not None:
            workflow.resume(command.reason, command.actor, run=run)
        self._work.aside(command.command_id, run, lambda: self._handle(handler, command, workflow, run))

    def _handle(self, handler: CommandHandler, command: Command, workflow: Workflow | None, run: Run) -> str | None:
        with self._lock:
            self._handled[command.command_id] = run
        try:
            return _result_of(command, wait_for(handler(command, workflow)))
        finally:
            with self._lock:
                del self._handled[command.command_id]


def _result_of(command: Command, said: Any) -> str | None:
    """What a handler found out, for the answer."""
    if isinstance(command, ReconcileStep) and (said is None or isinstance(said, bool)):
        return FOUND[said]
    return clean(said, CODE_MAX) if isinstance(said, str) else None


def _scale(scaler: Scaler, command: ScaleResources) -> str:
    reached = scaler.scale(command.workflow_id, command.step_id, command.resource, command.factor)
    return clean(reached, CODE_MAX)


def _run_of(command: Command, trace: str | None = None, answer: Answer | None = None) -> Run:
    """A run that a command begins. Commands that begin none, and those of older engines, carry no epoch."""
    return Run(
        command.command_id,
        trace,
        answer,
        epoch=getattr(command, "epoch", 0),
        last_sequence=getattr(command, "last_sequence", 0),
    )
