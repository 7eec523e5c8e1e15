"""Receives commands, at most once each.

A command's offset is committed before the command is accepted, and its acceptance is confirmed in the log before it is
carried out: a crash loses a command (the engine notices and decides anew), it never runs one twice. A copy of a command
is recognised by its id, whoever received the first one: before a partition is taken over, every id in it that may still
be valid is known. Expiry is judged by the broker's time of the acceptance, so no clock needs to be right.

Most commands are carried out by the member that has their partition; it restores the workflow from the log, and a
process that held the workflow lets it go. To pause, to resume and to cancel a step is up to the process that holds the
workflow, whichever that is; when none does, nobody answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ._schemas.errors import KintsugiError
from ._schemas.records.commands import CancelStep, PauseWorkflow, ResumeWorkflow
from ._schemas.topics import COMMANDS
from .errors import NotDeliveredError
from .inbox import Inbox, Received
from .ledger import AGAIN, NEW, Ledger
from .outbox import Delivery
from .settings import Seldom, connected, describe_error
from .watch import LOOKUP_S, Watch

_POLL_S = 0.1
_RETRY_S = 0.2
_BATCH_MAX = 100
#: How long Kafka may take to confirm an acceptance; a command not confirmed by then is refused.
ACCEPT_TIMEOUT_S = 10.0
#: How long a commit is tried again while the coordinator is away; then the commands are fetched again.
COMMIT_PATIENCE_S = 5.0

#: Commands for the process that holds the workflow, whichever has its partition.
_OF_HOLDER = (PauseWorkflow, ResumeWorkflow, CancelStep)

_TRANSIENT = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)

log = logging.getLogger("kintsugi_client")


class Carrier(Protocol):
    """What is done with commands."""

    def holds(self, workflow_id: str) -> bool:
        """Whether the workflow is in this process."""

    def accept(self, received: Received) -> Delivery:
        """Say that the command is accepted; KintsugiError when that cannot even be buffered."""

    def refuse(self, received: Received, reason: str, *, expired: bool = False) -> None:
        """Say that the command failed."""

    def repeat(self, received: Received, status: str) -> None:
        """Say again how the command ended."""

    def carry_out(self, received: Received) -> None:
        """Begin to carry an accepted command out."""

    def given_away(self, received: Received) -> None:
        """Another process carries the command out; let go of what it takes over."""


class Listener:
    """The thread that reads `workflow.commands` as a member of the service's group."""

    def __init__(
        self, member: dict[str, Any], reader: dict[str, Any], inboxes: tuple[Inbox, Inbox], carrier: Carrier
    ) -> None:
        self._settings = member
        self._inbox = inboxes[0]
        self._carrier = carrier
        self.ledger = Ledger()
        self._watch = Watch(reader, inboxes[1], self.ledger, self._seen)
        self._lock = threading.Lock()
        self._mine: set[int] = set()
        #: Assigned, but not read before every id in them is known; by partition, when to look again.
        self._waiting: dict[int, float] = {}
        #: Where reading of a partition began.
        self._starts: dict[int, int] = {}
        #: Commands for workflows held here that the group should deliver here: by partition and id.
        self._expected: dict[int, dict[str, Received]] = {}
        #: Commands that the watch saw and that are this process's to carry out.
        self._handed: deque[Received] = deque()
        self._seldom = Seldom()
        self._stopping = threading.Event()
        self._assigned = False
        self._ready = threading.Event()
        self._consumer = connected(Consumer, self._settings)
        self._thread = threading.Thread(target=self._run, name="kintsugi-commands", daemon=True)

    @property
    def unreadable(self) -> int:
        """Commands that could not be read."""
        return self._inbox.unreadable

    def start(self) -> None:
        """Begin to listen."""
        self._watch.start()
        self._thread.start()

    def ready(self, timeout_s: float) -> bool:
        """Wait until the group has given this process its partitions and they are being read."""
        return self._ready.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Leave the group; commands that were not taken up yet go to another member."""
        self._stopping.set()
        deadline_s = time.monotonic() + timeout_s
        for close in (self._thread.join, self._watch.close):
            if self._thread.ident is not None:
                close(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        while True:
            try:
                self._listen(self._consumer)
            except KafkaException as error:
                log.error("commands: %s; listening begins anew", describe_error(error.args[0]))
            except Exception:
                log.exception("listening for commands begins anew")
            finally:
                self._close(self._consumer)
            if self._stopping.wait(_RETRY_S):
                return
            self._consumer = connected(Consumer, self._settings)

    def _close(self, consumer: Consumer) -> None:
        try:
            consumer.close()
        except Exception:
            log.exception("the group could not be left in order")
        self._gone(set(self._mine))

    def _listen(self, consumer: Consumer) -> None:
        consumer.subscribe([COMMANDS], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)
        while not self._stopping.is_set():
            self._prepare(consumer)
            first = consumer.poll(_POLL_S)
            messages = [] if first is None else [first, *consumer.consume(_BATCH_MAX - 1, 0)]
            self._take_up(self._committed(consumer, self._sound(messages)))
            self._take_up([self._handed.popleft() for _ in range(len(self._handed))])

    def _sound(self, messages: list[Message]) -> list[Message]:
        """Without errors, and without what belongs to partitions that are not read, or stands before their start."""
        sound, early = [], set()
        for message in messages:
            error, partition = message.error(), message.partition() or 0
            if error is None:
                if partition not in self._mine or partition in self._waiting:
                    continue
                if (message.offset() or 0) < self._starts.get(partition, 0):
                    early.add(partition)
                else:
                    sound.append(message)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET and partition in self._mine:
                # Records were deleted, or the topic was made anew. What can still be valid is read.
                log.error("commands: the position in partition %s is not in the log any more", partition)
                self._consumer.pause([TopicPartition(COMMANDS, partition)])
                self._waiting[partition] = time.monotonic()
            elif error.fatal():
                raise KafkaException(error)
            elif self._seldom.due(error.code()):
                log.warning("commands: %s", describe_error(error))
        for partition in early:
            # A seek that meets librdkafka's first lookup of an offset is lost: it reads from the beginning.
            self._seek(partition, self._starts[partition])
        return sound

    def _seek(self, partition: int, offset: int) -> None:
        try:
            self._consumer.seek(TopicPartition(COMMANDS, partition, offset))
        except KafkaException as error:
            log.warning("commands: %s", describe_error(error.args[0]))

    # -- at most once ---------------------------------------------------------------------------------------------

    def _committed(self, consumer: Consumer, messages: list[Message]) -> list[Received]:
        """Commands among the messages, once the group's position is past them; none of a partition that moved."""
        received = [self._inbox.read(message, self._stopping) for message in messages]
        if not messages or self._stopping.is_set():
            return []
        ends: dict[int, int] = {}
        starts: dict[int, int] = {}
        for message in messages:
            partition, offset = message.partition() or 0, message.offset() or 0
            ends[partition] = offset + 1
            starts.setdefault(partition, offset)
        refused = self._commit(consumer, ends)
        for partition in refused & self._mine:
            self._seek(partition, starts[partition])
        if refused:
            self._stopping.wait(_RETRY_S)
        mine = [r for r in received if r is not None and r.place[0] not in refused]
        return [r for r in mine if not isinstance(r.command, _OF_HOLDER)]  # see `_seen`

    def _commit(self, consumer: Consumer, ends: dict[int, int]) -> set[int]:
        """Partitions whose position could not be moved: they may have a new owner, nothing of them is carried out."""
        places = [TopicPartition(COMMANDS, partition, end) for partition, end in ends.items()]
        deadline_s = time.monotonic() + COMMIT_PATIENCE_S
        while not self._stopping.is_set():
            try:
                done = consumer.commit(offsets=places, asynchronous=False)
                return {p.partition for p in done or () if p.error is not None}
            except KafkaException as error:
                code = error.args[0]
                if self._seldom.due(code.code()):
                    log.warning("commands not taken up: %s", describe_error(code))
                if code.code() not in _TRANSIENT or time.monotonic() > deadline_s:
                    break
                self._stopping.wait(_RETRY_S)
        return set(ends)

    def _take_up(self, commands: list[Received]) -> None:
        """Tell copies from new commands; accept the new ones together, then carry out those that were in time."""
        accepted: list[tuple[Received, Delivery]] = []
        for received in commands:
            try:
                if self._is_new(received):
                    accepted.append((received, self._carrier.accept(received)))
            except KintsugiError as error:
                log.error("command %s not taken up: %s", received.command.command_id, error)
            except Exception:
                log.exception("command %s not taken up", received.command.command_id)
        deadline_s = time.monotonic() + ACCEPT_TIMEOUT_S
        for received, delivery in accepted:
            try:
                self._begin(received, delivery, deadline_s)
            except Exception:
                log.exception("command %s could not be begun", received.command.command_id)

    def _is_new(self, received: Received) -> bool:
        command = received.command
        try:
            with self._lock:
                self._expected.get(received.place[0], {}).pop(command.command_id, None)
                found = self.ledger.take(command.command_id, received.place, received.timestamp_ms, command.expires_at)
        except KintsugiError as error:
            self._carrier.refuse(received, str(error))
            return False
        if found == AGAIN:
            return False
        if found != NEW:
            self._carrier.repeat(received, found)
            return False
        if self.ledger.newest_us > command.expires_at:
            self._carrier.refuse(received, "expired before it arrived", expired=True)
            return False
        return True

    def _begin(self, received: Received, delivery: Delivery, deadline_s: float) -> None:
        while time.monotonic() < deadline_s and not self._stopping.is_set() and not delivery.known:
            delivery.wait_known(_POLL_S)
        try:
            delivery.check(ACCEPT_TIMEOUT_S)
        except NotDeliveredError as error:
            # The acceptance may still arrive; behind it this refusal does too, so nobody waits for an outcome.
            self._carrier.refuse(received, f"not carried out, its acceptance is not in the log: {error}")
            return
        if delivery.timestamp_us > received.command.expires_at:
            self._carrier.refuse(received, "expired before it could be accepted", expired=True)
            return
        self._carrier.carry_out(received)

    # -- what the watch sees --------------------------------------------------------------------------------------

    def _seen(self, received: Received, first: bool) -> None:
        command = received.command
        if not self._carrier.holds(command.workflow_id):
            return
        if isinstance(command, _OF_HOLDER):
            self._handed.append(received)
            return
        with self._lock:
            if not first or self.ledger.taken(command.command_id):
                return
            partition, offset = received.place
            if partition in self._mine and offset >= self._starts.get(partition, 0):
                self._expected.setdefault(partition, {})[command.command_id] = received
                return
        self._carrier.given_away(received)

    def _gone(self, partitions: set[int]) -> None:
        with self._lock:
            self._mine -= partitions
            away = [r for p in partitions for r in self._expected.pop(p, {}).values()]
            for partition in partitions:
                self._waiting.pop(partition, None)
                self._starts.pop(partition, None)
        self._give_away(away)

    def _give_away(self, commands: list[Received]) -> None:
        for received in commands:
            if not self.ledger.taken(received.command.command_id):
                self._carrier.given_away(received)

    # -- partitions -----------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # A number and not OFFSET_BEGINNING: librdkafka would look that up, and its answer would undo the seek that
        # `_prepare` does. Nothing is fetched from there.
        places = [TopicPartition(COMMANDS, p.partition, 0) for p in partitions]
        consumer.incremental_assign(places)
        if places:
            consumer.pause(places)
        with self._lock:
            self._mine |= {p.partition for p in partitions}
            self._waiting.update(dict.fromkeys((p.partition for p in partitions), 0.0))
        self._assigned = True

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._gone({p.partition for p in partitions})

    def _prepare(self, consumer: Consumer) -> None:
        """Read a partition from the group's position on, when all ids before it are known."""
        now_s = time.monotonic()
        for partition in [p for p, due_s in self._waiting.items() if due_s <= now_s]:
            try:
                start = self._start_of(consumer, partition)
                if start is None:
                    self._waiting[partition] = now_s + _POLL_S / 2
                    continue
                consumer.seek(TopicPartition(COMMANDS, partition, start))
                consumer.resume([TopicPartition(COMMANDS, partition)])
                del self._waiting[partition]
                self._begin_at(partition, start)
            except KafkaException as error:
                if self._seldom.due("waiting"):
                    log.warning("commands of partition %s wait: %s", partition, describe_error(error.args[0]))
                # Kafka is away: the others would only wait for their answers too.
                self._waiting.update(dict.fromkeys(self._waiting, time.monotonic() + _RETRY_S))
                return
        if self._assigned and not self._waiting:
            self._ready.set()

    def _begin_at(self, partition: int, start: int) -> None:
        """What stands before the position was another process's."""
        with self._lock:
            self._starts[partition] = start
            expected = self._expected.get(partition, {})
            away = [r for r in expected.values() if r.place[1] < start]
            for received in away:
                del expected[received.command.command_id]
        self._give_away(away)

    def _start_of(self, consumer: Consumer, partition: int) -> int | None:
        first = self._watch.first(partition)
        if first is None:
            return None
        place = consumer.committed([TopicPartition(COMMANDS, partition)], LOOKUP_S)[0]
        if place.error is not None:
            raise KafkaException(place.error)
        low, high = consumer.get_watermark_offsets(place, LOOKUP_S, cached=False)
        # A group that is new takes up what may still be valid.
        start = min(max(place.offset if place.offset >= 0 else first, low), high)
        return start if self._watch.reached(partition, start) else None
