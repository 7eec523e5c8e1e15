"""Short ways to say what workflows ask, return and wait for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.coordination.coordinator import Coordinator
from engine.coordination.leases import Leases
from engine.coordination.waits import Waits
from engine.effects import AppendTo, CoordinatorEffect
from engine.policy import Policy, default_policy
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import LeaseAsked, LeaseReturned, WaitSeen, WorkflowEnded
from schemas.records.events import ResourceGranted, ResourceReleased, WorkflowErrorOccurred

START_US = 1_800_000_000_000_000
SECOND_US = 1_000_000


def workflow(number: int) -> str:
    """Id of a workflow."""
    return derive_id("workflow", "test", number)


def policy_with(**resources: int) -> Policy:
    """The default policy, and these capacities."""
    policy = default_policy()
    return replace(policy, coordination=replace(policy.coordination, resources=resources))


class Desk:
    """A coordinator of leases and waits, and a clock that moves a second with each record."""

    def __init__(self, **resources: int) -> None:
        self.policy = policy_with(**resources)
        self.leases = Leases()
        self.waits = Waits(self.leases)
        self.coordinator = Coordinator([self.leases, self.waits], self.policy)
        self.now_us = START_US
        self.number = 0
        self.told: list[Record] = []

    def fold(self, record: Record) -> list[Record]:
        """What workflows are told because of a record."""
        self.now_us += SECOND_US
        told = [of_effect(effect) for effect in self.coordinator.fold(record, self.now_us)]
        self.told += told
        return told

    def base(self, who: int) -> dict[str, Any]:
        """The common fields of a record about a workflow."""
        self.number += 1
        return {
            "event_id": derive_id("desk", "record", self.number),
            "workflow_id": workflow(who),
            "workflow_type": "test",
            "occurred_at": self.now_us,
            "producer": "kintsugi-engine",
            "partition": who % 8,
        }

    def asked(self, who: int, what: str, *, step: str = "work", lease: str = "", **fields: Any) -> LeaseAsked:
        """A wish."""
        values = {"work": 0, "began_at": START_US + who, "lease_id": lease or f"{what} of {who}", **fields}
        return LeaseAsked(**self.base(who), step_id=step, resource_id=what, **values)

    def ask(self, who: int, what: str, **fields: Any) -> list[Record]:
        """Fold a wish."""
        return self.fold(self.asked(who, what, **fields))

    def give_back(self, who: int, what: str, *, lease: str = "") -> list[Record]:
        """Fold the end of a lease or of a wish."""
        return self.fold(LeaseReturned(**self.base(who), resource_id=what, lease_id=lease or f"{what} of {who}"))

    def await_(self, who: int, other: int | None, **fields: Any) -> list[Record]:
        """Fold that a workflow waits for another; None that it waits no longer."""
        values = {"work": 0, "began_at": START_US + who, "wait_id": derive_id("wait", "test", who), **fields}
        awaited_id = None if other is None else workflow(other)
        return self.fold(WaitSeen(**self.base(who), step_id="await", awaited_id=awaited_id, **values))

    def end(self, who: int) -> list[Record]:
        """Fold the end of a workflow."""
        return self.fold(WorkflowEnded(**self.base(who), status="completed"))

    def holders(self, what: str) -> list[str]:
        """Who holds a resource."""
        resource = self.leases.resources.get(what)
        return [] if resource is None else [lease.workflow_id for lease in resource.held.values()]


def of_effect(effect: CoordinatorEffect) -> Record:
    """The record of an effect that goes to one partition, which is the workflow's."""
    assert isinstance(effect, AppendTo)
    return effect.record


def grants(told: list[Record]) -> list[str]:
    """Who was granted something."""
    return [record.workflow_id for record in told if isinstance(record, ResourceGranted)]


def releases(told: list[Record]) -> list[tuple[str, str, str | None]]:
    """Whose lease of what ended, and why."""
    return [(r.workflow_id, r.resource_id, r.reason) for r in told if isinstance(r, ResourceReleased)]


def errors(told: list[Record]) -> list[WorkflowErrorOccurred]:
    """Deadlocks found."""
    return [record for record in told if isinstance(record, WorkflowErrorOccurred)]
