"""A run of a step, as the step's own code sees it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._schemas.canonical import digest_of
from ._schemas.errors import KintsugiError, StateError
from ._schemas.records.events import (
    ResourceUsageReported,
    StepCompleted,
    StepProgressed,
    StepSkipped,
    StepStarted,
)
from .checkpoints import canonical, new_id
from .errors import ClosedError, LeaseError, PausedError, StepCancelledError, SupersededError
from .leases import LEASE_TIMEOUT_S, leased, waiting
from .run import Run
from .saving import CHECKPOINT_TIMEOUT_S
from .texts import CODE_MAX, MESSAGE_MAX, describe

if TYPE_CHECKING:
    from .grants import Wish
    from .workflow import Workflow

_COUNT_MAX = 2**31 - 1
#: Heartbeats in the time after which a step is taken for dead.
_BEATS = 3
#: Errors looked at in a chain of causes; one may lead back to itself.
_CAUSES_MAX = 20


class StepContext:
    """A run of a step: a context manager, sync and async. What the step's function is given."""

    def __init__(
        self,
        workflow: Workflow,
        step_id: str,
        run: Run,
        *,
        timeout_ms: int | None = None,
        given: Any = None,
        instead_of: str | None = None,
    ) -> None:
        self.workflow = workflow
        self.step_id = step_id
        self.run = run
        self.run_id = new_id()
        self._instead_of = instead_of
        self._input_digest = digest(given)
        self._output_digest: str | None = None
        self._cancelled = threading.Event()
        self._leases: Counter[str] = Counter()
        #: What it holds, with the resource's name.
        self._held: list[tuple[str, Wish]] = []
        self._heard_s = 0.0
        #: The dependency that failed, and the error by which it did.
        self._failed: tuple[str, BaseException] | None = None
        spec = workflow.kind.graph.spec(step_id)
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
        """Whether the step is to end: a command has replaced this run or cancelled it or this step, or a lease that the
        step holds was taken away. A long step looks now and then."""
        return self.run.superseded.is_set() or self._cancelled.is_set() or self._lost() is not None

    def cancel(self) -> None:
        """Tell the step to end: see `Workflow.cancel_step`."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise SupersededError when a command has replaced or cancelled this run, or StepCancelledError this step, or
        LeaseError when a lease that the step holds was taken away."""
        if self.run.superseded.is_set():
            raise SupersededError("a command has replaced this run")
        if self._cancelled.is_set():
            raise StepCancelledError("a command has cancelled this step")
        lost = self._lost()
        if lost is not None:
            raise lost

    def _lost(self) -> LeaseError | None:
        for resource_id, wish in tuple(self._held):
            if wish.lost is not None:
                return LeaseError(wish.lost, f"{resource_id!r} was taken away: {wish.lost}")
        return None

    @contextlib.contextmanager
    def holding(self, resource_id: str, wish: Wish) -> Iterator[None]:
        """While it is held. LeaseError at the end of what was done without it, if it was taken away meanwhile."""
        held = (resource_id, wish)
        self._held.append(held)
        try:
            yield
            if wish.lost is not None:
                self.check()
        finally:
            self._held.remove(held)

    def lease(
        self, resource_id: str, *, amount: int = 1, priority: int = 0, timeout_s: float = LEASE_TIMEOUT_S
    ) -> contextlib.AbstractContextManager[None]:
        """Hold part of a resource that workflows share: `with ctx.lease("gpu"):`. The coordinator grants it, by the
        time of asking and by priority. LeaseError when it does not, or when it takes the lease away before the block
        ends; NotDeliveredError when the request cannot be made; raises as `check` when the step is to end meanwhile."""
        return self._leased(resource_id, amount, priority, timeout_s)

    @contextlib.contextmanager
    def _leased(self, resource_id: str, amount: int, priority: int, timeout_s: float) -> Iterator[None]:
        nth = self._leases[resource_id]
        self._leases[resource_id] += 1
        try:
            with leased(self, resource_id, amount=amount, priority=priority, timeout_s=timeout_s, nth=nth):
                yield
        finally:
            self._leases[resource_id] -= 1

    def waits_for(self, workflow_id: str) -> contextlib.AbstractContextManager[None]:
        """Say that the step waits for another workflow: `with ctx.waits_for(other_id):` around the service's own wait.
        Two that wait for each other are found, and one is given an error."""
        return waiting(self, workflow_id)

    def alive(self) -> None:
        """While the client itself waits in a step: raises as `check`, and says in time that the step is alive."""
        self.check()
        if self._heartbeat_timeout_ms is not None and time.monotonic() >= self._heard_s:
            self._heard_s = time.monotonic() + self._heartbeat_timeout_ms / 1000 / _BEATS
            self.heartbeat()

    def output(self, value: Any) -> None:
        """Say what the step made, if it is JSON: its digest tells a run that repeats from one that progresses. What a
        step's function returns is said by itself."""
        self._output_digest = digest(value)

    @contextlib.contextmanager
    def dependency(self, name: str) -> Iterator[None]:
        """Name the outside system that is used: `with ctx.dependency("payments"):`. An error that ends the step and was
        raised in here is put down to it; so is one that has a `dependency` of its own."""
        try:
            yield
        except BaseException as error:
            if self._failed is None or self._failed[1] is not error:
                self._failed = (name, error)
            raise

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
        self.workflow.enter(self)
        self._began_s = time.monotonic()
        try:
            self._begin()
        except BaseException:
            self.workflow.leave(self)
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
            input_digest=self._input_digest,
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
                    self.step_id,
                    error,
                    context=self.error_context,
                    dependency=self._dependency_of(error),
                    run=self.run,
                    step_run_id=self.run_id,
                )
        finally:
            self._failed = None  # it holds the error's frames
            self.workflow.leave(self)

    async def __aenter__(self) -> StepContext:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _dependency_of(self, error: BaseException) -> str | None:
        """What the error is put down to here; also when the step raised another because of it."""
        if self._failed is None:
            return None
        name, failure = self._failed
        at: BaseException | None = error
        for _ in range(_CAUSES_MAX):
            if at is None or at is failure:
                break
            at = at.__cause__ or at.__context__
        return name if at is failure else None

    def _completed(self) -> None:
        workflow, run = self.workflow, self.run
        # An alternative's checkpoint says that the step it stands for is done with: nothing else may run that again.
        done = [step for step in (self.step_id, self._instead_of) if step is not None and step not in run.completed]
        run.completed.extend(done)
        try:
            workflow.saver.automatic(self.step_id, "step_complete", run)
        except (SupersededError, ClosedError):
            raise
        except Exception as error:
            # The step's result cannot be saved: that is a failure of the step, not a detail.
            for step in done:
                run.completed.remove(step)
            workflow.report_error(self.step_id, error, run=run, step_run_id=self.run_id)
            raise
        workflow.tell(
            StepCompleted,
            run,
            step_id=self.step_id,
            step_run_id=self.run_id,
            command_id=run.command_id,
            output_digest=self._output_digest,
            duration_ms=int((time.monotonic() - self._began_s) * 1000),
        )
        if self._instead_of is not None:
            why = f"alternative {self.step_id} ran"
            workflow.tell(StepSkipped, run, step_id=self._instead_of, reason=why, command_id=run.command_id)
        run.step_done(self.step_id)


class ReadingContext(StepContext):
    """What a reconcile function is given: the step's state and identity, and nothing that writes."""

    def checkpoint(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """Refused."""
        raise _only_reads()

    async def checkpoint_async(self, *, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> str:
        """Refused."""
        raise _only_reads()

    def persist(self) -> None:
        """Refused."""
        raise _only_reads()

    def heartbeat(self, progress: float | None = None, *, token: str | None = None, message: str | None = None) -> None:
        """Says nothing, for no step is at work. Raises when the answer is not wanted any more."""
        self.check()

    def report_usage(
        self, *, memory_mb: float | None = None, cpu_percent: float | None = None, api_calls: int | None = None
    ) -> None:
        """Says nothing, for no step is at work."""

    def __enter__(self) -> StepContext:
        raise _only_reads()


def _only_reads() -> KintsugiError:
    return KintsugiError("a reconciliation only reads")


def digest(value: Any) -> str | None:
    """SHA-256 of a value's canonical JSON, hex; None for None, and for what is no JSON data."""
    if value is None:
        return None
    try:
        return digest_of(canonical(value))
    except StateError:
        return None


def _finite(number: float | None) -> float | None:
    """What is no number says nothing."""
    return None if number is None or not math.isfinite(number) else float(number)
