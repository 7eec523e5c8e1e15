"""Resources that workflows share: who holds how much, who waits, who is next.

A resource has as many units as the policy says, one unless it is named there. Wishes are served in the order of their
rank: the moment of asking, and each point of priority counts as one `ageing` earlier. All wishes age alike, so two of
them never change places, a later one of higher priority overtakes for a bounded time only, and a large one at the
head is waited for: none behind it is served first.

What ends a lease otherwise than by its holder is a ResourceReleased that says why.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engine.effects import AppendTo, CoordinatorEffect
from engine.policy import Policy
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import CoordinationTimerFired, LeaseAsked, LeaseReturned, WorkflowEnded
from schemas.records.events import PolicyChanged, ResourceGranted, ResourceReleased

from . import PRODUCER, Addressee, fact_for

#: Resources held or waited for at once: about 10 MB with some leases each.
RESOURCES_MAX = 10_000
#: Wishes of all workflows that wait at once: about 100 MB.
WAITING_MAX = 100_000
#: Leases and wishes of one workflow; a loop that asks without end must not fill the table for the others.
LEASES_PER_WORKFLOW_MAX = 256
#: Beyond this, priority counts no more: with it a wish overtakes those of the last 100 `ageing` at most.
PRIORITY_MAX = 100
WAIT_TIMER = "lease_wait"


@dataclass(slots=True, kw_only=True)
class Lease:
    """A part of a resource that a step holds or waits for. `number` is the order of asking; `rank_us` of serving."""

    to: Addressee
    lease_id: str
    resource_id: str
    step_id: str
    amount: int
    asked_id: str
    number: int
    rank_us: int
    deadline_us: int
    work: int
    began_at: int
    granted: bool = False

    @property
    def workflow_id(self) -> str:
        """The workflow whose lease it is."""
        return self.to.workflow_id

    @property
    def order(self) -> tuple[int, int]:
        """Place among those who wait for the same resource."""
        return self.rank_us, self.number


@dataclass(slots=True)
class Resource:
    """Holders in the order of granting, and who waits in the order of serving."""

    held: dict[int, Lease] = field(default_factory=dict)
    waiting: list[Lease] = field(default_factory=list)
    used: int = 0

    def place(self, lease: Lease) -> int:
        """How many are served before this one, which waits."""
        return bisect_left(self.waiting, lease.order, key=_order)


def _order(lease: Lease) -> tuple[int, int]:
    return lease.order


def capacity_of(resource_id: str, policy: Policy) -> int:
    """Units of a resource."""
    return policy.coordination.resources.get(resource_id, 1)


class Leases:
    """The table of leases."""

    name: ClassVar[str] = "leases"

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.resources: dict[str, Resource] = {}
        #: Per workflow: its leases and wishes, by lease id.
        self.of: dict[str, dict[str, Lease]] = {}
        #: Returns of what the workflow does not have.
        self.strays = 0
        self.waiting_count = 0
        self.held_count = 0
        #: Who was granted something since the last record began to be folded.
        self.served: list[str] = []
        #: Who waits for more than one thing at once.
        self.entangled: set[str] = set()
        self._waits_of: dict[str, int] = {}
        self._number = 0
        self._timers: list[tuple[int, int, Lease]] = []

    def fold(self, record: Record, now_us: int, policy: Policy) -> Iterable[CoordinatorEffect]:
        """See `Component`."""
        self.served.clear()
        if isinstance(record, LeaseAsked):
            return self._asked(record, now_us, policy)
        if isinstance(record, LeaseReturned):
            return self._returned(record, now_us, policy)
        if isinstance(record, WorkflowEnded):
            leases = list(self.of.get(record.workflow_id, {}).values())
            return self.release(leases, "workflow_ended", record, now_us, policy)
        if isinstance(record, CoordinationTimerFired) and record.kind == WAIT_TIMER:
            return self._waited(record, now_us, policy)
        if isinstance(record, PolicyChanged):
            return self._fit(record, now_us, policy)
        return ()

    def due(self, now_us: int) -> Iterator[CoordinationTimerFired]:
        """See `Component`. Each wish is named once."""
        while (at_us := self.next_due_us()) is not None and at_us <= now_us:
            lease = heapq.heappop(self._timers)[2]
            yield CoordinationTimerFired(
                event_id=derive_id(lease.asked_id, WAIT_TIMER),
                workflow_id=lease.to.workflow_id,
                workflow_type=lease.to.workflow_type,
                external_id=lease.to.external_id,
                correlation_id=lease.to.correlation_id,
                causation_id=lease.asked_id,
                occurred_at=now_us,
                producer=PRODUCER,
                kind=WAIT_TIMER,
                subject_id=lease.lease_id,
                due_at=lease.deadline_us,
            )

    def next_due_us(self) -> int | None:
        """See `Component`."""
        while self._timers and not self._waits(self._timers[0][2]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def wait_began(self, workflow_id: str) -> None:
        """The workflow waits for one thing more, whatever it is."""
        count = self._waits_of[workflow_id] = self._waits_of.get(workflow_id, 0) + 1
        if count > 1:
            self.entangled.add(workflow_id)

    def wait_ended(self, workflow_id: str) -> None:
        """The workflow waits for one thing less."""
        count = self._waits_of.pop(workflow_id) - 1
        if count:
            self._waits_of[workflow_id] = count
        if count < 2:
            self.entangled.discard(workflow_id)

    def release(
        self, leases: Iterable[Lease], reason: str, cause: Record, now_us: int, policy: Policy
    ) -> list[CoordinatorEffect]:
        """End leases and wishes, tell their workflows why, and serve whoever waits for what is free now."""
        effects: list[CoordinatorEffect] = []
        freed: dict[str, None] = {}
        for lease in leases:
            self._remove(lease)
            freed[lease.resource_id] = None
            effects.append(_released(lease, reason, cause, now_us))
        for resource_id in freed:
            effects += self._serve(resource_id, cause, now_us, policy)
        return effects

    def dump(self) -> dict[str, Any]:
        """See `Component`."""
        leases = sorted((lease for own in self.of.values() for lease in own.values()), key=lambda lease: lease.number)
        return {
            "number": self._number,
            "strays": self.strays,
            "leases": [
                [
                    [x.to.workflow_id, x.to.workflow_type, x.to.external_id, x.to.correlation_id, x.to.partition],
                    [x.lease_id, x.resource_id, x.step_id, x.asked_id],
                    [x.amount, x.number, x.rank_us, x.deadline_us, x.work, x.began_at],
                    x.granted,
                ]
                for x in leases
            ],
        }

    def load(self, value: Any) -> None:
        """See `Component`."""
        self._clear()
        self._number, self.strays = value["number"], value["strays"]
        for to, texts, numbers, granted in value["leases"]:
            lease_id, resource_id, step_id, asked_id = texts
            amount, number, rank_us, deadline_us, work, began_at = numbers
            lease = Lease(
                to=Addressee(*to),
                lease_id=lease_id,
                resource_id=resource_id,
                step_id=step_id,
                amount=amount,
                asked_id=asked_id,
                number=number,
                rank_us=rank_us,
                deadline_us=deadline_us,
                work=work,
                began_at=began_at,
            )
            self._wait(lease)
            if granted:
                self._grant(self.resources[resource_id], lease)

    def _asked(self, record: LeaseAsked, now_us: int, policy: Policy) -> list[CoordinatorEffect]:
        own = self.of.get(record.workflow_id, {})
        found = own.get(record.lease_id)
        if found is not None:
            # Asked again by one who has not seen the answer: the same grant, with the same id.
            return [_granted(found, record, now_us)] if found.granted else []
        coordination = policy.coordination
        wait_ms = coordination.lease_wait_ms if record.wait_ms is None else max(0, record.wait_ms)
        priority = max(-PRIORITY_MAX, min(record.priority, PRIORITY_MAX))
        self._number += 1
        lease = Lease(
            to=Addressee.of(record),
            lease_id=record.lease_id,
            resource_id=record.resource_id,
            step_id=record.step_id,
            amount=record.amount,
            asked_id=record.event_id,
            number=self._number,
            rank_us=now_us - priority * coordination.ageing_ms * 1000,
            deadline_us=now_us + wait_ms * 1000,
            work=record.work,
            began_at=record.began_at,
        )
        refusal = self._refusal(lease, len(own), policy)
        if refusal:
            return [_released(lease, refusal, record, now_us)]
        self._wait(lease)
        return self._serve(record.resource_id, record, now_us, policy)

    def _refusal(self, lease: Lease, own: int, policy: Policy) -> str:
        """Why this wish cannot even wait; empty when it can."""
        if lease.amount < 1:
            return "bad_amount"
        if lease.amount > capacity_of(lease.resource_id, policy):
            return "too_large"
        if own >= LEASES_PER_WORKFLOW_MAX:
            return "too_many_leases"
        if self.waiting_count >= WAITING_MAX:
            return "too_many_waiting"
        if lease.resource_id not in self.resources and len(self.resources) >= RESOURCES_MAX:
            return "too_many_resources"
        return ""

    def _returned(self, record: LeaseReturned, now_us: int, policy: Policy) -> list[CoordinatorEffect]:
        lease = self.of.get(record.workflow_id, {}).get(record.lease_id)
        if lease is None or lease.resource_id != record.resource_id:
            self.strays += 1
            return []
        self._remove(lease)
        return self._serve(lease.resource_id, record, now_us, policy)

    def _waited(self, record: CoordinationTimerFired, now_us: int, policy: Policy) -> list[CoordinatorEffect]:
        lease = self.of.get(record.workflow_id, {}).get(record.subject_id)
        # A lease id may be used again: the timer is that of one wish, which is not this one when their times differ.
        if lease is None or lease.granted or lease.deadline_us != record.due_at:
            return []
        return self.release([lease], "timed_out", record, now_us, policy)

    def _fit(self, cause: Record, now_us: int, policy: Policy) -> list[CoordinatorEffect]:
        """The policy changed: some may be served now, and some never. Nobody loses what he holds."""
        effects: list[CoordinatorEffect] = []
        for resource_id, resource in list(self.resources.items()):
            capacity = capacity_of(resource_id, policy)
            never = [lease for lease in resource.waiting if lease.amount > capacity]
            effects += self.release(never, "too_large", cause, now_us, policy)
            effects += self._serve(resource_id, cause, now_us, policy)
        return effects

    def _serve(self, resource_id: str, cause: Record, now_us: int, policy: Policy) -> list[CoordinatorEffect]:
        resource = self.resources.get(resource_id)
        if resource is None:
            return []
        capacity = capacity_of(resource_id, policy)
        effects: list[CoordinatorEffect] = []
        while resource.waiting and resource.used + resource.waiting[0].amount <= capacity:
            lease = resource.waiting[0]
            self._grant(resource, lease)
            self.served.append(lease.workflow_id)
            effects.append(_granted(lease, cause, now_us))
        return effects

    def _wait(self, lease: Lease) -> None:
        insort(self.resources.setdefault(lease.resource_id, Resource()).waiting, lease, key=_order)
        self.of.setdefault(lease.workflow_id, {})[lease.lease_id] = lease
        self.waiting_count += 1
        self.wait_began(lease.workflow_id)
        heapq.heappush(self._timers, (lease.deadline_us, lease.number, lease))
        if len(self._timers) > 2 * self.waiting_count + 1024:
            # Each wish that is served leaves a void entry behind; they must not outnumber the real ones.
            self._timers = [entry for entry in self._timers if self._waits(entry[2])]
            heapq.heapify(self._timers)

    def _grant(self, resource: Resource, lease: Lease) -> None:
        del resource.waiting[resource.place(lease)]
        resource.held[lease.number] = lease
        resource.used += lease.amount
        lease.granted = True
        self.waiting_count -= 1
        self.wait_ended(lease.workflow_id)
        self.held_count += 1

    def _remove(self, lease: Lease) -> None:
        resource = self.resources[lease.resource_id]
        if lease.granted:
            del resource.held[lease.number]
            resource.used -= lease.amount
            self.held_count -= 1
        else:
            del resource.waiting[resource.place(lease)]
            self.waiting_count -= 1
            self.wait_ended(lease.workflow_id)
        if not resource.held and not resource.waiting:
            del self.resources[lease.resource_id]
        own = self.of[lease.workflow_id]
        del own[lease.lease_id]
        if not own:
            del self.of[lease.workflow_id]

    def _waits(self, lease: Lease) -> bool:
        return not lease.granted and self.of.get(lease.workflow_id, {}).get(lease.lease_id) is lease


def _granted(lease: Lease, cause: Record, now_us: int) -> AppendTo:
    record = fact_for(
        ResourceGranted,
        lease.to,
        cause,
        derive_id(lease.asked_id, "granted"),
        now_us,
        resource_id=lease.resource_id,
        lease_id=lease.lease_id,
        amount=lease.amount,
    )
    return AppendTo(record, lease.to.partition)


def _released(lease: Lease, reason: str, cause: Record, now_us: int) -> AppendTo:
    record = fact_for(
        ResourceReleased,
        lease.to,
        cause,
        derive_id(lease.asked_id, "released"),
        now_us,
        resource_id=lease.resource_id,
        lease_id=lease.lease_id,
        reason=reason,
    )
    return AppendTo(record, lease.to.partition)
