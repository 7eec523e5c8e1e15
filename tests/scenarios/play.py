"""Plays a scenario on the engine with a clock of its own, and holds what came of it against the label."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.invariants import LogCheck
from engine.state import WorkflowState
from engine.strategies import MANUAL
from engine.testing import World
from engine.timers import next_due_us
from schemas.records import Command
from schemas.records.events import (
    ErrorClassified,
    InterventionRequested,
    InterventionResolved,
    PolicyChanged,
    RecoveryDecided,
    ResourceLimitNear,
    StepSkipped,
    StepStarted,
    WorkflowErrorOccurred,
)

from .clock import Clock
from .model import POINT, Scenario
from .service import SimulatedService
from .words import Never, Person

#: Moments of one scenario; one that needs more feeds itself.
MOMENTS_MAX = 50_000
#: What the check of a log finds against services; here they do wrong on purpose.
_OF_SERVICES = frozenset({"accepted_twice", "ran_twice", "restored_unverified"})


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a scenario."""

    end: str
    errors: list[ErrorClassified]
    error_codes: list[str]
    decisions: list[RecoveryDecided]
    commands: list[Command]
    interventions: list[InterventionRequested]
    warnings: int
    runs: Counter[str]
    effects: Counter[str]
    undone: Counter[str]
    skipped: Counter[str]
    #: What the check of the log found.
    findings: list[str] = field(default_factory=list)

    @property
    def first_type(self) -> str | None:
        """Type of the first error that counted."""
        if self.interventions and self.interventions[0].trigger == POINT and not self.errors:
            return POINT
        return next((e.error_type for e in self.errors if e.disposition != "ignored"), None)

    @property
    def disturbed(self) -> bool:
        """Whether the engine did anything at all."""
        return bool(self.errors or self.decisions or self.commands or self.interventions)


class Player:
    """One scenario, one world."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(scenario.loaded_policy)
        self.clock = Clock(self.world)
        self.service = SimulatedService(self.world, scenario, self.clock)
        self._people: deque[Person] = deque(scenario.people)
        self._begun_us = self.world.now_us
        self._received = self._asked = 0
        self._waits_out = False

    def play(self) -> Played:
        """From the workflow's start until nothing more happens."""
        for after_ms, what in self.scenario.happens.items():
            self.clock.after(after_ms, lambda what=what: self.service.happen(what))  # type: ignore[misc]
        for number, (after_ms, changes) in enumerate(self.scenario.policies.items()):
            text = self.scenario.policy_text(changes)
            self.clock.after(after_ms, lambda text=text, number=number: self._apply(text, number))  # type: ignore[misc]
        self.service.begin()
        for _ in range(MOMENTS_MAX):
            self._notice()
            moment_us = self._next_us()
            if moment_us is None:
                return self._played()
            self.world.advance(max(0, -(-(moment_us - self.world.now_us) // 1_000)))
            self._notice()
            action = self.clock.take()
            if action is not None:
                action()
        raise AssertionError(f"{self.scenario.name!r} did not come to rest within {MOMENTS_MAX} moments")

    def _apply(self, text: str, sequence: int) -> None:
        self.service.reporter.emit(
            PolicyChanged,
            name="default",
            policy_version=str(sequence),
            policy_text=text,
            sequence=sequence,
            reason="the story's did not do",
            actor="ann",
        )

    def _next_us(self) -> int | None:
        state = self.world.states[self.service.reporter.workflow_id]
        cases = (state.cases or {}).values()
        waits = bool(cases) and all(c.intervention_id is not None for c in cases)
        if (self.service.ended or (waits and not self._people)) and not self.clock.busy:
            if not (waits and self._waits_out):
                return None
        moments = (self.clock.next_us, next_due_us(state, self.world.policy))
        known = [m for m in moments if m is not None]
        if not known or min(known) > self._begun_us + self.scenario.until * 1_000:
            return None
        return min(known)

    def _notice(self) -> None:
        """Let the service receive what was sent, and people see what was asked."""
        self.world.settle()
        while self._received < len(self.world.commands):
            self.service.receive(self.world.commands[self._received])
            self._received += 1
        requests = self.world.records(InterventionRequested)
        while self._asked < len(requests):
            request = requests[self._asked]
            self._asked += 1
            person = self._people.popleft() if self._people else None
            self._waits_out = person is not None and person.decision == "nobody"
            if person is not None and not self._waits_out:
                self.clock.after(person.after_ms, lambda r=request, p=person: self._resolve(r, p))  # type: ignore[misc]

    def _resolve(self, request: InterventionRequested, person: Person) -> None:
        edit = json.dumps({"edited": True}) if person.decision == "retry_edited" else None
        result = self.service.supplied() if person.decision == "skip" else None
        parameters = json.dumps({"to_step": person.to_step}) if person.to_step else None
        self.service.reporter.emit(
            InterventionResolved,
            intervention_id=request.intervention_id,
            error_id=request.error_id,
            step_id=request.step_id,
            decision=person.decision,
            reason="looked at",
            actor="ann",
            edit=edit,
            result=result,
            parameters=parameters,
        )

    def _played(self) -> Played:
        state = self.world.states[self.service.reporter.workflow_id]
        return result_of(self.service, self.world.records, list(self.world.commands), end_of(state), self._findings())

    def _findings(self) -> list[str]:
        check = LogCheck(self.scenario.loaded_policy)
        check.begins_at_zero(0)
        for event in self.world.log:
            check.event(event)
        for command in self.world.commands:
            check.command(command, self.world.now_us)
        return [f"{f.rule}: {f.detail}" for f in check.findings(self.world.now_us) if f.rule not in _OF_SERVICES]


def end_of(state: WorkflowState) -> str:
    """How the workflow ended, or what it waits for."""
    if state.terminal:
        return state.status
    for case in (state.cases or {}).values():
        waits = case.attempt is not None and case.attempt.decision.strategy == MANUAL
        if waits or case.intervention_id is not None:
            return "waiting_for_human"
    return "running"


def result_of(
    service: SimulatedService,
    records: Callable[[type[Any]], list[Any]],
    commands: list[Command],
    end: str,
    findings: list[str],
) -> Played:
    """What came of a scenario, by what is in the log and what its service counted."""
    return Played(
        end=end,
        errors=records(ErrorClassified),
        error_codes=list({e.error_id: e.error_code for e in records(WorkflowErrorOccurred)}.values()),
        decisions=records(RecoveryDecided),
        commands=commands,
        interventions=records(InterventionRequested),
        warnings=len(records(ResourceLimitNear)),
        runs=Counter({r.step_run_id: r.step_id for r in records(StepStarted)}.values()),
        effects=service.effects,
        undone=service.undone,
        skipped=Counter({r.event_id: r.step_id for r in records(StepSkipped)}.values()),
        findings=findings,
    )


def play(scenario: Scenario) -> Played:
    """Play a scenario."""
    return Player(scenario).play()


def judge(scenario: Scenario, played: Played) -> list[str]:
    """Where what came of it differs from the label; empty when it does not."""
    expect, found = scenario.expect, list(played.findings)

    def hold(what: str, expected: object, got: object) -> None:
        if expected is not None and expected != got:
            found.append(f"{what}: expected {expected}, got {got}")

    hold("end", expect.end, played.end)
    hold("type", expect.type, played.first_type)
    hold("first", expect.first, played.decisions[0].strategy if played.decisions else None)
    hold("commands", expect.commands, [type(c).__name__ for c in played.commands])
    hold("undone", expect.undone, list(played.undone))
    hold("strategies", expect.strategies, [d.strategy for d in played.decisions])
    if expect.trigger is not None:
        hold("trigger", expect.trigger, played.interventions[0].trigger if played.interventions else None)
    if scenario.healthy and played.disturbed:
        found.append(f"disturbed: {played.error_codes} {[d.strategy for d in played.decisions]}")
    found.extend(f"never {never.text!r}, but it happened" for never in expect.never if happened(never, played))
    return found


def happened(never: Never, played: Played) -> bool:
    """Whether what must not happen did."""
    subject, count = never.subject, never.count
    answers = {
        "run": played.runs[subject] > 0,
        "run_twice": played.runs[subject] > 1,
        "effect_twice": played.effects[subject] > 1,
        "undo": played.undone[subject] > 0,
        "undo_twice": played.undone[subject] > 1,
        "skip": played.skipped[subject] > 0,
        "command": any(type(c).__name__ == subject for c in played.commands),
        "strategy": any(d.strategy == subject for d in played.decisions),
        "error": subject in played.error_codes,
        "attempts": len(played.decisions) > count,
        "commands": len(played.commands) > count,
        "errors": len(played.error_codes) > count,
        "interventions": len(played.interventions) > count,
        "intervention": bool(played.interventions),
        "anything": played.disturbed,
        "warning": played.warnings > 0,
    }
    return answers[never.what]
