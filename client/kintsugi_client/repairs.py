"""What repairs a workflow: runs that a command begins, and what is done to one of its steps beside them.

A run begins with what its command names, from the log: so it is the same wherever it runs. A step is undone, or asked
about, with the state that this process has in memory, else with the checkpoint that the command names.
"""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ._schemas.errors import KintsugiError
from ._schemas.records.commands import (
    CompensateStep,
    ReconcileStep,
    RestartWorkflow,
    ResumeFromCheckpoint,
    RetryStep,
    RollbackTo,
    RunAlternativePath,
    SkipStep,
)
from ._schemas.records.events import CheckpointRejected, StepCompensated, StepSkipped, WorkflowResumed
from .edits import edited
from .errors import RefusedError, RestoreError
from .run import Run, approve
from .standing import Standing
from .step import ReadingContext, StepContext
from .texts import CODE_MAX, DETAIL_MAX, MESSAGE_MAX, clean, describe, represent
from .types import WorkflowType, wait_for
from .workflow import Workflow

if TYPE_CHECKING:
    from .client import Client

#: Commands that begin a run. Each names where.
BEGINNINGS = (RetryStep, ResumeFromCheckpoint, RestartWorkflow, RunAlternativePath, RollbackTo, SkipStep)
Beginning = RetryStep | ResumeFromCheckpoint | RestartWorkflow | RunAlternativePath | RollbackTo | SkipStep
#: The actor of commands that nobody but the engine decided on.
ENGINE = "engine"
#: What a reconciliation found, by what its function said.
FOUND = {True: "took_effect", False: "no_effect", None: "cannot_tell"}


class Repairs:
    """Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._work = client.work

    # -- runs -----------------------------------------------------------------------------------------------------

    def begin(self, command: Beginning, kind: WorkflowType, run: Run) -> None:
        """Take the workflow over with a new run, and queue it. KintsugiError when it cannot be begun."""
        self._work.runner.check_room()
        for step_id in _steps_of(command):
            if step_id not in kind.functions:
                raise KintsugiError(f"workflow type {kind.name!r} has no function for step {step_id!r}")
            run.recovers = step_id
        workflow = self._work.take(kind, command.workflow_id, run)
        self._work.submit(workflow, run, lambda: self._prepare(command, workflow, run), urgent=True)

    def _prepare(self, command: Beginning, workflow: Workflow, run: Run) -> None:
        self.stand(command, workflow, run)
        if isinstance(command, RunAlternativePath):
            alternative = command.alternative_step_id
            workflow.kind.run_step(alternative, workflow, run, instead_of=command.step_id)

    def stand(self, command: Beginning, workflow: Workflow, run: Run) -> None:
        """Let the run begin where the command says. What is not what was saved is reported as an error of its own."""
        said = None if command.actor == ENGINE else clean(command.reason, MESSAGE_MAX)
        try:
            command = self._opened(command, run)
            standing = self._standing(command, workflow, run)
            data = self._changed(command, workflow, run, standing)
        except Exception as error:
            if isinstance(error, RestoreError) and error.corrupt:
                _report_corruption(command, workflow, run, error)
            run.reported = True  # the engine hears of it by the answer to its command
            raise
        again = {getattr(command, "step_id", None), getattr(command, "alternative_step_id", None)}
        if isinstance(command, RetryStep | RunAlternativePath | SkipStep):
            standing.completed = [step for step in standing.completed if step not in again]
        passes = isinstance(command, RetryStep) and command.approved
        if isinstance(command, RetryStep):
            if command.timeout_ms is not None:
                run.step_timeout_ms[command.step_id] = command.timeout_ms
            if passes:
                standing.metadata = approve(standing.metadata, command.step_id)
        workflow.stand(run, standing, said)
        run.data = data
        if passes:
            actor = clean(command.actor, CODE_MAX)
            reason = clean(command.reason, MESSAGE_MAX)
            workflow.tell(WorkflowResumed, run, reason=reason, actor=actor, command_id=run.command_id)
        if isinstance(command, SkipStep):
            _skip(command, workflow, run)

    def _standing(self, command: Beginning, workflow: Workflow, run: Run) -> Standing:
        restorer = self._client.restorer
        if not isinstance(command, RestartWorkflow):
            if command.checkpoint_id is not None:
                return restorer.checkpoint(command, workflow.kind, run.superseded)
            if workflow.stands:
                return _as_in_memory(run)
        place = (command.started_partition, command.started_offset)
        return restorer.input_of(command.workflow_id, *place, run.superseded)

    def _opened(self, command: Beginning, run: Run) -> Beginning:
        """The command with its texts in clear."""
        if getattr(command, "sealed", None) is None:
            return command
        return self._client.restorer.opened(command, run.superseded)

    def _changed(self, command: Beginning, workflow: Workflow, run: Run, standing: Standing) -> dict[str, Any]:
        """The data to go on with: as restored, with what the command changes."""
        text = command.result if isinstance(command, SkipStep) else getattr(command, "edit", None)
        if text is not None:
            return edited(standing.data, text, workflow.kind.check_data)
        if isinstance(command, SkipStep) and command.step_id in workflow.kind.reconcilers:
            # Of a step that took effect the engine knows only that; what it made is found out once more.
            data = _copy(standing.data)
            if _ask(command.step_id, workflow, run, data) is True:
                return data
        return standing.data

    # -- one step -------------------------------------------------------------------------------------------------

    def compensate(self, command: CompensateStep, kind: WorkflowType, run: Run) -> None:
        """Queue the compensation of a step, on the workflow as it is. RefusedError when nothing undoes it."""
        spec = kind.graph.spec(command.step_id)
        name = None if spec is None else spec.compensation
        if name is None or name not in kind.functions:
            raise RefusedError("no_compensation", f"nothing is registered that undoes step {command.step_id!r}")
        self._work.runner.check_room()
        workflow = self._work.take(kind, command.workflow_id, run)
        undo = partial(self._compensate, command, name, workflow, run)
        self._work.submit(workflow, run, undo, urgent=True, goes_on=False)

    def _compensate(self, command: CompensateStep, name: str, workflow: Workflow, run: Run) -> None:
        run.reported = True  # the engine hears of it by the answer to its command
        workflow.stand(run, _as_in_memory(run) if workflow.stands else self._present(command, workflow.kind, run))
        if command.step_id not in run.completed:
            raise RefusedError("never_ran", f"step {command.step_id!r} has not completed, or is undone already")
        before = run.data
        run.data = _copy(before)
        context = StepContext(workflow, name, run)
        began_s = time.monotonic()
        workflow.enter(context)
        try:
            wait_for(workflow.kind.functions[name](context))
        except BaseException:
            run.data = before  # the next attempt is to find what this one found
            raise
        finally:
            workflow.leave(context)
        run.completed.remove(command.step_id)
        took_ms = int((time.monotonic() - began_s) * 1000)
        workflow.tell(StepCompensated, run, step_id=command.step_id, command_id=run.command_id, duration_ms=took_ms)

    def reconcile(self, command: ReconcileStep, kind: WorkflowType, held: Workflow | None, run: Run) -> None:
        """Queue the question whether a step took effect. It begins no run: what is at work goes on."""
        if command.step_id not in kind.reconcilers:
            raise RefusedError("not_reconcilable", f"nothing is registered that reconciles step {command.step_id!r}")
        self._work.aside(command.command_id, run, lambda: self._reconcile(command, kind, held, run))

    def _reconcile(self, command: ReconcileStep, kind: WorkflowType, held: Workflow | None, run: Run) -> str:
        if held is not None and held.stands:
            data = _copy(held.data)
        else:
            held, data = Workflow(kind, self._client, command.workflow_id, run), self._present(command, kind, run).data
        return FOUND[_ask(command.step_id, held, run, data)]

    def _present(self, command: CompensateStep | ReconcileStep, kind: WorkflowType, run: Run) -> Standing:
        """The workflow as the log has it. It serves this command alone, so the log is not told of a restored state."""
        restorer = self._client.restorer
        if command.checkpoint_id is None:
            place = (command.started_partition, command.started_offset)
            return restorer.input_of(command.workflow_id, *place, run.superseded)
        standing = restorer.checkpoint(command, kind, run.superseded)
        standing.checkpoint_id = None
        return standing


def _steps_of(command: Beginning) -> tuple[str, ...]:
    """Steps whose functions the command asks for by name."""
    if isinstance(command, RetryStep):
        return (command.step_id,)
    return (command.alternative_step_id,) if isinstance(command, RunAlternativePath) else ()


def _skip(command: SkipStep, workflow: Workflow, run: Run) -> None:
    """The step is left out, and with it the steps that the command names because they need it."""
    skipped = [step_id for step_id in (command.step_id, *command.dependants) if step_id not in run.completed]
    run.completed.extend(skipped)
    workflow.saver.automatic(command.step_id, "step_complete", run)
    reason = clean(command.reason, MESSAGE_MAX)
    for step_id in skipped:
        workflow.tell(StepSkipped, run, step_id=step_id, reason=reason, command_id=run.command_id)
    run.settle("succeeded")


def _ask(step_id: str, workflow: Workflow, run: Run, data: dict[str, Any]) -> bool | None:
    """What the step's reconcile function says; of what it writes nothing but `data` remains."""
    reading = Run(run.command_id, run.trace)
    reading.data, reading.superseded = data, run.superseded
    said = wait_for(workflow.kind.reconcilers[step_id](ReadingContext(workflow, step_id, reading)))
    if said is None or isinstance(said, bool):
        return said
    raise KintsugiError(f"the reconciliation of step {step_id!r} says {represent(said, 80)}, not True, False or None")


def _report_corruption(command: Beginning, workflow: Workflow, run: Run, error: RestoreError) -> None:
    """Tell the log what did not verify, so that nobody picks it again."""
    checkpoint_id = None if isinstance(command, RestartWorkflow) else command.checkpoint_id
    if checkpoint_id is not None:
        workflow.tell(
            CheckpointRejected,
            run,
            checkpoint_id=checkpoint_id,
            step_id=getattr(command, "step_id", None) or "",
            reason=error.fault or error.reason,
            detail=describe(error, DETAIL_MAX),
            detected_by="restore",
        )
    step_id = command.step_id if isinstance(command, RetryStep) else ""
    workflow.report_error(step_id, error, code="STATE_CORRUPTION", reason=error.fault, run=run, evidence=False)


def _as_in_memory(run: Run) -> Standing:
    """No checkpoint is named, so the state is as the last run left it: a copy, for that run may still be at work."""
    return Standing(_copy(run.data), completed=list(run.completed), metadata=_copy(run.metadata))


def _copy(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise KintsugiError(f"the state in memory cannot be copied: {describe(error)}") from error
