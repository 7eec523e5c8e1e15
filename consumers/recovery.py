"""The recovery role: folds the log, appends what the engine decides, sends commands when decisions are read back.

Records are taken in as they come and folded lane by lane (`lanes`): each workflow's in their order, and with what was
in force at their place in the log, so every decision is the one that the log's own order gives. Per round: fold,
append, flush, commit; while effects are on their way more may be folded. A crash between any two is made good by
reading again: ids are derived, so what is written twice counts once. What could not be written drops the partition's
states; they are folded anew from the newest snapshot and the log, without effects up to the group's position.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from confluent_kafka import Message

from engine.decide import decide
from engine.events import Delivered
from engine.fold import evolve
from engine.inforce import CONTROL
from engine.policy import Policy
from engine.timers import due
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.dead_letters import STAGE_APPLY, STAGE_DECODE
from schemas.errors import AdmissionError, FencedError, KintsugiError, PoisonError, RetriableError
from schemas.headers import trace_of
from schemas.records import Command, Record
from schemas.records.events import (
    CheckpointRejected,
    PolicyChanged,
    RecoveryAttemptFinished,
    TimerFired,
    WorkflowErrorOccurred,
)

from . import telemetry
from .crash import crash_point
from .dead_letter import headers_of, raw
from .deadline import Deadline
from .handler import LogRange
from .inspecting import Inspection
from .intake import Intake
from .lanes import Entry
from .memory import Memory
from .outbox import Outbox
from .policies import AppliedPolicies
from .sending import Sending
from .setting_aside import set_aside
from .snapshots import Dumping, Snapshots

ROLE = "recovery"
#: A snapshot after so many records, or after the interval if there was any.
SNAPSHOT_RECORDS = 20_000
SNAPSHOT_INTERVAL_S = 30.0
#: A snapshot needs a moment without anything taken in; after so many records nothing is taken in until it comes.
SNAPSHOT_RECORDS_MAX = 2 * SNAPSHOT_RECORDS
#: What one round folds at most: so many records, or those that cause so many effects, about ten milliseconds of either.
WORK_RECORDS_MAX = 500
WORK_EFFECTS_MAX = 32
#: Records decoded, and their keys fetched, together.
WORK_SLICE = 16
#: The loop stands still while states are taken into a snapshot: at most this share of the time.
SNAPSHOT_SHARE_MAX = 0.01
#: States taken in one round, about a millisecond's, and how soon the next round comes when there is nothing else to do.
DUMP_STATES = 64
DUMP_PAUSE_US = 2_000
#: Timer facts written in one round; the rest follow after a look at the log.
TIMERS_PER_TICK_MAX = 1_000
#: While a partition has not caught up, its timers are looked at this often.
CATCHING_UP_US = 10_000
STRAYS_INTERVAL_S = 600.0
GAUGES_INTERVAL_S = 0.25
#: Why checkpoints are rejected; a service may give other words, which make no labels of their own.
REASONS = frozenset(
    {"digest", "codec", "size", "structure", "limit", "schema", "decryption", "unsealed", "claim", "claim_missing"}
    | {"record", "archive", "chain_gap", "chain_fork", "replayed"}
)
#: Counters by their labels; finding one anew costs more than a fold.
_processed = cache(telemetry.EVENTS_PROCESSED.labels)


class Recovery:
    """Handler of the recovery role."""

    def __init__(
        self,
        policy: Policy,
        codec: Codec,
        outbox: Outbox,
        snapshots: Snapshots,
        inspection: Inspection | None = None,
        policies: AppliedPolicies | None = None,
    ) -> None:
        """`policies`: what was applied; asked where the log no longer holds how a policy came into force."""
        self._policy = policy
        self._policies = policies
        self._inspection = inspection or Inspection()
        self._codec = codec
        self._outbox = outbox
        self._sending = Sending(codec, outbox)
        self._snapshots = snapshots
        self._memories: dict[int, Memory] = {}
        self._intake = Intake(codec)
        #: Partitions whose batch in hand has not ended.
        self._touched: set[int] = set()
        self._draining = False
        self._snapshot_due_s: dict[int, float] = {}
        #: The snapshot under way: one at a time, a few states a round.
        self._dumping: tuple[Memory, Dumping] | None = None
        self._strays_due_s = time.monotonic() + STRAYS_INTERVAL_S
        self._gauges_due_s = 0.0
        self._now_us = 0
        self._log = telemetry.log()

    def assigned(self, log: LogRange) -> int | None:
        """Start at the newest snapshot, else at the beginning; effects begin at the group's position."""
        self._forget(log.partition)
        found = self._snapshots.newest(log.partition, low=log.low, high=log.high)
        start = log.low if found is None else found.offset
        # A snapshot is made of what was flushed: when it is newer than the position, so are the effects.
        effects_from = max(start, log.committed if log.committed is not None else start)
        memory = Memory(log.partition, self._policy, effects_from=effects_from, next_offset=start)
        if found is not None:
            memory.restore(found.states, found.ended, found.in_force)
        elif start > 0 and self._policies is not None:
            applied = self._policies.before(log.partition, start)
            if applied is not None:
                memory.in_force.restore(applied.text, applied.sequence)
        self._memories[log.partition] = memory
        # Not all partitions of one assignment at the same moment: each snapshot holds up the others too.
        self._snapshot_due_s[log.partition] = time.monotonic() + SNAPSHOT_INTERVAL_S * random.uniform(0.5, 1.0)
        self._log.info(
            "partition taken",
            partition=log.partition,
            start=start,
            effects_from=effects_from,
            states=len(memory.states),
            policy=memory.in_force.policy.version,
        )
        return start

    @property
    def backlog(self) -> int:
        """Records taken in and not folded yet."""
        return len(self._intake)

    @property
    def on_its_way(self) -> int:
        """Effects that the log does not have yet."""
        return self._outbox.on_its_way

    @property
    def full(self) -> bool:
        """Whether no more is taken in for a while: there is too much, or a snapshot waits for what there is."""
        return self._intake.full or self._draining

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Take records in, and fold at once those that are about no workflow."""
        try:
            self._take_in(self._memories[partition], messages)
        except (RetriableError, FencedError):
            self._forget(partition)
            raise

    def _take_in(self, memory: Memory, messages: Sequence[Message]) -> None:
        for message in messages:
            timestamp_us = message.timestamp()[1] * 1000
            memory.seen_us = max(memory.seen_us, timestamp_us)
            kind = self._intake.kind_of(message)
            if kind not in CONTROL:
                self._intake.put(memory, message, kind)
            elif (record := self._read(memory, message)) is not None:
                event = Delivered(record, memory.partition, message.offset() or 0, timestamp_us)
                memory.take(event)
                self._note_policy(memory, event)
                memory.folded += 1
        memory.next_offset = (messages[-1].offset() or 0) + 1
        self._touched.add(memory.partition)

    def work(self) -> Mapping[int, KintsugiError]:
        """Fold some of what was taken in, and hand what follows from each to the producer before folding the next."""
        if self._outbox.crowded:
            return {}
        started_s, count, effects = time.perf_counter(), 0, self._outbox.taken
        failed: dict[int, KintsugiError] = {}
        while count < WORK_RECORDS_MAX and self._outbox.taken - effects < WORK_EFFECTS_MAX:
            entries = self._intake.take(WORK_SLICE)
            if not entries:
                break
            count += len(entries)
            self._work_on(entries, failed)
        for partition in self._touched:
            self._outbox.end_batch(partition, self._intake.frontier(partition, self._memories[partition].next_offset))
        self._touched.clear()
        if count:
            telemetry.PROCESSING_SECONDS.labels(ROLE).observe((time.perf_counter() - started_s) / count)
        crash_point("after_fold")
        return failed

    def _work_on(self, entries: Sequence[Entry], failed: dict[int, KintsugiError]) -> None:
        for entry in entries:
            try:
                if entry.partition not in failed and entry.record is None:
                    entry.record = self._read(self._memories[entry.partition], entry.message)
            except (RetriableError, FencedError) as error:
                self._give_up(entry.partition, error, failed)
        if self._inspection.has_keys:
            self._inspection.prefetch(e.record for e in entries if e.record is not None)
        for entry in entries:
            if entry.partition in failed:
                continue
            memory = self._memories[entry.partition]
            try:
                if entry.record is not None:
                    self._fold(memory, entry, entry.record)
            except (RetriableError, FencedError) as error:
                self._give_up(entry.partition, error, failed)
                continue
            entry.done = True
            memory.folded += 1
            self._touched.add(entry.partition)

    def _give_up(self, partition: int, error: KintsugiError, failed: dict[int, KintsugiError]) -> None:
        failed[partition] = error
        self._forget(partition)

    def flush(self) -> Mapping[int, KintsugiError]:
        """Wait until the log has everything. A partition with a loss is emptied, to be folded anew."""
        return self._emptied(self._outbox.flush())

    def poll(self) -> Mapping[int, KintsugiError]:
        """What has become of effects so far, without waiting for the others."""
        return self._emptied(self._outbox.poll())

    def durable(self, partition: int) -> int | None:
        """All effects of what comes before this offset are in the log."""
        return self._outbox.durable(partition)

    def _emptied(self, failed: dict[int, KintsugiError]) -> dict[int, KintsugiError]:
        for partition in failed:
            self._forget(partition)
        return failed

    def _forget(self, partition: int) -> None:
        self._memories.pop(partition, None)
        self._intake.forget(partition)
        self._outbox.forget(partition)
        self._touched.discard(partition)
        self._draining = False

    def committed(self, partition: int, next_offset: int) -> None:
        """Tidy up, and leave a snapshot now and then."""
        memory = self._memories[partition]
        memory.evict()
        if next_offset < memory.next_offset:
            # A snapshot beyond what is in the log would lose what is on its way; it waits for that, but not for ever.
            late = memory.folded >= SNAPSHOT_RECORDS_MAX
            self._draining = self._draining or (late and self._dumping is None and not self._snapshots.busy)
            return
        self._draining = False
        now_s = time.monotonic()
        if memory.folded >= SNAPSHOT_RECORDS or now_s >= self._snapshot_due_s[partition]:
            least_s = self._snapshot_due_s[partition] - SNAPSHOT_INTERVAL_S * 0.9
            if now_s >= least_s and self._dumping is None and not self._snapshots.busy:
                self._dumping = memory, Dumping(memory.next_offset, memory.states, memory.ended, memory.in_force)
                memory.folded = 0

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        """Write the timer facts that are due at broker time `now_us`. Returns when the next one is."""
        self._now_us = now_us
        nearest_us: int | None = None
        for memory in self._memories.values():
            due_us = memory.next_due_us
            if due_us is None:
                continue
            if due_us <= now_us:
                # What looks overdue may be done further down the log: look there first.
                if memory.seen_us >= due_us or caught_up(memory.partition):
                    self._fire(memory, now_us)
                    due_us = memory.next_due_us or now_us + CATCHING_UP_US
                else:
                    due_us = now_us + CATCHING_UP_US
            nearest_us = due_us if nearest_us is None else min(nearest_us, due_us)
        now_s = time.monotonic()
        if now_s >= self._gauges_due_s:
            self._gauges_due_s = now_s + GAUGES_INTERVAL_S
            telemetry.WORKFLOWS_OPEN.set(sum(len(m.states) for m in self._memories.values()))
            telemetry.RECORDS_QUEUED.set(len(self._intake))
            telemetry.INTERVENTIONS_OPEN.set(sum(len(m.waiting_for_human) for m in self._memories.values()))
        if now_s >= self._strays_due_s:
            self._strays_due_s = now_s + STRAYS_INTERVAL_S
            for memory in self._memories.values():
                memory.forget_strays()
        if self._dumping is not None:
            self._go_on_dumping(*self._dumping)
            again_us = now_us + DUMP_PAUSE_US
            nearest_us = again_us if nearest_us is None else min(nearest_us, again_us)
        return nearest_us

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        """Leave a snapshot to the next owner."""
        for partition in partitions:
            memory = self._memories.get(partition)
            under_way = self._dumping is not None and self._dumping[0] is memory
            if memory is not None and (memory.folded or under_way) and not self._intake.waits_in(partition):
                states = memory.states.values()
                self._snapshots.save(partition, memory.next_offset, states, memory.ended, memory.in_force)
        self._snapshots.settle(deadline)
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget; the new owner derives it all again."""
        for partition in partitions:
            self._forget(partition)
            self._snapshot_due_s.pop(partition, None)

    def close(self) -> None:
        """Let go of the producer and the snapshot threads."""
        self._outbox.close()
        self._snapshots.close()

    def _read(self, memory: Memory, message: Message) -> Record | None:
        """The record, if the engine has a use for it; one that cannot be read is set aside."""
        try:
            record = admit(self._codec, raw(message.key()), raw(message.value()))
            if isinstance(record, Command):
                raise AdmissionError("wrong_topic", f"{type(record).__name__} is a command, this is the event topic")
        except PoisonError as error:
            if (message.offset() or 0) >= memory.effects_from:
                self._set_aside(message, error, STAGE_DECODE)
            return None
        if isinstance(record, Unknown):
            _processed(ROLE, "unknown_type").inc()
            return None
        return record

    def _fold(self, memory: Memory, entry: Entry, record: Record) -> None:
        message, offset = entry.message, entry.offset
        live = offset >= memory.effects_from
        timestamp_us = message.timestamp()[1] * 1000
        memory.log_us = max(memory.log_us, timestamp_us)
        event = self._inspection.inspector.deliver(record, memory.partition, offset, timestamp_us)
        if self._dumping is not None and self._dumping[0] is memory:
            self._dumping[1].spare(record.workflow_id)
        try:
            state = evolve(memory.get(record.workflow_id, record.workflow_type), event)
            effects = decide(state, event, *entry.in_force)
        except MemoryError:
            raise  # no fault of the record: who takes over may have room
        except Exception as error:  # a defect of ours on one record must not stop the partition's other workflows
            self._log.error("not applicable", partition=memory.partition, offset=offset, error=error)
            if live:
                self._set_aside(message, error, STAGE_APPLY)
            return
        if type(record) is TimerFired and timestamp_us < record.due_at:
            memory.unfire(record.event_id)
        memory.keep(state)
        _processed(ROLE, "folded" if live else "replayed").inc()
        if live:
            self._observe(event)
            if effects:
                trace = trace_of(headers_of(message)) or memory.traces.get(record.workflow_id)
                memory.follow(state, trace)
                self._sending.act(effects, memory.partition, trace)

    def _note_policy(self, memory: Memory, event: Delivered) -> None:
        _processed(ROLE, "control").inc()
        record = event.record
        if type(record) is not PolicyChanged or event.offset < memory.effects_from:
            return
        if memory.in_force.refused:
            self._log.error("policy refused", partition=memory.partition, reason=memory.in_force.refused)
        elif memory.in_force.sequence == record.sequence:
            self._log.info(
                "policy in force", partition=memory.partition, policy=record.policy_version, sequence=record.sequence
            )

    def _fire(self, memory: Memory, now_us: int) -> None:
        for state in memory.take_due(now_us, TIMERS_PER_TICK_MAX):
            if self._intake.waits(memory.partition, state.workflow_id):
                continue  # what waits may have done what looks overdue; its timer is set anew then
            for fact in due(state, memory.in_force.policy, now_us):
                if memory.first_fired(fact.event_id):
                    telemetry.TIMERS.labels(fact.kind).inc()
                    self._sending.append(fact, memory.partition, memory.traces.get(state.workflow_id))

    def _set_aside(self, message: Message, error: Exception, stage: str) -> None:
        _processed(ROLE, "dead_letter").inc()
        set_aside(self._outbox, message, error, stage)

    def _observe(self, event: Delivered) -> None:
        record = event.record
        if type(record) is WorkflowErrorOccurred:
            waited_s = (self._now_us - event.timestamp_us) / 1e6
            telemetry.DETECTION_SECONDS.labels("reported").observe(max(0.0, waited_s))
        elif type(record) is TimerFired:
            waited_s = (event.timestamp_us - record.due_at) / 1e6
            telemetry.DETECTION_SECONDS.labels("timer").observe(max(0.0, waited_s))
        elif type(record) is RecoveryAttemptFinished:
            telemetry.RECOVERY_ATTEMPTS.labels(record.strategy, record.outcome).inc()
            telemetry.RECOVERY_SECONDS.labels(record.strategy).observe(record.duration_ms / 1000)
        elif type(record) is CheckpointRejected:
            telemetry.STATE_FAILURES.labels(record.reason if record.reason in REASONS else "other").inc()

    def _go_on_dumping(self, memory: Memory, dumping: Dumping) -> None:
        """Take some more states into the snapshot under way; write it when all are taken."""
        if self._memories.get(memory.partition) is not memory:
            self._dumping = None  # the partition is another's, or was emptied
        elif dumping.take(DUMP_STATES):
            self._dumping = None
            self._snapshots.write(memory.partition, dumping)
            pause_s = max(SNAPSHOT_INTERVAL_S, dumping.held_up_s / SNAPSHOT_SHARE_MAX)
            self._snapshot_due_s[memory.partition] = time.monotonic() + pause_s
