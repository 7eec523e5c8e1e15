"""The steps of a simulated service: it runs them as the scenario says, saves its state, and reports."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TypeVar

from engine.testing import Service, World
from schemas.canonical import canonical_bytes, digest_of
from schemas.records import Command, Record
from schemas.records.events import (
    CommandAcknowledged,
    InterventionPointReached,
    ResourceUsageReported,
    StepCompleted,
    StepProgressed,
    StepSkipped,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowStarted,
)

from .clock import Clock
from .model import Scenario
from .words import Outcome

R = TypeVar("R", bound=Record)

#: From a command to the service's first answer, and from one step to the next.
REACTS_MS = 5
#: How long what is done besides steps takes: undoing one, asking whether one took effect, scaling.
SIDE_WORK_MS = 500


class Reporter(Service):
    """Writes the workflow's records, each of them twice where the scenario says so."""

    def __init__(self, world: World, *, twice: bool) -> None:
        super().__init__(world)
        self._twice = twice

    def emit(self, kind: type[R], /, **fields: object) -> R:
        record = self.build(kind, **fields)
        for _ in range(2 if self._twice else 1):
            self.world.append(record)
        self.world.settle()
        return record


@dataclass(slots=True)
class Run:
    """One pass through the workflow, begun by a command or by the service itself."""

    command: Command | None = None
    epoch: int = 0
    data: int = 0
    completed: list[str] = field(default_factory=list)
    position: int = 0
    path: list[str] | None = None
    #: Step that runs, the id of its run, and the command that began it.
    active: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str | None] = field(default_factory=dict)
    #: Steps that are not begun (again) in this run: they failed, or were given up.
    over: set[str] = field(default_factory=set)
    approved: str = ""
    instead: dict[str, str] = field(default_factory=dict)
    recovers: str = ""
    timeouts: dict[str, int | None] = field(default_factory=dict)
    #: Its process is gone, or another run has replaced it.
    gone: bool = False
    pausing: Command | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds, and its place in the chain."""

    data: int
    completed: tuple[str, ...]
    position: int
    step_id: str
    chain: tuple[str, str]


class Steps:
    """One workflow, whose steps end as the scenario says; what they did outside is counted."""

    def __init__(self, world: World, scenario: Scenario, clock: Clock) -> None:
        self.world = world
        self.scenario = scenario
        self.clock = clock
        self.reporter = Reporter(world, twice=scenario.delivery == "twice")
        self.specs = {spec.step_id: spec for spec in scenario.specs}
        self.effects: Counter[str] = Counter()
        self.undone: Counter[str] = Counter()
        self.ended = False
        self.paused = False
        self._aside = scenario.aside
        self._outcomes = {step: deque(outcomes) for step, outcomes in scenario.runs.items()}
        self._saved: dict[str, Saved] = {}
        self._took_effect: dict[str, bool] = {}
        self._restores = 0
        self._runs = 1
        self._run = Run(path=scenario.path)

    # -- life -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the workflow."""
        self.reporter.emit(
            WorkflowStarted,
            workflow_version="1",
            steps=self.scenario.specs,
            timeout_ms=self.scenario.timeout,
            input="{}",
            state_version="1",
        )
        self._go_on(self._run)

    def _go_on(self, run: Run) -> None:
        if run.gone or self.ended or self.paused:
            return
        if run.pausing is not None:
            if not run.active:
                self._rest(run, run.pausing)
            return
        for step_id in self._ready(run):
            spec = self.specs[step_id]
            if spec.intervention_point and run.approved != step_id:
                self._stand_before(run, step_id)
                continue
            self._start(run, step_id)
        if not run.active and self._all_done(run):
            self.ended = True
            self._emit(run, WorkflowCompleted)
            self._settle(run, "succeeded")
        elif not run.active and run.over:
            self._settle(run, "failed")

    def _stand_before(self, run: Run, step_id: str) -> None:
        """A human is to be asked before the step: the workflow rests until then."""
        run.over.add(step_id)
        self._emit(run, InterventionPointReached, step_id=step_id, reason="may it run?")
        self.paused = True
        self._emit(run, WorkflowPaused, reason=f"a human is asked before step {step_id!r}", actor="service")

    def _ready(self, run: Run) -> list[str]:
        if run.path is not None:
            at_end = run.position >= len(run.path)
            return [] if run.active or run.over or at_end else [run.path[run.position]]
        found = []
        for spec in self.specs.values():
            name = run.instead.get(spec.step_id, spec.step_id)
            idle = not {spec.step_id, name} & ({*run.completed} | run.over) and name not in run.active
            if spec.step_id in self._aside or not idle:
                continue
            if all(self._done(run, needed) for needed in spec.depends_on):
                found.append(name)
        return found

    def _done(self, run: Run, step_id: str) -> bool:
        return step_id in run.completed or run.instead.get(step_id) in run.completed

    def _all_done(self, run: Run) -> bool:
        if run.path is not None:
            return run.position >= len(run.path)
        return all(self._done(run, s) for s in self.specs if s not in self._aside)

    def _emit(self, run: Run, kind: type[Record], **fields: object) -> None:
        if not run.gone:
            self.reporter.emit(kind, **fields)

    # -- steps ----------------------------------------------------------------------------------------------------

    def _start(self, run: Run, step_id: str) -> None:
        waiting = self._outcomes.get(step_id)
        outcome = waiting.popleft() if waiting else Outcome("ok", done=True)
        run_id = self.world.new_id()
        run.active[step_id] = run_id
        run.commands[step_id] = run.command.command_id if run.command else None
        self.reporter.runs[step_id] = run_id
        spec = self.specs[step_id]
        self._emit(
            run,
            StepStarted,
            step_id=step_id,
            step_run_id=run_id,
            command_id=run.commands[step_id],
            timeout_ms=run.timeouts.get(step_id),
            heartbeat_timeout_ms=spec.heartbeat_timeout_ms,
            input_digest=self._digest(run, step_id),
        )
        self._checkpoint(run, step_id, "step_start")
        if spec.heartbeat_timeout_ms:
            self._beat(run, step_id, run_id, spec.heartbeat_timeout_ms // 2)
        if step_id in self.scenario.usage:
            self._use(run, step_id, run_id, 0)
        self.clock.after(
            outcome.after_ms, lambda: self._end(run, step_id, run_id, outcome), idle=outcome.kind == "hang"
        )

    def _digest(self, run: Run, step_id: str) -> str | None:
        if self.scenario.digests == "state":
            return None
        return digest_of(canonical_bytes({"step": step_id, "n": run.data}))

    def _beat(self, run: Run, step_id: str, run_id: str, every_ms: int) -> None:
        def beat() -> None:
            if not run.gone and not self.ended and run.active.get(step_id) == run_id:
                self.reporter.emit(StepProgressed, step_id=step_id, step_run_id=run_id)
                self._beat(run, step_id, run_id, every_ms)

        self.clock.after(every_ms, beat, idle=True)

    def _use(self, run: Run, step_id: str, run_id: str, number: int) -> None:
        usage = self.scenario.usage[step_id]
        length = max(len(usage.memory), len(usage.cpu), len(usage.api_calls))

        def report() -> None:
            if run.gone or self.ended or run.active.get(step_id) != run_id or number >= length:
                return
            self.reporter.emit(
                ResourceUsageReported,
                step_id=step_id,
                memory_mb=usage.memory[number] if number < len(usage.memory) else None,
                cpu_percent=usage.cpu[number] if number < len(usage.cpu) else None,
                api_calls=usage.api_calls[number] if number < len(usage.api_calls) else None,
            )
            self._use(run, step_id, run_id, number + 1)

        self.clock.after(usage.every, report, idle=True)

    def _end(self, run: Run, step_id: str, run_id: str, outcome: Outcome) -> None:
        replaced = run.gone or run.active.get(step_id) != run_id
        if self.ended or (replaced and not outcome.zombie):
            return
        if outcome.done:
            self.effects[step_id] += 1
        self._took_effect[step_id] = outcome.done
        if replaced:
            self._as_zombie(run, step_id, run_id)
        elif outcome.kind in ("ok", "vanish"):
            self._complete(run, step_id, run_id, outcome)
        elif outcome.kind in ("fail", "lose"):
            self._fail(run, step_id, run_id, outcome)
        elif outcome.kind == "die":
            run.gone = True
        elif outcome.kind == "corrupt":
            self._checkpoint(run, step_id, "manual", damaged=True)
            rest = Outcome("ok", done=True)
            self.clock.after(rest.after_ms, lambda: self._end(run, step_id, run_id, rest))

    def _complete(self, run: Run, step_id: str, run_id: str, outcome: Outcome) -> None:
        del run.active[step_id]
        run.position += 1
        run.data += not outcome.unchanged
        if step_id not in run.completed:
            run.completed.append(step_id)
        self._checkpoint(run, step_id, "critical_point" if self.specs[step_id].critical else "step_complete")
        self._emit(
            run,
            StepCompleted,
            step_id=step_id,
            step_run_id=run_id,
            command_id=run.commands[step_id],
            output_digest=self._digest(run, step_id),
            duration_ms=outcome.after_ms,
        )
        self._replaced_by(run, step_id)
        if run.recovers in ("", step_id):
            self._settle(run, "succeeded")
        if outcome.kind == "vanish":
            run.gone = True
        self.clock.after(REACTS_MS, lambda: self._go_on(run))

    def _replaced_by(self, run: Run, step_id: str) -> None:
        """The step that this one ran instead of is left out."""
        for failed, alternative in run.instead.items():
            if alternative == step_id:
                self._emit(
                    run,
                    StepSkipped,
                    step_id=failed,
                    reason=f"{alternative} ran instead",
                    command_id=run.command.command_id if run.command else None,
                )

    def _fail(self, run: Run, step_id: str, run_id: str, outcome: Outcome) -> None:
        del run.active[step_id]
        run.over.add(step_id)
        self._checkpoint(run, step_id, "error_recovery", evidence=True)
        lost = outcome.kind == "lose"
        code = "CONNECTION_LOST" if lost else outcome.code
        self._emit(
            run,
            WorkflowErrorOccurred,
            error_id=self.world.new_id(),
            step_id=step_id,
            step_run_id=run_id,
            command_id=run.commands[step_id],
            error_code=code,
            error_message=f"{code} in {step_id}",
            detected_by="service",
            reason="outcome_unknown" if lost else None,
            dependency=outcome.dependency or None,
        )
        self.clock.after(REACTS_MS, lambda: self._go_on(run))

    def _as_zombie(self, run: Run, step_id: str, run_id: str) -> None:
        """A process that does not know that another one has the workflow reports the end of its step."""
        chain, sequence = self.reporter.chain, self.reporter.sequence
        self._write(run, step_id, "step_complete")
        self.reporter.chain, self.reporter.sequence = chain, sequence
        self.reporter.emit(
            StepCompleted,
            step_id=step_id,
            step_run_id=run_id,
            command_id=run.commands[step_id],
            duration_ms=SIDE_WORK_MS,
        )

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _checkpoint(self, run: Run, step_id: str, type_: str, *, damaged: bool = False, evidence: bool = False) -> None:
        if not run.gone:
            self._write(run, step_id, type_, damaged=damaged, evidence=evidence)

    def _write(self, run: Run, step_id: str, type_: str, *, damaged: bool = False, evidence: bool = False) -> None:
        def make(workflow_id: str, step: str) -> dict[str, object]:
            data = canonical_bytes(self._document(run, step))
            state = data.replace(b'"running"', b'"runninh"') if damaged else data
            return {"codec": "identity", "size_bytes": len(data), "digest": digest_of(data), "state": state}

        record = self.reporter.checkpoint(step_id, make, checkpoint_type=type_, evidence=evidence, epoch=run.epoch)
        assert self.reporter.chain is not None
        self._saved[record.checkpoint_id] = Saved(
            run.data, tuple(run.completed), run.position, step_id, self.reporter.chain
        )

    def _document(self, run: Run, step_id: str) -> dict[str, object]:
        return {
            "workflow_id": self.reporter.workflow_id,
            "workflow_type": "development",
            "version": "1",
            "step_id": step_id,
            "status": "running",
            "completed_steps": list(run.completed),
            "data": {"n": run.data},
            "metadata": {},
        }

    # -- answers that its course leads to -------------------------------------------------------------------------

    def acknowledge(self, command: Command, status: str, **fields: object) -> None:
        """Answer a command."""
        self.reporter.emit(
            CommandAcknowledged,
            command_id=command.command_id,
            error_id=command.error_id,
            attempt_number=command.attempt_number,
            step_id=getattr(command, "step_id", None),
            status=status,
            **fields,
        )

    def _settle(self, run: Run, status: str) -> None:
        if run.command is not None and not run.settled:
            run.settled = True
            self.acknowledge(run.command, status)

    def _rest(self, run: Run, command: Command) -> None:
        run.pausing = None
        self.paused = True
        self.reporter.emit(WorkflowPaused, reason=command.reason, actor=command.actor, command_id=command.command_id)
        self.acknowledge(command, "succeeded")
