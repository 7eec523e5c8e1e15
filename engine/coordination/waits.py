"""Who waits for whom, and who would wait for ever.

A workflow waits for those who hold what it wants, for those who are served before it, and for those whose end it
awaits. When a wait begins, the workflows that it leads to are looked at and no others. That the way leads back is not
enough: one of two units may come back from somebody else. So the leases are played on, as if each workflow that gets
all it waits for ended at once; who still waits then is deadlocked, and nobody else is.

A workflow counts as waiting as long as any of its steps waits; what another step of its own holds is not counted
against it. A deadlock that a smaller capacity makes is left to the leases' own deadlines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from engine.effects import AppendTo, CoordinatorEffect
from engine.policy import Policy
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import CoordinationTimerFired, LeaseAsked, LeaseReturned, WaitSeen, WorkflowEnded
from schemas.records.events import PolicyChanged, WorkflowErrorOccurred

from . import Addressee, fact_for
from .deadlock import Await, Edge, Played, leads_back
from .leases import Lease, Leases

#: Awaited workflows of one workflow, and of all; what comes on top is not looked through, and counted.
AWAITS_PER_WORKFLOW_MAX = 256
AWAITS_MAX = 100_000
#: Members of a cycle that an error's context lists; enough to understand it.
SHOWN_MAX = 100
DETECTOR = "detector:deadlock"


class Waits:
    """The wait-for graph."""

    name: ClassVar[str] = "waits"

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._clear()

    def _clear(self) -> None:
        #: Per workflow: its awaits, by wait id.
        self.awaits: dict[str, dict[str, Await]] = {}
        self._awaited: Counter[str] = Counter()
        self.awaits_count = 0
        self.deadlocks = 0
        #: Awaits beyond the bounds, through which no deadlock is found.
        self.overlooked = 0

    def fold(self, record: Record, now_us: int, policy: Policy) -> Iterable[CoordinatorEffect]:
        """See `Component`. The leases have folded the record before."""
        if isinstance(record, WorkflowEnded):
            for wait_id in list(self.awaits.get(record.workflow_id, ())):
                self._forget(record.workflow_id, wait_id)
        elif isinstance(record, WaitSeen):
            if record.awaited_id is None:
                self._forget(record.workflow_id, record.wait_id)
            else:
                self._keep(record, record.awaited_id)
        elif not isinstance(record, LeaseAsked | LeaseReturned | CoordinationTimerFired | PolicyChanged):
            return ()
        return self._open(record, now_us, policy)

    def due(self, now_us: int) -> Iterable[CoordinationTimerFired]:
        """See `Component`. Nothing here waits for a moment."""
        return ()

    def next_due_us(self) -> int | None:
        """See `Component`."""
        return None

    def dump(self) -> dict[str, Any]:
        """See `Component`."""
        rows = [
            [
                [a.to.workflow_id, a.to.workflow_type, a.to.external_id, a.to.correlation_id, a.to.partition],
                [a.wait_id, a.step_id, a.awaited_id, a.work, a.began_at],
            ]
            for own in self.awaits.values()
            for a in own.values()
        ]
        return {"deadlocks": self.deadlocks, "overlooked": self.overlooked, "awaits": rows}

    def load(self, value: Any) -> None:
        """See `Component`."""
        self._clear()
        self.deadlocks, self.overlooked = value["deadlocks"], value["overlooked"]
        for to, (wait_id, step_id, awaited_id, work, began_at) in value["awaits"]:
            self._add(Await(Addressee(*to), wait_id, step_id, awaited_id, work, began_at))

    def _keep(self, record: WaitSeen, awaited_id: str) -> None:
        own = self.awaits.get(record.workflow_id, {})
        new = record.wait_id not in own
        if new and (len(own) >= AWAITS_PER_WORKFLOW_MAX or self.awaits_count >= AWAITS_MAX):
            self.overlooked += 1
            return
        self._forget(record.workflow_id, record.wait_id)
        to = Addressee.of(record)
        self._add(Await(to, record.wait_id, record.step_id, awaited_id, record.work, record.began_at))

    def _add(self, item: Await) -> None:
        workflow_id = item.to.workflow_id
        self.awaits.setdefault(workflow_id, {})[item.wait_id] = item
        self._awaited[item.awaited_id] += 1
        self.awaits_count += 1
        self._leases.wait_began(workflow_id)

    def _forget(self, workflow_id: str, wait_id: str) -> None:
        own = self.awaits.get(workflow_id, {})
        item = own.pop(wait_id, None)
        if item is None:
            return
        self.awaits_count -= 1
        self._leases.wait_ended(workflow_id)
        self._awaited[item.awaited_id] -= 1
        if not self._awaited[item.awaited_id]:
            del self._awaited[item.awaited_id]
        if not own:
            del self.awaits[workflow_id]

    def _open(self, record: Record, now_us: int, policy: Policy) -> list[CoordinatorEffect]:
        """Open every cycle that this record closed. Each takes a wait away, so there is an end.

        A new wait closes one. So can, in a workflow several of whose steps wait, a grant or the end of a wish: one step
        was counted on to give back what the other waited for.
        """
        effects: list[CoordinatorEffect] = []
        number = 0
        left = [record.workflow_id, *self._leases.served]
        while left:
            start = left.pop()
            if not leads_back(self._leases, self.awaits, self._awaited, start):
                continue
            played = Played(self._leases, self.awaits, start, policy)
            cycle = played.cycle(start)
            if cycle:
                self._leases.served.clear()
                effects += self._break(cycle, played, record, number, now_us, policy)
                left += [start, *(edge.waiter for edge in cycle), *self._leases.served]
                number += 1
        return effects

    def _break(
        self, cycle: list[Edge], played: Played, record: Record, number: int, now_us: int, policy: Policy
    ) -> list[CoordinatorEffect]:
        """Tell the victim, end the wait by which it is in the cycle, and take from it what the others need."""
        self.deadlocks += 1
        edge = min(cycle, key=lambda e: e.victim_order)
        wanted = {wish.resource_id for wish in played.unserved() if wish.workflow_id != edge.waiter}
        own = self._leases.of.get(edge.waiter, {}).values()
        given_up = [x for x in own if x is edge.by or (x.granted and x.resource_id in wanted)]
        if isinstance(edge.by, Await):
            self._forget(edge.waiter, edge.by.wait_id)
        error = AppendTo(_error(edge, cycle, record, number, now_us), edge.by.to.partition)
        return [error, *self._leases.release(given_up, "deadlock", record, now_us, policy)]


def _error(edge: Edge, cycle: list[Edge], cause: Record, number: int, now_us: int) -> WorkflowErrorOccurred:
    shown = [
        {
            "workflow_id": e.waiter,
            "step_id": e.by.step_id,
            "waits_for": e.by.resource_id if isinstance(e.by, Lease) else None,
            "blocked_by": e.blocker,
        }
        for e in cycle[:SHOWN_MAX]
    ]
    what = edge.by.resource_id if isinstance(edge.by, Lease) else "its end"
    return fact_for(
        WorkflowErrorOccurred,
        edge.by.to,
        cause,
        derive_id(cause.event_id, "deadlock", number),
        now_us,
        error_id=derive_id(cause.event_id, "deadlock error", number),
        step_id=edge.by.step_id,
        error_code="DEADLOCK",
        error_message=f"waits for {what} of {edge.blocker}, in a cycle of {len(cycle)} that wait for each other",
        context=json.dumps({"length": len(cycle), "cycle": shown}, sort_keys=True),
        detected_by=DETECTOR,
    )
