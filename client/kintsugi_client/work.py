"""The workflows that this process holds, and their runs on its threads."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._schemas.errors import ConfigError, KintsugiError, RetriableError
from ._schemas.ids import uuid_bytes
from .checkpoints import new_id
from .errors import ClosedError, PausedError, StepCancelledError, SupersededError, reason_of
from .run import Run
from .runner import Job, Runner
from .texts import describe
from .workflow import Workflow

if TYPE_CHECKING:
    from .client import Client
    from .types import WorkflowType

#: Workflows held at once; more are refused when they are started.
HELD_MAX = 100_000
#: Workflows whose run ended in an error stay in memory for a retry; beyond this the log alone keeps the oldest.
RESTING_MAX = 1_000
#: Workflows that ended here, remembered so that a command still on its way does not run them again. 100 bytes each.
ENDED_MAX = 10_000

log = logging.getLogger("kintsugi_client")


class Work:
    """Safe to share between threads."""

    def __init__(self, client: Client, threads: int) -> None:
        self.runner = Runner(threads)
        self._client = client
        self._lock = threading.Lock()
        self._held: dict[str, Workflow] = {}
        self._resting: OrderedDict[str, Workflow] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def all(self) -> list[Workflow]:
        """Every workflow held."""
        with self._lock:
            return list(self._held.values())

    def get(self, workflow_id: str) -> Workflow | None:
        """A workflow, if it is held."""
        with self._lock:
            return self._held.get(workflow_id)

    def adopt(self, kind: WorkflowType, workflow_id: str | None, run: Run) -> Workflow:
        """Hold a new workflow. ConfigError when its id is no UUID or is held already."""
        workflow_id = workflow_id or new_id()
        try:
            uuid_bytes(workflow_id)
        except ValueError as error:
            raise ConfigError(f"workflow_id: {error}") from None
        workflow = Workflow(kind, self._client, workflow_id, run)
        workflow.stands = True
        with self._lock:
            if workflow_id in self._held:
                raise ConfigError(f"workflow {workflow_id} is already here")
            if len(self._held) >= HELD_MAX:
                raise RetriableError(f"{HELD_MAX} workflows are open in this process")
            self._held[workflow_id] = workflow
        return workflow

    def take(self, kind: WorkflowType, workflow_id: str, run: Run) -> Workflow:
        """Give a workflow a new run; whatever had it before records nothing any more. KintsugiError when it ended, or
        when its thread cannot be replaced."""
        self.check_open(workflow_id)
        with self._lock:
            workflow = self._held.get(workflow_id)
            self._resting.pop(workflow_id, None)
            if workflow is None:
                workflow = self._held[workflow_id] = Workflow(kind, self._client, workflow_id, run)
                return workflow
        self.runner.abandon(workflow.run)
        workflow.replace_run(run)
        return workflow

    def renew(self, kind: WorkflowType, workflow_id: str, run: Run) -> Workflow:
        """As `take`, with a new object: code that still drives the old one cannot go on with it."""
        self.check_open(workflow_id)
        before = self.get(workflow_id)
        workflow = Workflow(kind, self._client, workflow_id, run)
        if before is not None:
            if before.run is not run:
                self.runner.abandon(before.run)
            before.hand_over(workflow)
        with self._lock:
            self._held[workflow_id] = workflow
        return workflow

    def check_open(self, workflow_id: str) -> None:
        """KintsugiError when the workflow ended here."""
        with self._lock:
            if workflow_id in self._ended:
                raise KintsugiError("the workflow has ended")

    def end(self, workflow: Workflow) -> None:
        """Let go of a workflow that has ended, and remember that it has."""
        self.forget(workflow)
        with self._lock:
            self._ended[workflow.workflow_id] = None
            while len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)

    def forget(self, workflow: Workflow) -> None:
        """Let go of a workflow: it is another process's, or never stood anywhere."""
        self._client.vault.forget(workflow.workflow_id)
        with self._lock:
            if self._held.get(workflow.workflow_id) is workflow:
                del self._held[workflow.workflow_id]
                self._resting.pop(workflow.workflow_id, None)

    def release(self, workflow: Workflow, run: Run, reason: str) -> None:
        """Let go of a workflow and of the thread that its run has."""
        self.forget(workflow)
        self.runner.drop(workflow.workflow_id, reason)
        with contextlib.suppress(KintsugiError):  # too many threads hang already: this one keeps its place
            self.runner.abandon(run)

    def submit(
        self,
        workflow: Workflow,
        run: Run,
        prepare: Callable[[], None] | None = None,
        *,
        urgent: bool = False,
        goes_on: bool = True,
    ) -> None:
        """Queue a run: what prepares it, then the declared steps if it `goes_on`. RetriableError when too many wait."""
        job = Job(
            key=workflow.workflow_id,
            run=run,
            work=lambda: self._perform(workflow, run, prepare, goes_on=goes_on),
            dropped=lambda reason: run.settle("failed", reason),
        )
        self.runner.submit(job, urgent=urgent)

    def aside(self, command_id: str, run: Run, call: Callable[[], str | None]) -> None:
        """Queue what a command asks for beside the workflow's runs; what it returns is the answer's result."""

        def answer() -> None:
            try:
                run.settle("succeeded", result=call())
            except SupersededError:
                run.settle("unknown", "another command took over")
            except BaseException as error:
                if not isinstance(error, KintsugiError):
                    log.warning("command %s failed", command_id, exc_info=error)
                run.settle("failed", f"{type(error).__name__}: {describe(error)}", reason_of(error))

        job = Job(key=command_id, run=run, work=answer, dropped=lambda reason: run.settle("failed", reason))
        self.runner.submit(job, urgent=True)

    def _perform(self, workflow: Workflow, run: Run, prepare: Callable[[], None] | None, *, goes_on: bool) -> None:
        try:
            if prepare is not None:
                prepare()
            if goes_on:
                workflow.kind.carry_out(workflow, run)
            run.settle("succeeded")
        except StepCancelledError:
            run.settle("failed", "the step was cancelled")
        except SupersededError:
            run.settle("unknown", "another command took over")
        except PausedError:
            run.settle("failed", "the workflow was paused first")
        except ClosedError:
            run.settle("unknown", "the service stopped")
        except BaseException as error:
            run.settle("failed", f"{type(error).__name__}: {describe(error)}", reason_of(error))
            self._failed(workflow, run, error)
        finally:
            self._rest(workflow, run)

    def _failed(self, workflow: Workflow, run: Run, error: BaseException) -> None:
        """A step that fails has been reported; anything else is reported here, so that it is repaired too."""
        if run.reported or isinstance(error, KintsugiError):
            log.warning("workflow %s: %s: %s", workflow.workflow_id, type(error).__name__, describe(error))
        else:
            log.error("workflow %s", workflow.workflow_id, exc_info=error)
        if not run.reported:
            try:
                workflow.report_error("", error, run=run)
            except KintsugiError as failure:
                log.warning("workflow %s: the error could not be reported: %s", workflow.workflow_id, failure)

    def _rest(self, workflow: Workflow, run: Run) -> None:
        """Keep what a retry can use; the oldest beyond the bound is left to the log."""
        with self._lock:
            if self._held.get(workflow.workflow_id) is not workflow or workflow.run is not run:
                return
            if not workflow.stands:
                del self._held[workflow.workflow_id]
            elif workflow.status != "paused":
                self._resting[workflow.workflow_id] = workflow
                self._resting.move_to_end(workflow.workflow_id)
            while len(self._resting) > RESTING_MAX:
                workflow_id, _ = self._resting.popitem(last=False)
                self._held.pop(workflow_id, None)
