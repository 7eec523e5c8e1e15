"""A storm: many workflows that call one target, which goes down, and some that have nothing to do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from schemas.ids import derive_id
from schemas.records import Command, Record
from schemas.records.commands import PauseWorkflow
from schemas.records.events import (
    CommandAcknowledged,
    StepCompleted,
    StepSpec,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

from .policy import Policy
from .testing_fleet import Fleet

R = TypeVar("R", bound=Record)

#: Time a target takes to answer, well or not.
ANSWER_MS = 50


class Target:
    """An outside system that bears so many calls in a second. One more and it is down for a while."""

    def __init__(self, fleet: Fleet, capacity_per_s: int, *, down_s: int = 20) -> None:
        self.fleet = fleet
        self.capacity_per_s = capacity_per_s
        self.down_s = down_s
        self.up = True
        #: Calls in each second.
        self.calls: Counter[int] = Counter()
        self.collapses = 0

    def call(self) -> bool:
        """Whether a call succeeds."""
        second = self.fleet.second
        self.calls[second] += 1
        if self.up and self.calls[second] > self.capacity_per_s:
            self.up = False
            self.collapses += 1
            self.fleet.plan(self.down_s * 1000, self.heal)
        return self.up

    def heal(self) -> None:
        """It is well again."""
        self.up = True


class Caller:
    """A workflow of one step that calls a target, or always fails at first: as its service reports it."""

    def __init__(self, fleet: Fleet, number: int, call: Callable[[], bool], dependency: str | None) -> None:
        self.fleet = fleet
        self.workflow_id = derive_id("fleet", "workflow", number)
        self.call = call
        self.dependency = dependency
        self.done = False
        self.commands: list[tuple[int, Command]] = []
        self._ids = count()

    def begin(self) -> None:
        """The workflow starts, and its step."""
        self._emit(WorkflowStarted, workflow_version="1", steps=(StepSpec(step_id="pay", idempotent=True),))
        self.start()

    def _emit(self, kind: type[R], **fields: Any) -> None:
        self.fleet.append(
            kind(
                event_id=self._id(),
                workflow_id=self.workflow_id,
                workflow_type="payment",
                occurred_at=self.fleet.now_us,
                producer="test",
                **fields,
            )
        )

    def _id(self) -> str:
        return derive_id(self.workflow_id, "id", next(self._ids))

    def obey(self, command: Command) -> None:
        """Take up a command."""
        self.commands.append((self.fleet.now_us, command))
        self.fleet.plan(1, lambda: self._obeyed(command))

    def _obeyed(self, command: Command) -> None:
        if isinstance(command, PauseWorkflow):
            return  # it rests as it is
        self._emit(
            CommandAcknowledged,
            command_id=command.command_id,
            error_id=command.error_id,
            attempt_number=command.attempt_number,
            status="accepted",
        )
        self.start(command.command_id)

    def start(self, command_id: str | None = None) -> None:
        """Run the step; it calls the target at once and has the answer a little later."""
        run_id = self._id()
        self._emit(StepStarted, step_id="pay", step_run_id=run_id, command_id=command_id)
        succeeds = self.call()
        self.fleet.plan(ANSWER_MS, lambda: self._answered(succeeds, run_id, command_id))

    def _answered(self, succeeds: bool, run_id: str, command_id: str | None) -> None:
        common = {"step_id": "pay", "step_run_id": run_id, "command_id": command_id}
        if succeeds:
            self.done = True
            self._emit(StepCompleted, **common, duration_ms=ANSWER_MS)
            self._emit(WorkflowCompleted)
            return
        self._emit(
            WorkflowErrorOccurred,
            **common,
            error_id=self._id(),
            error_code="SERVICE_UNAVAILABLE",
            error_message=f"no answer from {self.dependency}",
            detected_by="service",
            dependency=self.dependency,
        )


class Storm:
    """`workflows` begin within `seconds` while their target is down; others fail once, each on something of its own."""

    def __init__(
        self, policy: Policy, *, workflows: int, seconds: int, capacity_per_s: int, unrelated: int = 0
    ) -> None:
        self.policy = policy
        self.fleet = Fleet(policy, self._obey)
        self.target = Target(self.fleet, capacity_per_s)
        self.target.up = False
        self.callers = [Caller(self.fleet, n, self.target.call, "payments") for n in range(workflows)]
        self.unrelated = [Caller(self.fleet, workflows + n, _once(), f"system {n}") for n in range(unrelated)]
        self._by_id = {c.workflow_id: c for c in (*self.callers, *self.unrelated)}
        for callers in (self.callers, self.unrelated):
            for number, caller in enumerate(callers):
                self.fleet.plan(number * seconds * 1000 // len(callers), caller.begin)

    def _obey(self, command: Command) -> None:
        self._by_id[command.workflow_id].obey(command)

    @property
    def waiting(self) -> int:
        """Workflows that are not done."""
        return sum(not caller.done for caller in self.callers)

    def settle(self, seconds_max: int) -> int:
        """Run until all are done; how many seconds that took, at most so many."""
        for second in range(seconds_max):
            if not self.waiting:
                return second
            self.fleet.run(1)
        return seconds_max


def _once() -> Callable[[], bool]:
    calls = count()
    return lambda: next(calls) > 0
