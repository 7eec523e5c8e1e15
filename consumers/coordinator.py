"""The coordinator role: folds `workflow.coordination` and tells workflows, in their own partitions, what follows.

The topic has one partition, so one member of the group is at work and the others stand by. Order per batch: fold,
append, flush, commit, as in recovery; ids are derived, so what is told twice counts once. A new owner folds from the
newest snapshot, else from the beginning of the log, and tells nothing again of what the group's position covers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import NamedTuple

from confluent_kafka import Message

from engine.coordination.breakers import Breakers
from engine.coordination.coordinator import Coordinator, components
from engine.coordination.incidents import Incidents
from engine.coordination.leases import Leases
from engine.coordination.waits import DETECTOR, Waits
from engine.effects import Broadcast, CoordinatorEffect
from engine.policy import Policy
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.dead_letters import STAGE_APPLY, STAGE_DECODE
from schemas.errors import AdmissionError, KintsugiError, PoisonError
from schemas.headers import headers_for, trace_of
from schemas.records import COORDINATION_TYPES, Record
from schemas.records.events import PolicyChanged, WorkflowErrorOccurred
from schemas.topics import COORDINATION, EVENTS

from . import telemetry
from .coordinator_snapshots import CoordinatorSnapshots
from .crash import crash_point
from .dead_letter import headers_of, raw
from .deadline import Deadline
from .handler import LogRange
from .outbox import Outbox
from .policies import Entry
from .setting_aside import set_aside

ROLE = "coordinator"
#: A snapshot after so many records, or after the interval if there was any.
SNAPSHOT_RECORDS = 50_000
SNAPSHOT_INTERVAL_S = 30.0
#: The loop stands still while the state is dumped: at most this share of the time.
SNAPSHOT_SHARE_MAX = 0.01
#: Timer facts written in one round; the rest follow after a look at the log.
TIMERS_PER_TICK_MAX = 1_000
#: While a timer fact is on its way, or the log is not read to its end, timers are looked at this often.
LOOK_AGAIN_US = 10_000
#: Ids of timer facts written by us and not read back; those beyond it are written once more, to no effect.
FIRED_MAX = 10_000
GAUGES_INTERVAL_S = 0.25

_READ = (*COORDINATION_TYPES.values(), PolicyChanged)
_processed = cache(telemetry.EVENTS_PROCESSED.labels)
_effects = cache(telemetry.EFFECTS.labels)


@dataclass(slots=True)
class _Desk:
    """What is kept of the partition; everything in it can be derived from the log again."""

    partition: int
    coordinator: Coordinator
    #: Effects of records before it are in the log already.
    effects_from: int
    next_offset: int
    #: Broker time of the newest record folded.
    log_us: int = 0
    folded: int = 0
    fired: dict[str, None] = field(default_factory=dict)


class Coordination:
    """Handler of the coordinator role."""

    def __init__(
        self,
        policy: Policy,
        codec: Codec,
        outbox: Outbox,
        snapshots: CoordinatorSnapshots,
        event_partitions: int,
        applied: Callable[[], Entry | None],
    ) -> None:
        """`applied`: the policy applied last; asked where the log no longer holds how it came into force."""
        self._policy = policy
        self._codec = codec
        self._outbox = outbox
        self._snapshots = snapshots
        self._event_partitions = event_partitions
        self._applied = applied
        self._desks: dict[int, _Desk] = {}
        self._snapshot_due_s = 0.0
        self._snapshot_pause_s = SNAPSHOT_INTERVAL_S
        self._gauges_due_s = 0.0
        self._log = telemetry.log()

    def assigned(self, log: LogRange) -> int | None:
        """Start at the newest snapshot, else at the beginning; effects begin at the group's position."""
        self._desks.pop(log.partition, None)
        start, coordinator = self._from_snapshot(log)
        effects_from = max(start, log.committed if log.committed is not None else start)
        self._desks[log.partition] = _Desk(log.partition, coordinator, effects_from, start)
        self._snapshot_due_s = time.monotonic() + self._snapshot_pause_s
        self._log.info("partition taken", partition=log.partition, start=start, effects_from=effects_from)
        return start

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Fold the records, and hand what follows from each to the producer before folding the next."""
        desk = self._desks[partition]
        for message in messages:
            record = self._read(desk, message)
            if record is not None:
                self._fold(desk, message, record)
        desk.next_offset = (messages[-1].offset() or 0) + 1
        desk.folded += len(messages)
        crash_point("after_fold")

    def flush(self) -> Mapping[int, KintsugiError]:
        """Wait until the log has everything. After a loss the partition is folded anew."""
        failed = self._outbox.flush()
        for partition in failed:
            self._desks.pop(partition, None)
        return failed

    def committed(self, partition: int, next_offset: int) -> None:
        """Leave a snapshot now and then."""
        desk = self._desks[partition]
        now_s = time.monotonic()
        least_s = self._snapshot_due_s - self._snapshot_pause_s * 0.9
        if now_s >= self._snapshot_due_s or (desk.folded >= SNAPSHOT_RECORDS and now_s >= least_s):
            if not self._snapshots.busy:
                self._save(desk)

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        """Write the timer facts that are due at broker time `now_us`. Returns when the next one is."""
        nearest_us: int | None = None
        for desk in self._desks.values():
            due_us = desk.coordinator.next_due_us
            if due_us is not None and due_us <= now_us:
                # What looks overdue may be done further down the log: look there first.
                if desk.log_us >= due_us or caught_up(desk.partition):
                    self._fire(desk, now_us)
                due_us = max(desk.coordinator.next_due_us or 0, now_us + LOOK_AGAIN_US)
            if due_us is not None:
                nearest_us = due_us if nearest_us is None else min(nearest_us, due_us)
        now_s = time.monotonic()
        if now_s >= self._gauges_due_s:
            self._gauges_due_s = now_s + GAUGES_INTERVAL_S
            self._show()
        return nearest_us

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        """Leave a snapshot to the next owner."""
        for partition in partitions:
            desk = self._desks.get(partition)
            if desk is not None and desk.folded:
                self._save(desk)
        self._snapshots.settle(deadline)
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget; the new owner derives it all again."""
        for partition in partitions:
            self._desks.pop(partition, None)
        self._show()

    def close(self) -> None:
        """Let go of the producer and the snapshot thread."""
        self._outbox.close()
        self._snapshots.close()

    def _from_snapshot(self, log: LogRange) -> tuple[int, Coordinator]:
        for offset, state in self._snapshots.found(log.partition, low=log.low, high=log.high):
            coordinator = Coordinator(components(), self._policy)
            try:
                coordinator.load(state)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                telemetry.SNAPSHOTS.labels("ignored").inc()
                self._log.warning("snapshot ignored", partition=log.partition, reason=str(error)[:300])
                continue
            telemetry.SNAPSHOTS.labels("loaded").inc()
            return offset, coordinator
        coordinator = Coordinator(components(), self._policy)
        if log.low > 0 and (entry := self._applied()) is not None:
            coordinator.in_force.restore(entry.text, entry.sequence)
        return log.low, coordinator

    def _read(self, desk: _Desk, message: Message) -> Record | None:
        """The record, if the coordinator has a use for it; one that cannot be read is set aside."""
        try:
            record = admit(self._codec, raw(message.key()), raw(message.value()))
            if isinstance(record, Unknown):
                _processed(ROLE, "unknown_type").inc()
                return None
            if not isinstance(record, _READ):
                raise AdmissionError("wrong_topic", f"{type(record).__name__} does not belong into this topic")
            partition = getattr(record, "partition", 0)
            if not 0 <= partition < self._event_partitions:
                raise AdmissionError("wrong_partition", f"{EVENTS} has no partition {partition}")
        except PoisonError as error:
            self._set_aside(desk, message, error, STAGE_DECODE)
            return None
        return record

    def _fold(self, desk: _Desk, message: Message, record: Record) -> None:
        offset = message.offset() or 0
        live = offset >= desk.effects_from
        timestamp_us = message.timestamp()[1] * 1000
        desk.log_us = max(desk.log_us, timestamp_us)
        desk.fired.pop(record.event_id, None)
        before = _counts(desk.coordinator)
        try:
            effects = desk.coordinator.fold(record, timestamp_us)
        except MemoryError:
            raise  # no fault of the record: who takes over may have room
        except Exception as error:  # a defect of ours on one record must not stop all other workflows
            self._log.error("not applicable", partition=desk.partition, offset=offset, error=error)
            self._set_aside(desk, message, error, STAGE_APPLY)
            return
        _processed(ROLE, "folded" if live else "replayed").inc()
        if not live:
            return
        self._count(before, _counts(desk.coordinator))
        if isinstance(record, PolicyChanged):
            self._say_policy(desk, record)
        trace = trace_of(headers_of(message))
        for effect in effects:
            # What is told to another workflow belongs to that one's trace.
            same = effect.record.workflow_id == record.workflow_id
            self._act(desk, effect, trace if same else None)

    def _act(self, desk: _Desk, effect: CoordinatorEffect, trace: str | None) -> None:
        record = effect.record
        _effects(type(record).__name__).inc()
        if isinstance(record, WorkflowErrorOccurred) and record.detected_by == DETECTOR:
            self._log.warning("deadlock", workflow_id=record.workflow_id, error_id=record.error_id)
        places: Iterable[int] = range(self._event_partitions)
        if not isinstance(effect, Broadcast):
            places = [-1 if effect.partition is None else effect.partition]
        key, value, headers = record.workflow_id.encode(), self._codec.encode(record), headers_for(record, parent=trace)
        for place in places:
            self._outbox.send(EVENTS, key, value, headers, cause=desk.partition, partition=place)

    def _fire(self, desk: _Desk, now_us: int) -> None:
        for fact in islice(desk.coordinator.due(now_us), TIMERS_PER_TICK_MAX):
            if fact.event_id in desk.fired:
                continue
            desk.fired[fact.event_id] = None
            if len(desk.fired) > FIRED_MAX:
                del desk.fired[next(iter(desk.fired))]
            telemetry.TIMERS.labels(fact.kind).inc()
            self._outbox.send(
                COORDINATION,
                fact.workflow_id.encode(),
                self._codec.encode(fact),
                headers_for(fact),
                cause=desk.partition,
                partition=desk.partition,
            )

    def _set_aside(self, desk: _Desk, message: Message, error: Exception, stage: str) -> None:
        if (message.offset() or 0) < desk.effects_from:
            return
        _processed(ROLE, "dead_letter").inc()
        set_aside(self._outbox, message, error, stage)

    def _say_policy(self, desk: _Desk, record: PolicyChanged) -> None:
        in_force = desk.coordinator.in_force
        if in_force.refused:
            self._log.error("policy refused", partition=desk.partition, reason=in_force.refused)
        elif in_force.sequence == record.sequence:
            self._log.info(
                "policy in force", partition=desk.partition, policy=record.policy_version, sequence=record.sequence
            )

    def _save(self, desk: _Desk) -> None:
        started_s = time.perf_counter()
        self._snapshots.save(desk.partition, desk.next_offset, desk.coordinator.dump())
        took_s = time.perf_counter() - started_s
        telemetry.SNAPSHOT_SECONDS.observe(took_s)
        self._snapshot_pause_s = max(SNAPSHOT_INTERVAL_S, took_s / SNAPSHOT_SHARE_MAX)
        self._snapshot_due_s = time.monotonic() + self._snapshot_pause_s
        desk.folded = 0

    def _count(self, before: _Counts, after: _Counts) -> None:
        telemetry.DEADLOCKS.inc(after.deadlocks - before.deadlocks)
        telemetry.LEASE_STRAYS.inc(after.strays - before.strays)
        telemetry.AWAITS_OVERLOOKED.inc(after.overlooked - before.overlooked)
        telemetry.BREAKERS_REFUSED.inc(after.unopened - before.unopened)
        telemetry.HELD_OVERLOOKED.inc(after.unlisted - before.unlisted)
        telemetry.FAILURES_FORGOTTEN.inc(after.forgotten - before.forgotten)
        telemetry.INCIDENTS_INCOMPLETE.inc(after.unnamed - before.unnamed)

    def _show(self) -> None:
        tables = [part for desk in self._desks.values() for part in desk.coordinator.components]
        leases = [part for part in tables if isinstance(part, Leases)]
        telemetry.LEASES_HELD.set(sum(part.held_count for part in leases))
        telemetry.LEASES_WAITING.set(sum(part.waiting_count for part in leases))
        breakers = [part for part in tables if isinstance(part, Breakers)]
        telemetry.BREAKERS_OPEN.set(sum(part.open_count for part in breakers))
        telemetry.REPAIRS_HELD.set(sum(part.waiting_count for part in breakers))
        telemetry.INCIDENTS_OPEN.set(sum(part.open_count for part in tables if isinstance(part, Incidents)))


class _Counts(NamedTuple):
    """Deadlocks found, returns by those who had nothing to return, and what was beyond a bound."""

    deadlocks: int = 0
    strays: int = 0
    overlooked: int = 0
    unopened: int = 0
    unlisted: int = 0
    forgotten: int = 0
    unnamed: int = 0


def _counts(coordinator: Coordinator) -> _Counts:
    found = _Counts()
    for part in coordinator.components:
        if isinstance(part, Leases):
            found = found._replace(strays=part.strays)
        elif isinstance(part, Waits):
            found = found._replace(deadlocks=part.deadlocks, overlooked=part.overlooked)
        elif isinstance(part, Breakers):
            found = found._replace(unopened=part.unopened, unlisted=part.unlisted, forgotten=part.forgotten)
        elif isinstance(part, Incidents):
            found = found._replace(unnamed=part.unnamed)
    return found
