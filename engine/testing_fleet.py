"""Several partitions, their engines and the coordinator in memory, on one clock that jumps to what is due next.

For tests and simulation of what many workflows do together. Everything is done in an order that follows from the
moments and from the order in which things were planned, so a run repeats itself exactly.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import TypeVar, cast

from schemas.records import Command, Record

from .coordination.coordinator import Coordinator, components
from .decide import decide
from .effects import Append, AppendTo, Coordinate
from .events import Delivered
from .fold import evolve
from .inforce import InForce
from .policy import Policy
from .state import WorkflowState
from .testing import START_US
from .timers import due, next_due_us

R = TypeVar("R", bound=Record)

PARTITIONS = 8
#: Records one run may fold; a fleet that feeds itself is a defect and ends here.
RECORDS_MAX = 5_000_000


class _Partition:
    """The engine of one partition."""

    def __init__(self, number: int, policy: Policy) -> None:
        self.number = number
        self.in_force = InForce(policy)
        self.states: dict[str, WorkflowState] = {}
        self.offset = 0


class Fleet:
    """Everything there is, and what passed through it. `on_command` is what services do with a command."""

    def __init__(self, policy: Policy, on_command: Callable[[Command], None]) -> None:
        self.now_us = START_US
        self.partitions = [_Partition(number, policy) for number in range(PARTITIONS)]
        self.coordinator = Coordinator(components(), policy)
        self.on_command = on_command
        #: Facts of the coordinator, in order.
        self.said: list[Record] = []
        #: How many commands were sent in each second since the start.
        self.commands: Counter[int] = Counter()
        self.folded = 0
        self._queue: deque[tuple[_Partition, Record]] = deque()
        self._planned: list[tuple[int, int, Callable[[], None]]] = []
        self._timers: list[tuple[int, int, str]] = []
        self._numbers = count()

    @property
    def second(self) -> int:
        """Seconds since the start."""
        return (self.now_us - START_US) // 1_000_000

    def of(self, workflow_id: str) -> _Partition:
        """The partition of a workflow."""
        return self.partitions[int(workflow_id[:8], 16) % PARTITIONS]

    def state(self, workflow_id: str) -> WorkflowState:
        """What the engine knows of a workflow."""
        return self.of(workflow_id).states[workflow_id]

    def append(self, record: Record) -> None:
        """Write a record to the log and let everything settle."""
        self._queue.append((self.of(record.workflow_id), record))
        self._settle()

    def plan(self, after_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._planned, (self.now_us + after_ms * 1000, next(self._numbers), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end_us = self.now_us + int(seconds * 1_000_000)
        while True:
            moments = [heap[0][0] for heap in (self._planned, self._timers) if heap]
            told_us = self.coordinator.next_due_us
            if told_us is not None:
                moments.append(told_us)
            if not moments or min(moments) > end_us:
                break
            self.now_us = max(self.now_us, min(moments))
            self._fire()
        self.now_us = end_us

    def told(self, kind: type[R]) -> list[R]:
        """Facts of the coordinator of one type."""
        return [r for r in self.said if isinstance(r, kind)]

    def _fire(self) -> None:
        while self._planned and self._planned[0][0] <= self.now_us:
            heapq.heappop(self._planned)[2]()
        while self._timers and self._timers[0][0] <= self.now_us:
            _, number, workflow_id = heapq.heappop(self._timers)
            partition = self.partitions[number]
            policy = partition.in_force.policy
            for fired in due(partition.states[workflow_id], policy, self.now_us):
                self._queue.append((partition, fired))
        self._settle()
        for record in list(self.coordinator.due(self.now_us)):
            self._coordinate(record)
        self._settle()

    def _settle(self) -> None:
        while self._queue:
            partition, record = self._queue.popleft()
            self.folded += 1
            assert self.folded < RECORDS_MAX, "the fleet does not settle"
            self._fold(partition, Delivered(record, partition.number, partition.offset, self.now_us))
            partition.offset += 1

    def _fold(self, partition: _Partition, event: Delivered) -> None:
        if partition.in_force.take(event):
            return
        workflow_id, policy = event.record.workflow_id, partition.in_force.policy
        state = partition.states[workflow_id] = evolve(partition.states.get(workflow_id), event)
        for effect in decide(state, event, policy, partition.in_force.breakers):
            if isinstance(effect, Append):
                self._queue.append((partition, effect.record))
            elif isinstance(effect, Coordinate):
                self._coordinate(effect.record)
            else:
                self.commands[self.second] += 1
                self.on_command(effect.command)
        due_us = next_due_us(state, policy)
        if due_us is not None:
            heapq.heappush(self._timers, (due_us, partition.number, workflow_id))

    def _coordinate(self, record: Record) -> None:
        for effect in self.coordinator.fold(record, self.now_us):
            self.said.append(effect.record)
            if isinstance(effect, AppendTo):
                to = self.of(effect.record.workflow_id) if effect.partition is None else None
                self._queue.append((to or self.partitions[cast(int, effect.partition)], effect.record))
            else:
                self._queue.extend((partition, effect.record) for partition in self.partitions)
