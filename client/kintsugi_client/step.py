"""A run of a step, as the step's own code sees it."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._schemas.errors import StateError
from ._schemas.records.events import ResourceUsageReported, StepCompleted, StepProgressed, StepStarted
from .checkpoints import new_id
from .errors import ClosedError, PausedError, SupersededError
from .run import Run
from .saving import CHECKPOINT_TIMEOUT_S
from .texts import CODE_MAX, MESSAGE_MAX, describe

if TYPE_CHECKING:
    from .workflow import Workflow

_COUNT_MAX = 2**31 - 1


class StepContext:
    """A run of a step: a context manager, sync and async. What the step's function is given."""

    def __init__(self, workflow: Workflow, step_id: str, run: Run, *, timeout_ms: int | None = None) -> None:
        self.workflow = workflow
        self.step_id = step_id
        self.run = run
        self.run_id = new_id()
        spec = workflow.kind.spec(step_id)
        self._heartbeat_timeout_ms = spec.heartbeat_timeout_ms if spec else None
        self._timeout_ms = run.step_timeout_ms.get(step_id, timeout_ms)
        self._began_s = 0.0
        #: Goes into the report when the step fails.
        self.error_context: dict[str, Any] = {}

    @property
    def state(self) -> dict[str, Any]:
        """The service's part of the state; change it in place."""
        return self.run.data

    @property
    def cancelled(self) -> bool:
        """Whether a command has replaced or cancelled this run; a long step looks at it now and then."""
        return self.run.superseded.is_set()

    def check(self) -> None:
        """Raise SupersededError when a command has replaced or cancelled this run."""
        if self.cancelled:
            raise SupersededError("a command has replaced this run")

    def checkpoint(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """Save the state now; returns when the broker has confirmed it. Tells the truth when it has not.

        Raises StateError (the state is no valid data, with its path), ObjectStoreError (a large state could not be
        put into object storage), BufferFullError, NotDeliveredError, RetriableError or SupersededError.
        """
        return self.workflow.saver.manual(self.step_id, self.run, timeout_s)

    async def checkpoint_async(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """`checkpoint` for asyncio code: the event loop goes on while object storage and the broker confirm."""
        return await self.workflow.saver.manual_async(self.step_id, self.run, timeout_s)

    def persist(self) -> None:
        """Record a version of the state that is no checkpoint, without waiting for the broker. Raises as `checkpoint`,
        but for NotDeliveredError."""
        self.workflow.saver.persist(self.step_id, self.run)

    def heartbeat(self, progress: float | None = None, *, token: str | None = None, message: str | None = None) -> None:
        """Say that the step is alive, and how far it is (0 to 1). Raises when this run should end."""
        self.check()
        self.workflow.tell(
            StepProgressed,
            self.run,
            step_id=self.step_id,
            step_run_id=self.run_id,
            progress=_finite(progress),
            progress_token=None if token is None else describe(token, CODE_MAX),
            message=None if message is None else describe(message, MESSAGE_MAX),
        )

    def report_usage(
        self, *, memory_mb: float | None = None, cpu_percent: float | None = None, api_calls: int | None = None
    ) -> None:
        """Say what the step uses."""
        self.workflow.tell(
            ResourceUsageReported,
            self.run,
            step_id=self.step_id,
            memory_mb=_finite(memory_mb),
            cpu_percent=_finite(cpu_percent),
            api_calls=None if api_calls is None else max(0, min(int(api_calls), _COUNT_MAX)),
        )

    def __enter__(self) -> StepContext:
        self.workflow.enter(self.run)
        self._began_s = time.monotonic()
        try:
            self._begin()
        except BaseException:
            self.workflow.leave(self.run)
            raise
        return self

    def _begin(self) -> None:
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
        try:
            workflow.saver.automatic(self.step_id, "step_start", self.run)
        except StateError as error:
            workflow.report_error(self.step_id, error, run=self.run, step_run_id=self.run_id)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._completed()
            elif not isinstance(error, SupersededError | PausedError | ClosedError):
                # Also for what is no Exception: a step that was cancelled or interrupted did not complete.
                self.workflow.report_error(
                    self.step_id, error, context=self.error_context, run=self.run, step_run_id=self.run_id
                )
        finally:
            self.workflow.leave(self.run)

    async def __aenter__(self) -> StepContext:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _completed(self) -> None:
        workflow, run = self.workflow, self.run
        added = self.step_id not in run.completed
        if added:
            run.completed.append(self.step_id)
        try:
            workflow.saver.automatic(self.step_id, "step_complete", run)
        except (SupersededError, ClosedError):
            raise
        except Exception as error:
            # The step's result cannot be saved: that is a failure of the step, not a detail.
            if added:
                run.completed.remove(self.step_id)
            workflow.report_error(self.step_id, error, run=run, step_run_id=self.run_id)
            raise
        workflow.tell(
            StepCompleted,
            run,
            step_id=self.step_id,
            step_run_id=self.run_id,
            command_id=run.command_id,
            duration_ms=int((time.monotonic() - self._began_s) * 1000),
        )
        run.step_done(self.step_id)


def _finite(number: float | None) -> float | None:
    """What is no number says nothing."""
    return None if number is None or not math.isfinite(number) else float(number)
