"""The engine alone, in one process: its rate, its memory, and whether a decision costs more when more is open."""

from __future__ import annotations

import gc
import multiprocessing
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from consumers.memory import Memory
from engine.decide import decide
from engine.events import Delivered
from engine.fold import evolve
from engine.inspection import deliver
from engine.policy import default_policy
from engine.state import WorkflowState
from schemas.admission import admit
from schemas.canonical import chain_digest_of
from schemas.codec import Codec, Unknown
from schemas.records import Record
from schemas.records.events import (
    CheckpointCreated,
    StepCompleted,
    StepSpec,
    StepStarted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

from .figures import Benchmark, Figure, Setup, median
from .workload import history

WORKFLOWS, WORKFLOWS_QUICK = 2_000, 200
REPEATS, REPEATS_QUICK = 7, 3
OPEN, OPEN_QUICK = 100_000, 2_000
#: tracemalloc makes every allocation several times dearer; its answer per workflow is the same for fewer.
TRACED_SHARE = 0.03
OPEN_FEW = 10
#: A decision's time is to stay what it is up to here. They have fewer steps: it takes a minute to open them all.
OPEN_MOST, OPEN_MOST_QUICK = 1_000_000, 5_000
_STEPS_OF_MOST = 2
#: "Flat": caches of the processor hold ten workflows and not a million.
_RATIO_MAX = 1.5
STEPS = CHECKPOINTS = 10
DECISIONS = 2_000
_GOAL_EVENTS_PER_S = 50_000
_GOAL_BYTES = 3 * 1024
_CHILD_TIMEOUT_S = 600.0
_START_US = 1_800_000_000_000_000
_PAGE_BYTES = 4096

_STEPS = tuple(StepSpec(step_id=f"step_{n}", depends_on=(f"step_{n - 1}",) if n else ()) for n in range(STEPS))
_processes = multiprocessing.get_context("spawn")


def _measure(setup: Setup) -> list[Figure]:
    return [*_rates(setup), *_memory(setup)]


# -- events per second --------------------------------------------------------------------------------------------


def _rates(setup: Setup) -> list[Figure]:
    log = history(WORKFLOWS_QUICK if setup.quick else WORKFLOWS)
    setup.say(f"fold and decide {len(log):,} events")
    codec = Codec()
    values = [(e.record.workflow_id.encode(), codec.encode(e.record), e.offset, e.timestamp_us) for e in log]
    repeats = REPEATS_QUICK if setup.quick else REPEATS
    errors = sum(type(e.record) is WorkflowErrorOccurred for e in log)

    def rate(work: Callable[[], None]) -> float:
        taken = []
        for _ in range(repeats):
            gc.collect()
            began_s = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began_s)
        return len(log) / median(taken)

    return [
        Figure(
            name="fold + decide",
            measured=rate(lambda: _fold(log)),
            unit="events/s",
            at_least=_GOAL_EVENTS_PER_S,
            note=f"{len(log):,} events, {errors} errors among them",
        ),
        Figure(
            name="fold + decide + timers",
            measured=rate(lambda: _fold_in_memory(log)),
            unit="events/s",
            note="as the recovery role keeps states",
        ),
        Figure(
            name="decode + verify + fold + decide + timers",
            measured=rate(lambda: _fold_in_memory(_decoded(values))),
            unit="events/s",
            note="from bytes; checkpoints are unpacked and digested",
        ),
    ]


def _fold(log: Iterable[Delivered]) -> None:
    policy = default_policy()
    states: dict[str, WorkflowState] = {}
    for event in log:
        workflow_id = event.record.workflow_id
        state = states[workflow_id] = evolve(states.get(workflow_id), event)
        decide(state, event, policy)


def _fold_in_memory(log: Iterable[Delivered]) -> None:
    keeper = Keeper()
    for event in log:
        keeper.fold(event)


def _decoded(values: Iterable[tuple[bytes, bytes, int, int]]) -> Iterator[Delivered]:
    codec = Codec()
    for key, value, offset, timestamp_us in values:
        record = admit(codec, key, value)
        assert not isinstance(record, Unknown)
        yield deliver(record, 0, offset, timestamp_us)


class Keeper:
    """States as the recovery role keeps them, timers included."""

    def __init__(self) -> None:
        self.policy = default_policy()
        self.memory = Memory(0, self.policy, effects_from=0, next_offset=0)

    def fold(self, event: Delivered) -> None:
        """Fold one event, decide, and set the workflow's timer."""
        record = event.record
        state = evolve(self.memory.get(record.workflow_id, record.workflow_type), event)
        decide(state, event, self.policy)
        self.memory.keep(state)


# -- bytes per open workflow, and decision time -------------------------------------------------------------------


def _memory(setup: Setup) -> list[Figure]:
    count = OPEN_QUICK if setup.quick else OPEN
    setup.say(f"{count:,} open workflows, {STEPS} steps and {CHECKPOINTS} checkpoints each")
    grown, few_us, many_us = _in_child(_open_many, count)
    setup.say(f"{int(count * TRACED_SHARE):,} of them with every allocation traced")
    (traced,) = _in_child(_open_traced, int(count * TRACED_SHARE))
    most = OPEN_MOST_QUICK if setup.quick else OPEN_MOST
    setup.say(f"{most:,} open workflows, {_STEPS_OF_MOST} steps each")
    short_few_us, short_many_us = _in_child(_open_most, most)
    return [
        Figure(
            name="memory per open workflow",
            measured=grown,
            unit="bytes",
            at_most=_GOAL_BYTES,
            note=f"growth of the process (RSS) at {count:,}, timers included",
        ),
        Figure(name="memory per open workflow, traced", measured=traced, unit="bytes", note="tracemalloc"),
        Figure(name=f"decision at {OPEN_FEW} open", measured=few_us, unit="us", note="error folded and decided on"),
        Figure(name=f"decision at {count:,} open", measured=many_us, unit="us", note="the same, as many are open"),
        Figure(
            name=f"decision at {most:,} open",
            measured=short_many_us,
            unit="us",
            note=f"workflows of {_STEPS_OF_MOST} steps; {short_few_us:.0f} us at {OPEN_FEW}",
        ),
        Figure(
            name=f"decision at {most:,} open to that at {OPEN_FEW}",
            measured=short_many_us / short_few_us,
            unit="x",
            at_most=_RATIO_MAX,
        ),
    ]


def _in_child(work: Callable[[int, Connection], None], count: int) -> Any:
    """In a process of its own: another's garbage would count."""
    ours, theirs = _processes.Pipe()
    child = _processes.Process(target=work, args=(count, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_CHILD_TIMEOUT_S):
            raise RuntimeError(f"not measured within {_CHILD_TIMEOUT_S:.0f} s")
        return ours.recv()
    except EOFError:
        raise RuntimeError("the measuring process ended without an answer") from None
    finally:
        child.kill()
        child.join()


def _open_many(count: int, answer: Connection) -> None:
    few = Fleet()
    few.open(OPEN_FEW)
    few_us = few.decision_us()
    fleet = Fleet()
    gc.collect()
    before = _resident_bytes()
    fleet.open(count)
    gc.collect()
    grown = (_resident_bytes() - before) / count
    answer.send((grown, few_us, fleet.decision_us()))


def _open_most(count: int, answer: Connection) -> None:
    times_us = []
    for opened in (OPEN_FEW, count):
        fleet = Fleet(_STEPS[:_STEPS_OF_MOST])
        fleet.open(opened)
        times_us.append(fleet.decision_us())
    answer.send(times_us)


def _open_traced(count: int, answer: Connection) -> None:
    fleet = Fleet()
    fleet.open(min(count, OPEN_FEW))  # what is made once
    gc.collect()
    tracemalloc.start()
    fleet.open(count)
    gc.collect()
    answer.send((tracemalloc.get_traced_memory()[0] / count,))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * _PAGE_BYTES


class Fleet:
    """Open workflows, each in its last step. As in decoded records, no id is shared by two of them."""

    def __init__(self, steps: tuple[StepSpec, ...] = _STEPS) -> None:
        self._steps = steps
        self._keeper = Keeper()
        self._ids = 0
        self._offset = 0
        self._open: list[str] = []
        #: Of the workflow being opened: chain digest and digest of its last checkpoint.
        self._chain: tuple[str | None, str | None] = (None, None)

    def open(self, count: int) -> None:
        """Bring so many more workflows to their last step."""
        gc.disable()  # a fleet that only grows would be looked through again and again
        for _ in range(count):
            workflow_id = self._id()
            self._open.append(workflow_id)
            self._put(WorkflowStarted, workflow_id, workflow_version="1", steps=self._steps)
            for number, step in enumerate(self._steps):
                run_id = self._id()
                self._put(StepStarted, workflow_id, step_id=step.step_id, step_run_id=run_id)
                self._checkpoint(workflow_id, step.step_id, number)
                if number < len(self._steps) - 1:
                    self._put(StepCompleted, workflow_id, step_id=step.step_id, step_run_id=run_id, duration_ms=5)
        gc.enable()

    def decision_us(self) -> float:
        """Median microseconds to fold an error and decide on it, over workflows spread through all that are open."""
        stride = max(1, len(self._open) // DECISIONS)
        step_id = self._steps[-1].step_id
        taken = []
        for workflow_id in self._open[::stride]:
            fields = {"error_code": "TIMEOUT", "error_message": "too slow", "detected_by": "service"}
            event = self._event(WorkflowErrorOccurred, workflow_id, error_id=self._id(), step_id=step_id, **fields)
            began_s = time.perf_counter()
            self._keeper.fold(event)
            taken.append(time.perf_counter() - began_s)
        return median(taken) * 1e6

    def _checkpoint(self, workflow_id: str, step_id: str, number: int) -> None:
        digest = f"{self._ids:064x}"
        parent = self._chain if number else (None, None)
        chain_digest = chain_digest_of(parent[0], digest)
        self._chain = chain_digest, digest
        self._put(
            CheckpointCreated,
            workflow_id,
            checkpoint_id=self._id(),
            step_id=step_id,
            checkpoint_type="step_start",
            sequence=number + 1,
            state_version="1",
            codec="identity",
            size_bytes=2,
            digest=digest,
            parent_digest=parent[1],
            chain_digest=chain_digest,
            status="running",
            state=b"{}",
        )

    def _put(self, kind: type[Record], workflow_id: str, **fields: Any) -> None:
        self._keeper.fold(self._event(kind, workflow_id, **fields))

    def _event(self, kind: type[Record], workflow_id: str, **fields: Any) -> Delivered:
        self._offset += 1
        now_us = _START_US + self._offset
        record = kind(
            event_id=self._id(),
            workflow_id=workflow_id,
            workflow_type="development",
            occurred_at=now_us,
            producer="bench",
            **fields,
        )
        return Delivered(record, 0, self._offset, now_us)

    def _id(self) -> str:
        self._ids += 1
        text = f"{self._ids * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


BENCHMARK = Benchmark(
    name="engine",
    measures="fold and decide over a realistic log in one process; memory of open workflows; time of one decision",
    compared_to="the same log with timers, and from bytes; a decision with ten workflows open against all of them",
    run=_measure,
    needs_stack=False,
)
