"""The one loop around every role: poll, drain, handle, flush, commit.

It guarantees that each record of an assigned partition is handled in order at least once, that a position is committed
only after the handler said that everything before it is durable, and that a position is never guessed: a stored offset
that the log no longer holds stops the process (FatalError) instead of jumping. It does not guarantee exactly once;
handlers make repeated effects harmless.

A partition in trouble is paused and taken up again after a growing delay; the loop goes on polling for the others, so
the member stays in its group however long the trouble lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from schemas.errors import FatalError, FencedError, KintsugiError, RetriableError

from . import telemetry
from .clock import BrokerClock
from .crash import crash_point
from .deadline import Deadline
from .handler import Handler, OwnPosition, Pipelined
from .kafka import MAX_POLL_INTERVAL_MS, Reporter, describe, is_incremental, passes
from .lag import forget_lag, show_lag
from .positions import check_group, check_stored, look_up
from .slots import Slot

#: Sweet spot of librdkafka's batches; also bounds the time between two polls.
BATCH_RECORDS_MAX = 500
#: A batch of checkpoints can be large: no more than this is taken from the client at once.
BATCH_BYTES_MAX = 16 * 1024 * 1024
#: How long a poll may wait: a stop is noticed, and the heartbeat metric moves, at least this often.
HEARTBEAT_S = 0.25
#: Commits are only a bookmark, effects are idempotent: not more often than this.
COMMIT_INTERVAL_S = 0.05
#: Share of max.poll.interval.ms that a revoke or a stop may take for snapshots and the last commit.
HANDOVER_S = 0.2 * MAX_POLL_INTERVAL_MS / 1000
#: And for what was taken in and is not handled yet. What is left after that is the next owner's to read.
DRAIN_S = 5.0
#: The last commit gets at least this long, whatever the rest took.
COMMIT_FLOOR_S = 2.0
LAG_INTERVAL_S = 1.0
#: Shortest wait for a timer, so that rounding cannot make the loop spin.
WAIT_S_MIN = 0.001


class Loop:
    """Runs one handler as a member of a consumer group on one topic."""

    def __init__(
        self,
        role: str,
        topic: str,
        settings: Mapping[str, Any],
        handler: Handler,
        clock: BrokerClock,
        *,
        batch_records_max: int = BATCH_RECORDS_MAX,
    ) -> None:
        self._role = role
        self._topic = topic
        self._handler = handler
        self._own = handler if isinstance(handler, OwnPosition) else None
        self._pipelined = handler if isinstance(handler, Pipelined) else None
        self._clock = clock
        self._batch_records_max = batch_records_max
        self._incremental = is_incremental(settings)
        self._slots: dict[int, Slot] = {}
        self._stopping = False
        self._failure: BaseException | None = None
        self._next_commit_s = 0.0
        self._next_lag_s = 0.0
        self._log = telemetry.log()
        self._consumer = Consumer({**settings, "error_cb": Reporter(), "on_commit": self._on_commit})

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. May be called from a signal handler or another thread."""
        self._stopping = True

    def run(self) -> None:
        """Run until `stop`. FatalError when going on would do harm; nothing unflushed is ever committed."""
        try:
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._stopping:
                self._round()
            self._hand_over(list(self._slots))
        finally:
            self._slots.clear()
            self._consumer.close()

    def _round(self) -> None:
        now_us = self._clock.now_us()
        due_us = self._handler.tick(now_us, self._caught_up)
        messages = self._fetch_early()
        working = bool(messages) or self._backlog > 0
        self._settle({}, wait=not working)
        self._note_durable()
        if not working:
            messages = self._fetch(self._wait_s(due_us, now_us))
        if self._failure is not None:
            raise self._failure
        if messages or working:
            crash_point("after_poll")
            self._process(messages)
        self._restart_waiting()
        self._commit()
        self._observe()

    @property
    def _backlog(self) -> int:
        return 0 if self._pipelined is None else self._pipelined.backlog

    def _fetch_early(self) -> list[Message]:
        """With work left, or effects on their way, what has arrived meanwhile; it comes first."""
        handler = self._pipelined
        if handler is None or handler.full or not (handler.on_its_way or handler.backlog):
            return []
        return self._fetch(0.0)

    def _wait_s(self, due_us: int | None, now_us: int) -> float:
        wait_s = HEARTBEAT_S
        if due_us is not None:
            wait_s = min(wait_s, (due_us - now_us) / 1_000_000)
        if any(slot.dirty for slot in self._slots.values()):
            wait_s = min(wait_s, self._next_commit_s - time.monotonic())
        return max(WAIT_S_MIN, wait_s)

    def _fetch(self, wait_s: float) -> list[Message]:
        """The next record as soon as there is one, and with it whatever else has arrived, within the bounds."""
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        batch = [first]
        size_bytes = len(first)
        # Not consume(n, timeout): it waits to fill n (KNOWLEDGE.md). In slices, so that large records stay bounded.
        while len(batch) < self._batch_records_max and size_bytes < BATCH_BYTES_MAX:
            more = self._consumer.consume(min(64, self._batch_records_max - len(batch)), 0)
            if not more:
                break
            batch += more
            size_bytes += sum(len(m) for m in more)
        return batch

    def _process(self, messages: list[Message]) -> None:
        started_s = time.perf_counter()
        per_partition: dict[int, list[Message]] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_error(error, message)
                continue
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None
            slot = self._slots.get(partition)
            # Rebalances happen inside poll: what came before one may be ours no longer, or be fetched again.
            if slot is not None and slot.active and offset >= slot.next_offset:
                slot.next_offset = offset + 1
                slot.timestamp_ms = message.timestamp()[1]
                per_partition.setdefault(partition, []).append(message)
        failures: dict[int, KintsugiError] = {}
        for partition, batch in per_partition.items():
            try:
                self._handler.handle(partition, batch)
            except (RetriableError, FencedError) as error:
                failures[partition] = error
        if self._pipelined is not None:
            failures.update(self._pipelined.work())
        crash_point("after_append")
        self._settle(failures, wait=self._pipelined is None)
        if self._own is None and self._pipelined is None:
            crash_point("after_flush")
            for partition in per_partition:
                slot = self._slots.get(partition)
                if slot is not None and slot.active:
                    self._done(slot, slot.next_offset)
        self._note_durable()
        count = sum(len(batch) for batch in per_partition.values())
        if count and self._pipelined is None:
            telemetry.PROCESSING_SECONDS.labels(self._role).observe((time.perf_counter() - started_s) / count)

    def _note_durable(self) -> None:
        """What a handler has stored by itself, or what has arrived of its effects, may be committed."""
        if self._own is not None:
            durable: Callable[[int], int | None] = self._own.stored
        elif self._pipelined is not None:
            durable = self._pipelined.durable
        else:
            return
        for slot in list(self._slots.values()):
            if slot.active and (offset := durable(slot.partition)) is not None and offset > slot.processed:
                crash_point("after_flush")
                self._done(slot, offset)

    def _done(self, slot: Slot, offset: int) -> None:
        slot.done(offset)
        self._handler.committed(slot.partition, offset)

    def _settle(self, failures: dict[int, KintsugiError], *, wait: bool = True) -> None:
        """Flush, or hear without waiting what has become of effects; put every partition that lost some aside."""
        if wait or self._pipelined is None:
            failures = {**self._handler.flush(), **failures}
        else:
            failures = {**self._pipelined.poll(), **failures}
        for partition, error in failures.items():
            if isinstance(error, FencedError):
                self._drop(partition, error)
            elif isinstance(error, RetriableError):
                self._wait(partition, error)
            else:
                raise error

    def _drop(self, partition: int, error: FencedError) -> None:
        slot = self._slots.get(partition)
        if slot is None:
            return
        telemetry.FENCED_WRITES.labels(self._role).inc()
        self._log.warning("partition fenced", partition=partition, error=error)
        self._handler.lost([partition])
        # Still assigned by the group: another owner may be a zombie, so it is taken up again after a while.
        slot.wait(slot.failures + 1)
        self._consumer.pause([self._at(partition)])

    def _wait(self, partition: int, error: RetriableError) -> None:
        slot = self._slots.get(partition)
        if slot is None:
            return
        slot.wait(slot.failures + 1)
        telemetry.BACKOFFS.labels(self._role).inc()
        self._log.warning("partition waits", partition=partition, seconds=round(slot.delay_s, 2), error=error)
        self._consumer.pause([self._at(partition)])

    def _restart_waiting(self) -> None:
        now_s = time.monotonic()
        for slot in list(self._slots.values()):
            if slot.active or now_s < slot.resume_at_s:
                continue
            try:
                start = self._start_of(slot)
                if slot.stopped:
                    self._assign_anew(slot, start)
                else:
                    self._consumer.seek(self._at(slot.partition, start))
                self._consumer.resume([self._at(slot.partition)])
            except RetriableError as error:
                self._wait(slot.partition, error)
            except FencedError as error:
                self._drop(slot.partition, error)
            except KafkaException as error:
                self._wait(slot.partition, RetriableError(describe(error.args[0])))
            else:
                slot.active = True
                self._log.info("partition goes on", partition=slot.partition, offset=start)

    def _assign_anew(self, slot: Slot, start: int) -> None:
        place = self._at(slot.partition, start)
        if self._incremental:
            self._consumer.incremental_unassign([self._at(slot.partition)])
            self._consumer.incremental_assign([place])
        else:
            others = [s for s in self._slots.values() if s is not slot]
            self._consumer.assign([place, *(self._at(s.partition, s.next_offset) for s in others)])
            waiting = [self._at(s.partition) for s in others if not s.active]
            if waiting:
                self._consumer.pause(waiting)
        slot.stopped = False

    def _start_of(self, slot: Slot) -> int:
        """Ask group, log and handler where to begin: an offset that the log holds, or the process ends."""
        log = look_up(self._consumer, self._topic, slot.partition)
        slot.look(log.low, log.high, log.committed)
        if self._own is None:
            check_group(self._topic, log)
        wanted = self._handler.assigned(log)
        start = wanted if wanted is not None else log.committed if log.committed is not None else log.low
        if start > log.high:
            # While the handler was asked, another owner may have gone on beyond what was the end of the log before.
            log = look_up(self._consumer, self._topic, slot.partition)
        check_stored(self._topic, log, start)
        slot.begin(start, log.committed)
        show_lag(self._role, self._topic, slot)
        return start

    def _on_assign(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        telemetry.REBALANCES.labels(self._role, "assigned").inc()
        places, waiting = [], []
        for item in partitions:
            slot = self._slots[item.partition] = Slot(item.partition)
            try:
                places.append(self._at(item.partition, self._start_of(slot)))
                slot.active = True
            except RetriableError as error:
                slot.wait(1)
                self._log.warning("partition waits", partition=item.partition, error=error)
            except FencedError as error:
                slot.wait(1)
                self._log.warning("partition fenced", partition=item.partition, error=error)
            except Exception as error:  # raised again by the loop: what a callback raises would be lost
                self._failure = self._failure or error
                slot.wait(1)
            if not slot.active:
                # A number: OFFSET_BEGINNING would be looked up, and the answer would undo the seek that comes later.
                waiting.append(self._at(item.partition, 0))
        if self._incremental:
            consumer.incremental_assign(places + waiting)
        else:
            consumer.assign(places + waiting)
        # The client keeps a pause for ever: one that left while it waited would come back and never be read again.
        consumer.resume(places)
        if waiting:
            consumer.pause([self._at(tp.partition) for tp in waiting])
        self._log.info("partitions assigned", partitions={p.partition: p.offset for p in places})
        telemetry.PARTITIONS.labels(self._role).set(len(self._slots))

    def _on_revoke(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        telemetry.REBALANCES.labels(self._role, "revoked").inc()
        try:
            self._hand_over([tp.partition for tp in partitions])
        except Exception as error:
            self._failure = self._failure or error
        # The client takes the assignment back by itself, in the way of the group's protocol.

    def _on_lost(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        telemetry.REBALANCES.labels(self._role, "lost").inc()
        gone = [tp.partition for tp in partitions if self._slots.pop(tp.partition, None) is not None]
        self._log.warning("partitions lost", partitions=gone)
        self._handler.lost(gone)
        telemetry.PARTITIONS.labels(self._role).set(len(self._slots))

    def _hand_over(self, partitions: Sequence[int]) -> None:
        """Save, commit and let go, all within one deadline. Partitions in trouble are only let go."""
        deadline = Deadline(HANDOVER_S)
        if self._pipelined is not None and self._failure is None:
            enough = Deadline(DRAIN_S)
            while self._pipelined.backlog and not enough.passed:
                self._settle(dict(self._pipelined.work()), wait=False)
            self._settle({})
            self._note_durable()
        mine = [p for p in partitions if p in self._slots]
        sound = [p for p in mine if self._slots[p].active]
        if self._failure is None and sound:
            self._handler.revoked(sound, deadline)
            self._note_durable()
            self._commit_now([self._slots[p] for p in sound], deadline)
        self._handler.lost([p for p in mine if p not in sound or self._failure is not None])
        for partition in mine:
            self._forget(partition)
        self._log.info("partitions handed over", partitions=sound)

    def _forget(self, partition: int) -> None:
        del self._slots[partition]
        forget_lag(self._role, self._topic, partition)
        telemetry.PARTITIONS.labels(self._role).set(len(self._slots))

    def _commit(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_commit_s:
            return
        dirty = [slot for slot in self._slots.values() if slot.dirty]
        if not dirty:
            return
        self._next_commit_s = now_s + COMMIT_INTERVAL_S
        try:
            self._consumer.commit(offsets=[self._at(s.partition, s.processed) for s in dirty], asynchronous=True)
        except KafkaException as error:
            self._log.warning("commit", error=describe(error.args[0]))
            return
        for slot in dirty:
            slot.saved()
        crash_point("after_commit")

    def _commit_now(self, slots: Sequence[Slot], deadline: Deadline) -> None:
        offsets = [self._at(s.partition, s.processed) for s in slots if s.processed > s.committed]
        while offsets:
            try:
                self._consumer.commit(offsets=offsets, asynchronous=False)
                return
            except KafkaException as error:
                code = error.args[0]
                if not code.retriable() or deadline.left_s(floor_s=0) == 0:
                    # The next owner does the tail again; its effects have the same ids.
                    self._log.warning("last commit", error=describe(code))
                    return
                time.sleep(0.05)

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        if error is not None and error.code() != KafkaError._NO_OFFSET:
            self._log.warning("commit", error=describe(error))
            for tp in partitions:
                slot = self._slots.get(tp.partition)
                if slot is not None:
                    slot.unsaved(tp.offset)

    def _on_error(self, error: KafkaError, message: Message) -> None:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            partition = message.partition()
            if self._own is not None and partition in self._slots:
                # Retention was faster. Its own store says what that means, when the partition is taken up again.
                self._slots[partition].stopped = True
                self._wait(partition, RetriableError(f"the position is outside the log: {error.str()}"))
                return
            raise FatalError(
                f"{self._topic}[{message.partition()}]: the position is outside the log: {error.str()}",
                hint="records were deleted before they were processed; check the retention",
            )
        if not passes(error):
            raise FatalError(f"{self._topic}: {describe(error)}")
        self._log.warning("poll", error=describe(error))

    def _caught_up(self, partition: int) -> bool:
        slot = self._slots.get(partition)
        if slot is None or not slot.active:
            return False
        try:
            _, high = self._consumer.get_watermark_offsets(self._at(partition), cached=True)
        except KafkaException:
            return False
        return bool(high <= slot.next_offset)

    def _observe(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_lag_s:
            return
        self._next_lag_s = now_s + LAG_INTERVAL_S
        telemetry.HEARTBEAT.labels(self._role).set_to_current_time()
        for slot in self._slots.values():
            try:
                _, high = self._consumer.get_watermark_offsets(self._at(slot.partition), cached=True)
            except KafkaException:
                continue
            # Nothing is fetched while a partition waits, and the client's end of the log stands still with it.
            slot.high = max(slot.high, high)
            show_lag(self._role, self._topic, slot)

    def _at(self, partition: int, offset: int = OFFSET_INVALID) -> TopicPartition:
        return TopicPartition(self._topic, partition, offset)
