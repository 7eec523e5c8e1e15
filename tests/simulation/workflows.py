"""Workflows of the simulation: what their services write, and how they answer commands."""

from __future__ import annotations

from typing import Protocol, cast

from engine.testing import Service, World, saved
from schemas.records import Command
from schemas.records.commands import RetryStep
from schemas.records.events import StepSpec, WorkflowCompleted

from .cluster import Nature

CODES = ("TIMEOUT", "ValueError", "API_RATE_LIMIT", "OUT_OF_MEMORY")
STEPS_MAX = 3


class Desk(Nature, Protocol):
    """Where services write, and where they find their commands."""

    faults: bool

    def commands(self, workflow_id: str, start: int) -> list[Command]:
        """Commands to a workflow from a place on."""


class Workflow:
    """One workflow: each `act` is one thing that its service does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        count = desk.rng.randint(1, STEPS_MAX)
        self._steps = tuple(StepSpec(step_id=f"step{n}") for n in range(count))
        self.service = Service(cast(World, desk), self._steps)
        self._number = 0
        self._running = False
        self._waits = False
        self._read = 0
        self._answered: set[str] = set()
        self.ended = False

    def act(self) -> bool:
        """Do the next thing; False when there is none."""
        if self.ended:
            return False
        if self._desk.faults and self._desk.rng.random() < 0.1:
            self._read = 0  # its consumer begins again
        commands = self._desk.commands(self.service.workflow_id, self._read)
        if commands:
            self._read += 1
            self._answer(commands[0])
            return True
        if self._waits:
            return False
        if self._running:
            self._finish(None)
        elif self._number < len(self._steps):
            self._running = True
            self.service.start(self._step)
            if self._desk.rng.random() < 0.3:
                self.service.checkpoint(self._step, lambda w, s: cast(dict[str, object], saved(w, s, self._number)))
        else:
            self.service.emit(WorkflowCompleted)
            self.ended = True
        return True

    @property
    def _step(self) -> str:
        return self._steps[self._number].step_id

    def _answer(self, command: Command) -> None:
        if command.command_id in self._answered or not self._waits:
            return
        self._answered.add(command.command_id)
        if not isinstance(command, RetryStep) or command.step_id != self._step:
            self.service.acknowledge(command, "failed", detail="not here")
            return
        self.service.acknowledge(command)
        self._running, self._waits = True, False
        self.service.start(self._step, command)
        if self._desk.rng.random() < 0.9:
            self._finish(command)

    def _finish(self, command: Command | None) -> None:
        self._running = False
        if self._desk.rng.random() < 0.4:
            self.service.fail(self._step, self._desk.rng.choice(CODES), command)
            self._waits = True
        else:
            self.service.complete(self._step, command)
            self._number += 1
