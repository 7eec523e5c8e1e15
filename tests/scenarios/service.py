"""A simulated service: its steps, and its answers to commands, which it carries out as the client library would."""

from __future__ import annotations

import json
from collections import deque

from engine.testing import World
from schemas.canonical import canonical_bytes, digest_of
from schemas.records import Command
from schemas.records.commands import CancelStep, CompensateStep, ReconcileStep, RetryStep, RunAlternativePath, SkipStep
from schemas.records.events import (
    CommandAcknowledged,
    StateRestored,
    StepCompensated,
    StepProgressed,
    StepSkipped,
    WorkflowCancelled,
    WorkflowPaused,
    WorkflowResumed,
)

from .clock import Clock
from .model import Scenario
from .steps import REACTS_MS, SIDE_WORK_MS, Run, Saved, Steps
from .words import Answer


class SimulatedService(Steps):
    """One workflow. How it answers is read off the scenario."""

    def __init__(self, world: World, scenario: Scenario, clock: Clock) -> None:
        super().__init__(world, scenario, clock)
        self._answers = {name: deque(answers) for name, answers in scenario.answers.items()}

    # -- commands -------------------------------------------------------------------------------------------------

    def receive(self, command: Command) -> None:
        """A command arrives; it is answered as the scenario says."""
        name = type(command).__name__
        waiting = self._answers.get(name) or self._answers.get("any")
        answer = waiting.popleft() if waiting else Answer("carry_out")
        if answer.kind != "ignore":
            self.clock.after(REACTS_MS + answer.late_ms, lambda: self._answer(command, answer))

    def _answer(self, command: Command, answer: Answer) -> None:
        if self.world.now_us > command.expires_at:
            self.acknowledge(command, "failed", detail="it has expired")
        elif self.ended:
            self.acknowledge(command, "failed", detail="the workflow has ended")
        elif answer.kind == "refuse":
            self.acknowledge(command, "failed", detail="refused", reason=answer.reason or None)
        elif answer.kind == "cannot_tell":
            self.acknowledge(command, "unknown", detail="the service cannot tell")
        else:
            for _ in range(2 if answer.twice else 1):
                self.acknowledge(command, "accepted")
            if answer.kind == "lie":
                self._run.gone = True
            else:
                self._carry_out(command)
                if answer.twice:
                    self.clock.after(SIDE_WORK_MS, lambda: self.acknowledge(command, "accepted", duplicate=True))

    def _carry_out(self, command: Command) -> None:
        name = type(command).__name__
        if name == "PauseWorkflow":
            self._run.pausing = command
            if not self._run.active or self._run.gone:
                self._rest(self._run, command)
        elif name == "ResumeWorkflow":
            self.resume(command)
        elif name == "CancelWorkflow":
            self._cancel(command)
        elif isinstance(command, CancelStep):
            self._cancel_step(command)
        elif isinstance(command, CompensateStep):
            self._run.active.clear()
            self.clock.after(SIDE_WORK_MS, lambda: self._compensate(command))
        elif isinstance(command, ReconcileStep):
            self.clock.after(SIDE_WORK_MS, lambda: self._reconcile(command))
        elif name == "ScaleResources":
            self.clock.after(SIDE_WORK_MS, lambda: self.acknowledge(command, "succeeded"))
        else:
            self._begin_run(command)

    def _cancel(self, command: Command) -> None:
        self._run.gone = self.ended = True
        self.reporter.emit(WorkflowCancelled, reason=command.reason, actor=command.actor, command_id=command.command_id)
        self.acknowledge(command, "succeeded")

    def _cancel_step(self, command: CancelStep) -> None:
        self._run.active.pop(command.step_id, None)
        self._run.over.add(command.step_id)
        self.acknowledge(command, "succeeded")

    def _reconcile(self, command: ReconcileStep) -> None:
        if not self.specs[command.step_id].reconcilable:
            self.acknowledge(command, "failed", reason="not_reconcilable")
            return
        found = "took_effect" if self._took_effect.get(command.step_id) else "no_effect"
        self.acknowledge(command, "succeeded", result=found)

    def _compensate(self, command: CompensateStep) -> None:
        if command.step_id not in self._run.completed or self.specs[command.step_id].compensation is None:
            self.acknowledge(command, "failed", reason="never_ran")
            return
        self._run.completed.remove(command.step_id)
        self.undone[command.step_id] += 1
        self.effects[command.step_id] -= 1
        self.reporter.emit(
            StepCompensated, step_id=command.step_id, command_id=command.command_id, duration_ms=SIDE_WORK_MS
        )
        self.acknowledge(command, "succeeded")

    def _begin_run(self, command: Command) -> None:
        before, self._runs = self._run, self._runs + 1
        beside = before.active.keys() - {getattr(command, "step_id", None)}
        if isinstance(command, RetryStep) and beside and not before.gone:
            self._retry_beside(before, command)
            return
        before.gone = True
        run = Run(command, epoch=getattr(command, "epoch", 0), completed=[])
        if self._runs <= self.scenario.course_runs:
            run.path = self.scenario.path
        self._restore(run, before, command)
        self.paused = False
        self._run = run
        if isinstance(command, RetryStep):
            run.recovers = command.step_id
            run.instead.pop(command.step_id, None)
            run.approved = command.step_id if command.approved else before.approved
            if command.approved:
                self._emit(
                    run, WorkflowResumed, reason=command.reason, actor=command.actor, command_id=command.command_id
                )
            run.timeouts[command.step_id] = command.timeout_ms
            run.completed = [s for s in run.completed if s != command.step_id]
        elif isinstance(command, RunAlternativePath):
            run.recovers = command.alternative_step_id
            run.instead = {**before.instead, command.step_id: command.alternative_step_id}
        elif isinstance(command, SkipStep):
            for step_id in (command.step_id, *command.dependants):
                run.completed.append(step_id)
                self._checkpoint(run, step_id, "step_complete")
                self._emit(run, StepSkipped, step_id=step_id, reason=command.reason, command_id=command.command_id)
            self._settle(run, "succeeded")
        self.clock.after(REACTS_MS, lambda: self._go_on(run))

    def _retry_beside(self, run: Run, command: RetryStep) -> None:
        """Other branches run: they go on, in the same process, beside the step that runs again."""
        run.command, run.settled, run.recovers, run.epoch = command, False, command.step_id, command.epoch
        run.over.discard(command.step_id)
        run.active.pop(command.step_id, None)
        run.timeouts[command.step_id] = command.timeout_ms
        self.clock.after(REACTS_MS, lambda: self._go_on(run))

    def _restore(self, run: Run, before: Run, command: Command) -> None:
        """The state that the command names; in a process that lives, a retry without one goes on with its own."""
        checkpoint_id = getattr(command, "checkpoint_id", None)
        self.reporter.sequence = max(self.reporter.sequence, getattr(command, "last_sequence", 0))
        if checkpoint_id is not None:
            saved = self._saved[checkpoint_id]
            run.data, run.completed, run.position = saved.data, list(saved.completed), saved.position
            run.instead = dict(before.instead)
            self.reporter.chain = saved.chain
            self._restores += 1
            self._tell_restored(run, command, saved)
        elif type(command).__name__ == "RestartWorkflow":
            self.reporter.chain = None
        else:
            run.data, run.completed, run.position = before.data, list(before.completed), before.position
            run.instead = dict(before.instead)

    def _tell_restored(self, run: Run, command: Command, saved: Saved) -> None:
        data = canonical_bytes(self._document(run, saved.step_id))
        self._emit(
            run,
            StateRestored,
            checkpoint_id=getattr(command, "checkpoint_id", None),
            step_id=saved.step_id,
            command_id=command.command_id,
            epoch=run.epoch,
            state_version="1",
            codec="identity",
            size_bytes=len(data),
            digest=digest_of(data),
            status="running",
            restored_at=self.world.now_us,
            restore_count=self._restores,
            state=data,
        )

    # -- what happens from outside ----------------------------------------------------------------------------------

    def happen(self, what: str) -> None:
        """Something that the scenario says happens at this moment."""
        words = what.split()
        if what == "pause":
            self.paused = True
            self.reporter.emit(WorkflowPaused, reason="the night", actor="ann")
        elif what == "resume":
            self.resume(None)
        elif what == "cancel" and not self.ended:
            self._run.gone = self.ended = True
            self.reporter.emit(WorkflowCancelled, reason="no longer needed", actor="ann")
        elif what == "die":
            self._run.gone = True
        elif words[0] == "stray":
            self._stray("accepted" if words[1] == "acknowledged" else "failed")
        elif words[:2] == ["acknowledge", "command"]:
            self.acknowledge(self.world.commands[int(words[2]) - 1], words[4])
        elif words[0] == "progress":
            self.reporter.emit(StepProgressed, step_id=words[-1], step_run_id=self.world.new_id())
        elif what == "cancel":
            self.reporter.emit(WorkflowCancelled, reason="no longer needed", actor="ann")
        elif words[0] == "damage":
            self._checkpoint(self._run, words[-1], "manual", damaged=True)
        else:
            raise ValueError(f"{what!r} cannot happen; see docs/scenarios.md")

    def resume(self, command: Command | None) -> None:
        """Go on after a pause."""
        self.paused = False
        command_id = None if command is None else command.command_id
        self.reporter.emit(WorkflowResumed, reason="morning", actor="ann", command_id=command_id)
        if command is not None:
            self.acknowledge(command, "succeeded")
        self._go_on(self._run)

    def _stray(self, status: str) -> None:
        """An answer to a command that nobody sent."""
        command_id, error_id = self.world.new_id(), self.world.new_id()
        self.reporter.emit(
            CommandAcknowledged, command_id=command_id, error_id=error_id, attempt_number=1, status=status
        )

    def supplied(self) -> str:
        """The result that a person supplies for a step that is left out."""
        return json.dumps({"supplied": True})
