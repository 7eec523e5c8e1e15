"""A coordinator of breakers and incidents, and short ways to say what fails, waits and recovers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from engine.coordination.breakers import Breakers
from engine.coordination.coordinator import Coordinator
from engine.coordination.incidents import Incidents
from engine.policy import Policy, default_policy
from engine.policy.model import Storms
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import (
    FailureEnded,
    FailureSeen,
    IncidentNoted,
    InterventionSeen,
    RepairWaiting,
)
from schemas.records.events import BreakerChanged, IncidentChanged, RepairReleased

from .kit import SECOND_US, START_US, workflow

R = TypeVar("R", bound=Record)

KEY = "dependency:payments"
STORMS = Storms(threshold=5, window_ms=10_000, canaries=2, growth=2.0, quiet_ms=30_000)


def error(number: int) -> str:
    """Id of a workflow's error."""
    return derive_id("error", "test", number)


class Watch:
    """A coordinator, a clock, and everything that it said."""

    def __init__(self, storms: Storms = STORMS) -> None:
        self.policy: Policy = replace(default_policy(), storms=storms)
        self.coordinator = self._made()
        self.now_us = START_US
        self.number = 0
        self.said: list[Record] = []

    def _made(self) -> Coordinator:
        breakers = Breakers()
        return Coordinator([breakers, Incidents(breakers)], self.policy)

    def again(self) -> None:
        """Another process takes over from a snapshot."""
        state = self.coordinator.dump()
        self.coordinator = self._made()
        self.coordinator.load(state)
        assert self.coordinator.dump() == state

    def fold(self, record: Record) -> list[Record]:
        """What is said because of a record."""
        said = [effect.record for effect in self.coordinator.fold(record, self.now_us)]
        self.said += said
        return said

    def base(self, who: int) -> dict[str, Any]:
        """The common fields of a record about a workflow."""
        self.number += 1
        return {
            "event_id": derive_id("watch", "record", self.number),
            "workflow_id": workflow(who),
            "workflow_type": "test",
            "occurred_at": self.now_us,
            "producer": "kintsugi-engine",
        }

    def fail(self, who: int, dependency: str | None = "payments", **fields: Any) -> list[Record]:
        """A workflow's step fails."""
        values = {"severity": "medium", "error_type": "timeout", "attempts": 0, **fields}
        return self.fold(
            FailureSeen(
                **self.base(who),
                partition=who % 8,
                error_id=error(who),
                step_id="pay",
                fingerprint="f" * 16,
                dependency=dependency,
                **values,
            )
        )

    def hold(self, who: int, breaker: str = KEY) -> list[Record]:
        """A workflow's repair is held."""
        return self.fold(
            RepairWaiting(
                **self.base(who),
                partition=who % 8,
                error_id=error(who),
                attempt_id=derive_id(error(who), "attempt", self.number),
                breaker=breaker,
                fingerprint="f" * 16,
                dependency="payments",
            )
        )

    def end(self, who: int, outcome: str = "recovered", strategy: str = "") -> list[Record]:
        """A workflow's error is over."""
        return self.fold(
            FailureEnded(
                **self.base(who),
                partition=who % 8,
                error_id=error(who),
                fingerprint="f" * 16,
                dependency="payments",
                outcome=outcome,
                strategy=strategy,
            )
        )

    def asked(
        self, who: int, state: str = "open", dependency: str | None = "payments", **fields: Any
    ) -> InterventionSeen:
        """That a human is asked, claims or has answered."""
        values = {"trigger": "all_recovery_strategies_failed", "channels": ("slack",), "severity": "high", **fields}
        return InterventionSeen(
            **self.base(who),
            partition=who % 8,
            intervention_id=derive_id(error(who), "intervention"),
            error_id=error(who),
            step_id="pay",
            state=state,
            error_type="timeout",
            fingerprint="f" * 16,
            dependency=dependency,
            **values,
        )

    def ask(self, who: int, state: str = "open", dependency: str | None = "payments", **fields: Any) -> list[Record]:
        """A human is asked, claims or has answered."""
        return self.fold(self.asked(who, state, dependency, **fields))

    def note(self, incident_id: str, action: str, **fields: Any) -> list[Record]:
        """An operator does something with an incident."""
        base = {**self.base(0), "workflow_id": incident_id}
        values = {"reason": "because", "actor": "ada", **fields}
        return self.fold(IncidentNoted(**base, incident_id=incident_id, action=action, **values))

    def wait(self, seconds: float) -> list[Record]:
        """Let time pass; what is said meanwhile."""
        end_us = self.now_us + int(seconds * SECOND_US)
        said: list[Record] = []
        while (due_us := self.coordinator.next_due_us) is not None and due_us <= end_us:
            self.now_us = max(self.now_us, due_us)
            fired = list(self.coordinator.due(self.now_us))
            assert fired, "a moment that is due has a fact"
            for record in fired:
                said += self.fold(record)
        self.now_us = end_us
        return said

    def storm(self, workflows: int = 5) -> list[Record]:
        """So many workflows fail, and their repairs are held."""
        said = [r for who in range(workflows) for r in self.fail(who)]
        return said + [r for who in range(workflows) for r in self.hold(who)]

    def told(self, kind: type[R]) -> list[R]:
        """Everything of one kind that was said."""
        return of(kind, self.said)

    @property
    def states(self) -> list[str]:
        """What became of breakers, in order."""
        return [r.state for r in self.told(BreakerChanged)]


def of(kind: type[R], records: list[Record]) -> list[R]:
    """Those of one kind."""
    return [r for r in records if isinstance(r, kind)]


def released(records: list[Record]) -> list[str]:
    """Whose repairs are let go."""
    return [r.workflow_id for r in of(RepairReleased, records)]


def incident(records: list[Record]) -> IncidentChanged:
    """The incident as it was said last."""
    return of(IncidentChanged, records)[-1]
