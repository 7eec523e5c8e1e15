"""Deadlocks: what the search costs per wait when 10,000 workflows wait, and how soon a planted cycle is an error."""

from __future__ import annotations

import gc
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from engine.coordination.leases import Leases
from engine.coordination.waits import DETECTOR, Waits
from engine.policy import Policy, default_policy
from schemas.codec import Codec
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import LeaseAsked, LeaseReturned
from schemas.records.events import (
    ResourceRequested,
    StepSpec,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from schemas.registry import Registry
from schemas.topics import COORDINATION, EVENTS

from .errors import R, build
from .figures import Benchmark, Figure, Latencies, Setup, percentile
from .processes import LEAD_S, Publisher, Ready, Received, Receiver, Role, ready, stand_at_end, write

WAITING, WAITING_QUICK = 10_000, 1_000
WAITING_FEW = 40
#: Waits that begin and end while so many others wait.
EDGES, EDGES_QUICK = 2_000, 200
#: Those that walk the whole chain take milliseconds each.
EDGES_LONGEST = 100
CYCLES, CYCLES_QUICK = tuple(range(2, 51)), (2, 7, 50)
CYCLES_PER_S = 20
_ANSWER_S = 20.0
_GOAL_MS = 1_000.0
_START_US = 1_800_000_000_000_000


def _measure(setup: Setup) -> list[Figure]:
    return [*_costs(setup), *_detection(setup)]


# -- cost per edge ------------------------------------------------------------------------------------------------


class Table:
    """Leases and waits in this process."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._waits = Waits(self._leases)
        self._policy: Policy = default_policy()
        self._now_us = _START_US

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._leases.waiting_count

    def fold(self, record: Record) -> float:
        """Seconds that a record takes. RuntimeError for a deadlock: none is planted here."""
        self._now_us += 1
        began_s = time.perf_counter()
        list(self._leases.fold(record, self._now_us, self._policy))
        list(self._waits.fold(record, self._now_us, self._policy))
        took_s = time.perf_counter() - began_s
        if self._waits.deadlocks:
            raise RuntimeError("a deadlock was found where none is")
        return took_s


def _ask(who: int, resource_id: str) -> LeaseAsked:
    return _about(LeaseAsked, who, resource_id, step_id="work", began_at=_START_US, wait_ms=10**9)


def _return(who: int, resource_id: str) -> LeaseReturned:
    return _about(LeaseReturned, who, resource_id)


def _about(kind: type[R], who: int, resource_id: str, **fields: object) -> R:
    workflow_id = derive_id("bench", "workflow", who)
    return build(kind, workflow_id, partition=0, resource_id=resource_id, lease_id=f"{resource_id}/{who}", **fields)


def _few_each(waiting: int) -> tuple[Table, list[LeaseAsked]]:
    """Each resource is held by one workflow and waited for by two; holders of some wait for others. The next wishes are
    of workflows that hold something themselves, for which others wait."""
    table, resources = Table(), waiting // 2
    for n in range(resources):
        table.fold(_ask(n, f"r{n}"))
    for n in range(waiting):
        # A holder waits for a resource of a higher number only: no cycle.
        who = n if n % 4 == 0 and n < resources - 1 else resources + n
        table.fold(_ask(who, f"r{(n + 1) % resources if who == n else n % resources}"))
    return table, [_ask(n * 4 + 1, f"r{resources - 1}") for n in range(resources // 4 - 1)]


def _one_queue(waiting: int) -> tuple[Table, list[LeaseAsked]]:
    """All wait for one resource; the next, each of which holds something, queue behind them."""
    table = Table()
    for n in range(waiting + 1):
        table.fold(_ask(n, "common"))
    for n in range(waiting + 1, waiting + 501):
        table.fold(_ask(n, f"own{n}"))
    return table, [_ask(n, "common") for n in range(waiting + 1, waiting + 501)]


def _one_chain(waiting: int) -> tuple[Table, list[LeaseAsked]]:
    """Each holds one resource and waits for the next one's. The next wishes begin at the chain's far end, and of those
    who wish them something is wanted too, so that the whole chain is walked."""
    table, last = Table(), waiting - 500
    for n in range(last + 1):
        table.fold(_ask(n, f"r{n}"))
    for n in range(last):
        table.fold(_ask(n, f"r{n + 1}"))
    for n in range(last + 1, last + 501):
        table.fold(_ask(n, f"own{n}"))
        table.fold(_ask(n + 501, f"own{n}"))
    return table, [_ask(n, "r0") for n in range(last + 1, last + 501)]


def _edge_costs(table: Table, wishes: list[LeaseAsked], count: int) -> list[float]:
    """Seconds of each wait's beginning. Each ends again, so that as many wait all the time."""
    table.fold(wishes[0])
    table.fold(LeaseReturned(**_returned(wishes[0])))
    gc.collect()
    gc.disable()
    taken = []
    for n in range(count):
        wish = wishes[n % len(wishes)]
        taken.append(table.fold(wish))
        table.fold(LeaseReturned(**_returned(wish)))
    gc.enable()
    return taken


def _returned(wish: LeaseAsked) -> dict[str, Any]:
    names = (
        "event_id",
        "workflow_id",
        "workflow_type",
        "occurred_at",
        "producer",
        "partition",
        "resource_id",
        "lease_id",
    )
    return {name: getattr(wish, name) for name in names}


def _costs(setup: Setup) -> Iterator[Figure]:
    waiting = WAITING_QUICK if setup.quick else WAITING
    edges = EDGES_QUICK if setup.quick else EDGES
    few = _edge_costs(*_few_each(WAITING_FEW), edges)
    yield _figure(f"{WAITING_FEW} wait", few, "")
    for name, shape, count in (
        ("two wait for each resource", _few_each, edges),
        ("in one queue", _one_queue, edges),
        ("in one chain, walked whole", _one_chain, EDGES_LONGEST),
    ):
        table, wishes = shape(waiting)
        setup.say(f"{table.waiting:,} workflows wait: {name}")
        taken = _edge_costs(table, wishes, count)
        yield _figure(f"{waiting:,} wait, {name}", taken, f"p99 {percentile(taken, 0.99) * 1e6:,.0f} us")


def _figure(name: str, taken_s: list[float], note: str) -> Figure:
    return Figure(
        name=f"fold and search per edge, {name}", measured=percentile(taken_s, 0.5) * 1e6, unit="us", note=note
    )


# -- time to detection --------------------------------------------------------------------------------------------


class Cycle:
    """Workflows each of which holds a resource and asks for the next one's; the last request closes the cycle."""

    def __init__(self, codec: Codec, length: int) -> None:
        name = uuid.uuid4().hex
        self.ids = [str(uuid.uuid4()) for _ in range(length)]
        self.holding: list[Ready] = []
        self.asking: list[Ready] = []
        for n, workflow_id in enumerate(self.ids):
            steps = (StepSpec(step_id="work"),)
            start = build(WorkflowStarted, workflow_id, workflow_version="1", steps=steps)
            step = build(StepStarted, workflow_id, step_id="work", step_run_id=str(uuid.uuid4()))
            self.holding += [ready(codec, record) for record in (start, step, _request(workflow_id, f"{name}-{n}"))]
            self.asking.append(ready(codec, _request(workflow_id, f"{name}-{(n + 1) % length}")))
        self.closing = self.asking.pop()


def _request(workflow_id: str, resource_id: str) -> ResourceRequested:
    return build(
        ResourceRequested, workflow_id, step_id="work", resource_id=resource_id, lease_id=resource_id, wait_ms=10**8
    )


def _detection(setup: Setup) -> list[Figure]:
    at, group = setup.stack, f"bench-{uuid.uuid4()}"
    stand_at_end(at.kafka, group)
    stand_at_end(at.kafka, f"{group}-coordinator", COORDINATION)
    roles = [Role(at, setup.folder, "recovery", group=group)]
    roles.append(Role(at, setup.folder, "coordinator", group=f"{group}-coordinator"))
    try:
        for role in roles:
            role.wait("partitions", Role.caught_up)
        with Registry(at.registry) as registry:
            codec = Codec(registry)
            cycles = [Cycle(codec, length) for length in (CYCLES_QUICK if setup.quick else CYCLES)]
            return _find(setup, codec, roles[1], cycles)
    finally:
        for role in roles:
            role.end()


def _find(setup: Setup, codec: Codec, coordinator: Role, cycles: list[Cycle]) -> list[Figure]:
    servers = setup.stack.kafka
    workflows = [workflow_id for cycle in cycles for workflow_id in cycle.ids]
    setup.say(f"{len(cycles)} cycles of {len(workflows):,} workflows in all, closed at {CYCLES_PER_S}/s")
    before = coordinator.metric("kintsugi_leases_held"), coordinator.metric("kintsugi_leases_waiting")
    for step, name, had, count in (
        ("holding", "kintsugi_leases_held", before[0], len(workflows)),
        ("asking", "kintsugi_leases_waiting", before[1], len(workflows) - len(cycles)),
    ):
        write(servers, [record for cycle in cycles for record in getattr(cycle, step)])
        coordinator.wait(f"{count:,} more {name}", lambda role, n=name, least=had + count: role.metric(n) >= least)  # type: ignore[misc]
    receiver = Receiver(servers, EVENTS, timeout_s=LEAD_S + len(cycles) / CYCLES_PER_S + _ANSWER_S)
    publisher = Publisher(servers, [cycle.closing for cycle in cycles], per_second=CYCLES_PER_S)
    published = publisher.result(LEAD_S + len(cycles) / CYCLES_PER_S + _ANSWER_S)
    coordinator.wait("deadlocks", lambda role: role.metric("kintsugi_deadlocks_total") >= len(cycles))
    receiver.stop()
    found = _found(codec, receiver.result(), cycles)
    write(servers, [ready(codec, build(WorkflowCompleted, workflow_id)) for workflow_id in workflows])
    first = {number: min(times) for number, times in found.items()}
    waited = Latencies([at_s - published[number].timestamp_ms / 1000 for number, at_s in first.items()])
    return [
        *waited.figures("closing request -> DEADLOCK error in the log", p99_ms_max=_GOAL_MS),
        Figure(
            name="planted cycles not found, or found twice",
            measured=sum(len(found.get(number, ())) != 1 for number in range(len(cycles))),
            unit="cycles",
            at_most=0.0,
            note=f"of {len(cycles)}, with 2 to {max(len(cycle.ids) for cycle in cycles)} workflows",
        ),
    ]


def _found(codec: Codec, received: list[Received], cycles: list[Cycle]) -> dict[int, list[float]]:
    """Per cycle: when each error about it was received, wall clock. Copies of one error are one."""
    cycle_of = {workflow_id: number for number, cycle in enumerate(cycles) for workflow_id in cycle.ids}
    seen: set[str] = set()
    found: dict[int, list[float]] = {}
    for item in received:
        record = codec.decode(item.value)
        if not isinstance(record, WorkflowErrorOccurred) or record.detected_by != DETECTOR or record.event_id in seen:
            continue
        seen.add(record.event_id)
        number = cycle_of.get(record.workflow_id)
        if number is not None and json.loads(record.context or "{}").get("length") == len(cycles[number].ids):
            found.setdefault(number, []).append(item.wall_s)
    return found


BENCHMARK = Benchmark(
    name="deadlock",
    measures="what a wait costs the search for deadlocks, and how soon a planted cycle is an error in the log",
    compared_to="the same search when 40 wait",
    run=_measure,
)
