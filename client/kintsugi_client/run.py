"""A run: one pass through a workflow's steps, with the state that belongs to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from .turns import Turns

#: Says how a command ended: status, detail, the short reason of a failure, and what the command found out.
Answer = Callable[[str, str | None, str | None, str | None], None]
#: In the metadata of a state: intervention points that a human has let the workflow pass.
_APPROVED = "approved"


class Run:
    """A command replaces a workflow's run by a new one, with a state of its own.

    So a step that hangs and wakes up later can neither touch the state of its successor nor write into the log.
    `data`, `completed` and `metadata` are the state; `command_id` and `trace` name the command that began the run.
    """

    __slots__ = (
        "_answer",
        "_lock",
        "abandoned",
        "command_id",
        "completed",
        "data",
        "epoch",
        "last_sequence",
        "metadata",
        "open_steps",
        "phase",
        "recovers",
        "reported",
        "step_timeout_ms",
        "stop",
        "superseded",
        "trace",
        "turns",
    )

    def __init__(
        self,
        command_id: str | None = None,
        trace: str | None = None,
        answer: Answer | None = None,
        *,
        epoch: int = 0,
        last_sequence: int = 0,
    ) -> None:
        self.command_id = command_id
        self.trace = trace
        #: Which run of the workflow this is, as the engine counts them: it tells what a replaced run still writes.
        self.epoch = epoch
        #: The highest number of a checkpoint that the engine knew when it began this run.
        self.last_sequence = last_sequence
        self.data: dict[str, Any] = {}
        self.completed: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.superseded = threading.Event()
        self.step_timeout_ms: dict[str, int] = {}
        #: The step whose completion answers the command; "" for the first one that completes.
        self.recovers = ""
        #: Steps that have begun and not ended.
        self.open_steps = 0
        #: Where the run stands in the queue: new, queued, running, ended. Kept by the runner.
        self.phase = "new"
        #: Its thread was replaced by another, because its step did not end. Kept by the runner.
        self.abandoned = False
        #: Whether the log has been told of the error that ended the run.
        self.reported = False
        #: A pause that waits for the end of the step.
        self.stop: Pause | None = None
        #: In which order its states are written.
        self.turns = Turns()
        self._answer = answer
        self._lock = threading.Lock()

    def settle(
        self, status: str, detail: str | None = None, reason: str | None = None, *, result: str | None = None
    ) -> None:
        """Answer the command of this run. The first answer counts; a run without a command has none."""
        with self._lock:
            answer, self._answer = self._answer, None
        if answer is not None:
            answer(status, detail, reason, result)

    def step_done(self, step_id: str) -> None:
        """A step has completed: the command has done what it was sent for, if this is the step."""
        if self.recovers in ("", step_id):
            self.settle("succeeded")


def approved(metadata: Mapping[str, Any]) -> list[str]:
    """Intervention points that were passed. Metadata are data of the service too, so anything may stand there."""
    found = metadata.get(_APPROVED)
    return [step for step in found if isinstance(step, str)] if isinstance(found, list) else []


def approve(metadata: Mapping[str, Any], step_id: str) -> dict[str, Any]:
    """The metadata with one more intervention point passed."""
    return {**metadata, _APPROVED: sorted({*approved(metadata), step_id})}


class Pause:
    """A pause asked for: by which command, and whether it has come about."""

    __slots__ = ("actor", "done", "order", "reason")

    def __init__(self, order: Run, reason: str, actor: str) -> None:
        self.order = order
        self.reason = reason
        self.actor = actor
        self.done = False
