"""The notifier role: reads incidents from the log, tells people, and writes into the log that they were told.

A partition is always read from its beginning, with nothing told before its end is reached: what is in the log is then
known, from whichever owner. Deliveries are made by threads (`courier`), so the loop never waits for a channel. A fact
is written after a delivery; the notification is settled when the fact is read back. A crash in between tells it again:
PagerDuty takes that as the same page, Slack and e-mail show it twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue

from confluent_kafka import Message

from schemas.admission import admit
from schemas.codec import WRITERS_MAX, Codec
from schemas.errors import KintsugiError, PoisonError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records.events import IncidentChanged, NotificationDelivered
from schemas.topics import EVENTS

from .. import telemetry
from ..clock import BrokerClock
from ..crash import crash_point
from ..dead_letter import raw
from ..deadline import Deadline
from ..handler import LogRange
from ..outbox import Outbox
from .channels import Channel
from .courier import DELIVERED, GIVEN_UP, RECALLED, Courier, Pace, Result
from .memory import Memory, Notification
from .notice import RESOLVE, TRIGGER, notice_of

ROLE = "notifier"
PRODUCER = "kintsugi-notifier"
#: While something is on its way, results are looked for this often.
RESULTS_US = 50_000
#: At a handover, requests in the middle get this long to end, so that they are not made again by the next owner.
HANDOVER_S = 5.0
#: A log whose last places hold no records (a transaction's end) is read to its end when nothing came for so long.
QUIET_S = 30.0
NOT_CONFIGURED = "not configured here"
TOO_MANY = "too many messages wait for this channel"
_DETAIL_CHARS_MAX = 300
#: Labels of metrics; a policy may hold any other word.
_CHANNELS = frozenset({"slack", "email", "pagerduty"})
_KEYED = ("pagerduty",)


class Notifier:
    """Handler of the notifier role."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        codec: Codec,
        outbox: Outbox,
        clock: BrokerClock,
        pace: Pace | None = None,
    ) -> None:
        self._codec = codec
        self._outbox = outbox
        self._clock = clock
        self._keyed = [name for name, channel in channels.items() if channel.keyed]
        self._results: SimpleQueue[Result] = SimpleQueue()
        self._couriers = {name: Courier(channel, self._results.put, pace) for name, channel in channels.items()}
        self._memories: dict[int, Memory] = {}
        self._stored: dict[int, int] = {}
        self._read_at_s: dict[int, float] = {}
        #: Whether records with this beginning are read at all.
        self._read: dict[bytes, bool] = {}
        self._log = telemetry.log()

    def assigned(self, log: LogRange) -> int | None:
        """Read from the log's beginning; what stands before the group's position is not told again."""
        self.lost([log.partition])
        effects_from = log.low if log.committed is None or log.committed > log.high else log.committed
        memory = Memory(log.partition, effects_from=effects_from, high=log.high, keyed=self._keyed)
        memory.next_offset = log.low
        self._memories[log.partition] = memory
        self._read_at_s[log.partition] = time.monotonic()
        if log.low >= log.high:
            memory.go_live()
        return log.low

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Fold what concerns incidents, then begin to tell what follows."""
        memory = self._memories[partition]
        for message in messages:
            offset = message.offset()
            assert offset is not None
            value = raw(message.value())
            if value and self._concerns(value):
                self._fold(memory, message, value, offset)
            memory.next_offset = offset + 1
        self._read_at_s[partition] = time.monotonic()
        if not memory.live and memory.next_offset >= memory.high:
            memory.go_live()
        crash_point("after_fold")
        self._go_on(memory)

    def flush(self) -> Mapping[int, KintsugiError]:
        """Facts are in the log. A partition whose facts are not is read anew."""
        failed = self._outbox.flush()
        self.lost(list(failed))
        return failed

    def stored(self, partition: int) -> int:
        """Everything before this is settled: told or given up, with the fact in the log, or needless."""
        memory = self._memories.get(partition)
        if memory is not None:
            self._stored[partition] = memory.position
        return self._stored.get(partition, 0)

    def committed(self, partition: int, next_offset: int) -> None:
        """Nothing to do."""

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        """Write facts of what ended meanwhile."""
        self._collect()
        for memory in self._memories.values():
            if not memory.live:
                quiet_s = time.monotonic() - self._read_at_s[memory.partition]
                if quiet_s >= QUIET_S and caught_up(memory.partition):
                    memory.go_live()
            self._go_on(memory)
        for name, courier in self._couriers.items():
            telemetry.NOTIFICATIONS_WAITING.labels(name).set(len(courier))
        return now_us + RESULTS_US if any(len(courier) for courier in self._couriers.values()) else None

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        """Begin nothing more, let requests in the middle end, and leave their facts to the next owner."""
        mine = [self._memories[partition] for partition in partitions if partition in self._memories]
        for courier in self._couriers.values():
            for memory in mine:
                courier.forget(memory)
        patience = Deadline(min(HANDOVER_S, deadline.left_s()))
        while not patience.passed and any(c.is_trying(m) for c in self._couriers.values() for m in mine):
            time.sleep(0.02)
        self._collect()
        for partition, error in self._outbox.flush().items():
            self._log.warning("not noted at the handover", partition=partition, error=error)
        for memory in mine:
            self.stored(memory.partition)
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget; the next owner reads the log."""
        for partition in partitions:
            memory = self._memories.pop(partition, None)
            if memory is not None:
                for courier in self._couriers.values():
                    courier.forget(memory)
            self._read_at_s.pop(partition, None)

    def close(self) -> None:
        """Stop the threads and the producer."""
        for courier in self._couriers.values():
            courier.close()
        self._outbox.close()

    def _concerns(self, value: bytes) -> bool:
        """Whether a record is one of the two that are read here; told by the schema its first bytes name."""
        prefix = value[:5] if value[0] == 0 else value[:10]
        found = self._read.get(prefix)
        if found is None:
            try:
                record = self._codec.decode(value)
            except PoisonError:
                return False  # recovery sets it aside
            if len(self._read) >= WRITERS_MAX:
                self._read.clear()
            found = self._read[prefix] = isinstance(record, IncidentChanged | NotificationDelivered)
        return found

    def _fold(self, memory: Memory, message: Message, value: bytes, offset: int) -> None:
        try:
            record = admit(self._codec, raw(message.key()), value)
        except PoisonError:  # recovery sets it aside, and says why
            telemetry.EVENTS_PROCESSED.labels(ROLE, "unreadable").inc()
            return
        timestamp_us = message.timestamp()[1] * 1000
        if isinstance(record, IncidentChanged):
            memory.changed(record, offset, timestamp_us)
        elif isinstance(record, NotificationDelivered):
            courier = self._couriers.get(record.channel)
            if courier is not None and memory.wanted(record.notification_id) is not None:
                courier.recall(record.notification_id)  # told by another owner meanwhile
            memory.delivered(record, timestamp_us)
        telemetry.EVENTS_PROCESSED.labels(ROLE, "folded" if offset >= memory.effects_from else "replayed").inc()

    def _go_on(self, memory: Memory) -> None:
        if not memory.live:
            return
        for notification in list(memory.overtaken()):
            courier = self._couriers.get(notification.channel)
            tries = None if courier is None else courier.recall(notification.notification_id)
            if tries is not None:
                memory.returned(notification, tries)
        for notification in memory.take_next():
            self._tell(memory, notification)

    def _tell(self, memory: Memory, notification: Notification) -> None:
        courier = self._couriers.get(notification.channel)
        if courier is None:
            if notification.kind == TRIGGER:
                self._note(memory, notification, GIVEN_UP, 0, NOT_CONFIGURED)
            else:
                memory.drop(notification)
            return
        notice = notice_of(notification.record, notification.kind, notification.notification_id)
        if not courier.take(notice, memory, notification.tries):
            self._note(memory, notification, GIVEN_UP, notification.tries, TOO_MANY)

    def _collect(self) -> None:
        """Results of the couriers become facts."""
        while True:
            try:
                result = self._results.get_nowait()
            except Empty:
                return
            memory = result.tag
            if not isinstance(memory, Memory) or self._memories.get(memory.partition) is not memory:
                continue
            notification = memory.wanted(result.notification_id)
            if notification is None:
                continue
            if result.outcome == RECALLED:
                memory.returned(notification, result.tries)
                continue
            crash_point("after_write")
            self._note(memory, notification, result.outcome, result.tries, result.detail)

    def _note(self, memory: Memory, notification: Notification, outcome: str, tries: int, detail: str) -> None:
        cause = notification.record
        now_us = self._clock.now_us()
        fact = NotificationDelivered(
            event_id=derive_id(notification.notification_id, "delivered"),
            workflow_id=cause.workflow_id,
            workflow_type=cause.workflow_type,
            external_id=cause.external_id,
            correlation_id=cause.correlation_id,
            causation_id=cause.event_id,
            occurred_at=now_us,
            producer=PRODUCER,
            notification_id=notification.notification_id,
            incident_id=cause.incident_id,
            channel=notification.channel,
            kind=notification.kind,
            outcome=outcome,
            tries=tries,
            detail=detail[:_DETAIL_CHARS_MAX],
        )
        key, value = fact.workflow_id.encode(), self._codec.encode(fact)
        partition = memory.partition
        self._outbox.send(EVENTS, key, value, headers_for(fact), cause=partition, partition=partition)
        channel = notification.channel if notification.channel in _CHANNELS else "other"
        telemetry.NOTIFICATIONS.labels(channel, notification.kind, outcome).inc()
        incident_id, kind = cause.incident_id, notification.kind
        if outcome == DELIVERED:
            waited_s = max(0.0, (now_us - notification.timestamp_us) / 1e6)
            telemetry.NOTIFICATION_SECONDS.labels(channel).observe(waited_s)
            self._log.info("people told", incident_id=incident_id, channel=channel, kind=kind, tries=tries)
            return
        hint = "the page stays open there: close it by hand" if kind == RESOLVE else None
        self._log.error(
            "people not told",
            incident_id=incident_id,
            channel=channel,
            kind=kind,
            tries=tries,
            reason=detail,
            hint=hint,
        )
