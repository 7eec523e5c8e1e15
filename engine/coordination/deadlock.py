"""Looks for a deadlock, beginning at a workflow whose wait has just begun.

Two looks: a cheap one, whether waits lead from the workflow back to it; and where they do, the leases of all
workflows on the way are played on. Both go iteratively from the new wait and touch nothing else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.policy import Policy

from . import Addressee
from .leases import Lease, Leases, Resource, capacity_of

#: Per workflow: its awaits, by wait id.
Awaits = Mapping[str, Mapping[str, "Await"]]


@dataclass(frozen=True, slots=True)
class Await:
    """A step waits for another workflow to end."""

    to: Addressee
    wait_id: str
    step_id: str
    awaited_id: str
    work: int
    began_at: int


@dataclass(frozen=True, slots=True)
class Edge:
    """In a cycle: who waits, by which wait, for whom."""

    waiter: str
    by: Lease | Await
    blocker: str

    @property
    def victim_order(self) -> tuple[int, int, str]:
        """The least is the victim: with the least work to lose, then the youngest, then by id."""
        return self.by.work, -self.by.began_at, self.waiter


def leads_back(leases: Leases, awaits: Awaits, awaited: Mapping[str, int], start: str) -> bool:
    """Whether waits lead from a workflow back to it, perhaps: cheap, and never wrongly no. `awaited`: by how many a
    workflow is awaited."""
    held, waited = _steps(leases, start, granted=True), _steps(leases, start, granted=False)
    if not waited and start not in awaits:
        return False
    waiting = {item.step_id for item in awaits.get(start, {}).values()}.union(*waited.values())
    if any(waiting & held.get(resource_id, set()) for resource_id in waited):
        return True
    if start not in awaited and not _is_wanted(leases, start):
        return False  # most waits begin so: nobody waits for this workflow, and the way need not be gone
    expanded: set[str] = set()
    met, left = {start}, [start]
    while left:
        workflow_id = left.pop()
        ahead = [item.awaited_id for item in awaits.get(workflow_id, {}).values()]
        if start in ahead:
            return True
        for lease in leases.of.get(workflow_id, {}).values():
            resource_id = lease.resource_id
            if lease.granted:
                continue
            if workflow_id != start and (resource_id in held or resource_id in waited):
                return True
            if resource_id not in expanded:
                expanded.add(resource_id)
                resource = leases.resources[resource_id]
                ahead += [holder.workflow_id for holder in resource.held.values()]
                ahead += _entangled(leases, resource_id, resource)
        for other in ahead:
            if other not in met:
                met.add(other)
                left.append(other)
    return False


def _is_wanted(leases: Leases, workflow_id: str) -> bool:
    """Whether somebody waits for what a workflow holds, or comes after it in a queue."""
    for lease in leases.of.get(workflow_id, {}).values():
        waiting = leases.resources[lease.resource_id].waiting
        if waiting and (lease.granted or waiting[-1] is not lease):
            return True
    return False


def _steps(leases: Leases, workflow_id: str, *, granted: bool) -> dict[str, set[str]]:
    """Per resource: the workflow's steps that hold it, or wait for it."""
    found: dict[str, set[str]] = {}
    for lease in leases.of.get(workflow_id, {}).values():
        if lease.granted is granted:
            found.setdefault(lease.resource_id, set()).add(lease.step_id)
    return found


def _entangled(leases: Leases, resource_id: str, resource: Resource) -> list[str]:
    """Of those in a queue, who waits for something else too. The others lead only where its holders lead."""
    if len(resource.waiting) <= len(leases.entangled):
        return [wish.workflow_id for wish in resource.waiting if wish.workflow_id in leases.entangled]
    return [w for w in leases.entangled if resource_id in _steps(leases, w, granted=False)]


class Played:
    """The leases played on, as if each workflow ended as soon as it has all that it waits for.

    Queues are served in their order as ever, so this is the best that can happen: who is `stuck` stays so.
    """

    def __init__(self, leases: Leases, awaits: Awaits, start: str, policy: Policy) -> None:
        self._leases = leases
        self._awaits = awaits
        #: Per resource in question: how many of its queue matter, and how many of these are served in the end.
        self._depth: dict[str, int] = {}
        self._served: dict[str, int] = {}
        self._awaited_by: dict[str, list[tuple[str, str]]] = {}
        #: Per workflow in question, and per step of it: waits not over yet.
        self._pending: dict[str, int] = {}
        self._pending_steps: Counter[tuple[str, str]] = Counter()
        self._explore(start)
        self._play(policy)
        self.stuck = {workflow_id for workflow_id, count in self._pending.items() if count}

    def cycle(self, start: str) -> list[Edge]:
        """The shortest way from `start` through those who are stuck back to it; empty when there is none."""
        if start not in self.stuck:
            return []
        # That its own steps wait for each other is looked for last: one that waits for a step which is in a cycle with
        # others is in none itself.
        return self._way_back(start, beside=False) or self._way_back(start, beside=True)

    def _way_back(self, start: str, *, beside: bool) -> list[Edge]:
        came_by: dict[str, Edge] = {}
        left = deque([start])
        while left:
            for edge in self._edges(left.popleft(), beside=beside):
                if edge.blocker == start:
                    way = [edge]
                    while way[-1].waiter != start:
                        way.append(came_by[way[-1].waiter])
                    return way[::-1]
                if edge.blocker not in came_by:
                    came_by[edge.blocker] = edge
                    left.append(edge.blocker)
        return []

    def unserved(self) -> Iterator[Lease]:
        """Wishes that nothing can fulfil any more."""
        for resource_id, depth in self._depth.items():
            yield from self._leases.resources[resource_id].waiting[self._served[resource_id] : depth]

    def is_unserved(self, wish: Lease) -> bool:
        """Whether nothing can fulfil this wish any more."""
        place = self._leases.resources[wish.resource_id].place(wish)
        return self._served.get(wish.resource_id, place + 1) <= place < self._depth.get(wish.resource_id, 0)

    def _explore(self, start: str) -> None:
        """All workflows on which it depends how it goes on with `start`."""
        left = [start]
        while left:
            workflow_id = left.pop()
            if workflow_id in self._pending:
                continue
            own = self._awaits.get(workflow_id, {}).values()
            for item in own:
                self._awaited_by.setdefault(item.awaited_id, []).append((workflow_id, item.step_id))
                left.append(item.awaited_id)
            wishes = [x for x in self._leases.of.get(workflow_id, {}).values() if not x.granted]
            self._pending[workflow_id] = len(own) + len(wishes)
            self._pending_steps.update((workflow_id, item.step_id) for item in own)
            self._pending_steps.update((workflow_id, wish.step_id) for wish in wishes)
            for wish in wishes:
                resource = self._leases.resources[wish.resource_id]
                depth = self._depth.get(wish.resource_id)
                if depth is None:
                    depth = 0
                    left += [holder.workflow_id for holder in resource.held.values()]
                place = resource.place(wish) + 1
                left += [other.workflow_id for other in resource.waiting[depth:place]]
                self._depth[wish.resource_id] = max(depth, place)

    def _play(self, policy: Policy) -> None:
        self._free = {r: capacity_of(r, policy) - self._leases.resources[r].used for r in self._depth}
        self._served = dict.fromkeys(self._depth, 0)
        #: What each workflow holds in the play, and has not given back.
        self._has = {
            workflow_id: {x.number: x for x in self._leases.of.get(workflow_id, {}).values() if x.granted}
            for workflow_id in self._pending
        }
        #: Workflows for which something has changed.
        self._moved = deque(self._pending)
        for resource_id in self._depth:
            self._serve(resource_id)
        ended: set[str] = set()
        while self._moved:
            workflow_id = self._moved.popleft()
            if workflow_id in ended:
                continue
            over = not self._pending[workflow_id]
            has = self._has[workflow_id]
            for lease in list(has.values()) if over else self._wanted_beside(workflow_id):
                del has[lease.number]
                if lease.resource_id in self._free:
                    self._free[lease.resource_id] += lease.amount
                    self._serve(lease.resource_id)
            if over:
                ended.add(workflow_id)
                for other, step_id in self._awaited_by.get(workflow_id, ()):
                    self._over(other, step_id)

    def _serve(self, resource_id: str) -> None:
        queue = self._leases.resources[resource_id].waiting
        while (served := self._served[resource_id]) < self._depth[resource_id]:
            wish = queue[served]
            if wish.amount > self._free[resource_id]:
                break
            self._free[resource_id] -= wish.amount
            self._served[resource_id] += 1
            self._has[wish.workflow_id][wish.number] = wish
            self._over(wish.workflow_id, wish.step_id)

    def _over(self, workflow_id: str, step_id: str) -> None:
        self._pending[workflow_id] -= 1
        self._pending_steps[workflow_id, step_id] -= 1
        self._moved.append(workflow_id)

    def _wanted_beside(self, workflow_id: str) -> list[Lease]:
        """What a step that waits for nothing holds and another step of its workflow waits for: it comes back before the
        workflow ends, which would be waiting for itself."""
        wishes = [x for x in self._leases.of.get(workflow_id, {}).values() if not x.granted]
        return [
            x
            for x in self._has[workflow_id].values()
            if not self._pending_steps[workflow_id, x.step_id]
            and any(wish.resource_id == x.resource_id and wish.step_id != x.step_id for wish in wishes)
        ]

    def _edges(self, workflow_id: str, *, beside: bool) -> Iterator[Edge]:
        """For whom this workflow waits in vain; with `beside` also for another step of its own that waits too."""
        for wish in self._leases.of.get(workflow_id, {}).values():
            if wish.granted or not self.is_unserved(wish):
                continue
            resource = self._leases.resources[wish.resource_id]
            before = resource.waiting[: resource.place(wish)]
            for other in (*resource.held.values(), *before):
                if other.workflow_id != workflow_id:
                    counts = other.workflow_id in self.stuck
                else:
                    counts = other.granted and (
                        other.step_id == wish.step_id
                        or (beside and self._pending_steps[workflow_id, other.step_id] > 0)
                    )
                if counts:
                    yield Edge(workflow_id, wish, other.workflow_id)
        for item in self._awaits.get(workflow_id, {}).values():
            if item.awaited_id in self.stuck:
                yield Edge(workflow_id, item, item.awaited_id)
