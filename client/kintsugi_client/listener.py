"""Receives commands, at most once each.

A command's offset is committed before the command is accepted, and its acceptance is confirmed in the log before it is
carried out: a crash loses a command (the engine notices and decides anew), it never runs one twice. A repeated id is
recognised by the partition itself, read back on assignment as far as a command can still be valid; it is acknowledged
again and not carried out. Expiry is judged by the broker's time of the acceptance, so no clock needs to be right.

A workflow may run in one process while its commands go to another of the group. So each process also watches the
partitions that are not its own, and lets go of a workflow for which a command appears there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from ._schemas.codec import Codec
from ._schemas.errors import DecodeError, RetriableError
from ._schemas.headers import trace_of
from ._schemas.records import Command
from ._schemas.topics import COMMANDS

#: No command is valid for longer (the policy's limit), so none older needs to be remembered.
COMMAND_EXPIRY_MAX_S = 900
#: Command ids remembered; beyond it the oldest are forgotten.
LEDGER_MAX = 200_000
_POLL_S = 0.2
_LOOKUP_S = 10.0
_READ_BACK_S = 30.0

log = logging.getLogger("kintsugi_client")

#: What is done with a new command, and with one seen before.
Accept = Callable[[Command, str | None], None]
Repeat = Callable[[Command, str | None, str], None]


class Listener:
    """The thread that reads `workflow.commands` as a member of the service's group."""

    def __init__(
        self,
        config: Mapping[str, Any],
        codec: Codec,
        accept: Accept,
        repeat: Repeat,
        elsewhere: Callable[[str], None],
        wanted: Callable[[str], bool],
    ) -> None:
        self._config = {
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 1_500,
            "fetch.wait.max.ms": 50,
            "log_level": 3,
            **config,
        }
        if self._config.get("group.protocol") == "consumer":
            for key in ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"):
                self._config.pop(key)
        self._codec = codec
        self._accept = accept
        self._repeat = repeat
        self._elsewhere = elsewhere
        self._wanted = wanted
        self._mine: set[int] = set()
        self._ledger: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self.unreadable = 0
        self._consumer = Consumer(self._config)
        self._watching = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="kintsugi-commands", daemon=True),
            threading.Thread(target=self._watch, name="kintsugi-watch", daemon=True),
        ]

    def start(self) -> None:
        """Begin to listen."""
        for thread in self._threads:
            thread.start()

    def ready(self, timeout_s: float) -> bool:
        """Wait for the first assignment of partitions."""
        deadline = time.monotonic() + timeout_s
        return self._ready.wait(timeout_s) and self._watching.wait(max(0.0, deadline - time.monotonic()))

    def settle(self, command_id: str, status: str) -> None:
        """Remember how a command ended, for when its id comes again."""
        with self._lock:
            self._ledger[command_id] = status
            while len(self._ledger) > LEDGER_MAX:
                self._ledger.popitem(last=False)

    def close(self) -> None:
        """Leave the group; commands that were not accepted yet go to another member."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        self._consumer.subscribe(
            [COMMANDS], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )
        try:
            while not self._stopping.is_set():
                message = self._consumer.poll(_POLL_S)
                if message is None:
                    continue
                error = message.error()
                if error is not None:
                    log.warning("commands: %s", error.str())
                    continue
                self._receive(message)
        except Exception:
            log.exception("the command listener ended")
        finally:
            self._consumer.close()

    def _watch(self) -> None:
        """Look at every command, for those that go to other processes."""
        watcher = Consumer({**self._without_group(), "group.id": "kintsugi-watch-unused"})
        try:
            places = self._ends(watcher)
            watcher.assign(places)
            self._watching.set()
            while not self._stopping.is_set():
                message = watcher.poll(_POLL_S)
                if message is not None and message.error() is None and message.partition() not in self._mine:
                    self._give_away(message)
        except Exception:
            log.exception("the watch over other processes' commands ended")
        finally:
            watcher.close()

    def _ends(self, watcher: Consumer) -> list[TopicPartition]:
        while not self._stopping.is_set():
            try:
                count = len(watcher.list_topics(COMMANDS, _LOOKUP_S).topics[COMMANDS].partitions)
                places = [TopicPartition(COMMANDS, partition) for partition in range(count)]
                ends = [watcher.get_watermark_offsets(place, _LOOKUP_S)[1] for place in places]
                return [TopicPartition(COMMANDS, p.partition, end) for p, end in zip(places, ends, strict=True)]
            except KafkaException as error:
                log.warning("commands: %s", error.args[0].str())
                self._stopping.wait(_POLL_S)
        return []

    def _give_away(self, message: Message) -> None:
        key = message.key()
        if not isinstance(key, bytes):
            return
        try:
            self._elsewhere(key.decode("utf-8", "replace"))
        except Exception:
            log.exception("a workflow that another process has could not be let go")

    def _receive(self, message: Message) -> None:
        if not self._commit(message):
            self._give_away(message)
            return
        command = self._decode(message)
        if command is None or not self._wanted(command.workflow_type):
            return
        trace = trace_of(message.headers())  # type: ignore[arg-type]
        with self._lock:
            before = self._ledger.get(command.command_id)
        try:
            if before is not None:
                self._repeat(command, trace, before)
            else:
                self.settle(command.command_id, "unknown")
                self._accept(command, trace)
        except Exception:
            log.exception("command %s could not be taken up", command.command_id)

    def _commit(self, message: Message) -> bool:
        """Commit past this command. Without it nothing is carried out: it will come again."""
        place = TopicPartition(COMMANDS, message.partition() or 0, (message.offset() or 0) + 1)
        while not self._stopping.is_set():
            try:
                self._consumer.commit(offsets=[place], asynchronous=False)
                return True
            except KafkaException as error:
                if not error.args[0].retriable():
                    log.warning("command not taken up, its partition has moved: %s", error.args[0].str())
                    return False
                time.sleep(_POLL_S)
        return False

    def _decode(self, message: Message) -> Command | None:
        while not self._stopping.is_set():
            try:
                record = self._codec.decode(message.value())
                return record if isinstance(record, Command) else None
            except DecodeError as error:
                self.unreadable += 1
                log.warning("unreadable command at %s@%s: %s", message.partition(), message.offset(), error)
                return None
            except RetriableError as error:
                log.warning("command waits: %s", error)
                time.sleep(_POLL_S)
        return None

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            starts = []
            oldest_ms = int((time.time() - COMMAND_EXPIRY_MAX_S) * 1000)
            asked = [TopicPartition(COMMANDS, p.partition, oldest_ms) for p in partitions]
            recent = {p.partition: p.offset for p in consumer.offsets_for_times(asked, timeout=_LOOKUP_S)}
            for place in consumer.committed(partitions, timeout=_LOOKUP_S):
                low, high = consumer.get_watermark_offsets(place, timeout=_LOOKUP_S)
                first = recent.get(place.partition, -1)
                first = high if first < 0 else max(low, first)
                start = min(max(place.offset, low), high) if place.offset >= 0 else first
                self._read_back(place.partition, first, start)
                starts.append(TopicPartition(COMMANDS, place.partition, start))
            self._mine.update(place.partition for place in starts)
            consumer.incremental_assign(starts)
            self._ready.set()
        except KafkaException as error:
            # Without the ledger nothing may be carried out; the group gives the partitions again.
            log.error("commands not assigned: %s", error.args[0].str())
            consumer.incremental_assign([])
            consumer.unsubscribe()
            consumer.subscribe(
                [COMMANDS], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )

    def _read_back(self, partition: int, first: int, end: int) -> None:
        """Remember the ids of commands received before; those of other processes took their workflows from here."""
        if first >= end:
            return
        reader = Consumer({**self._without_group(), "group.id": "kintsugi-ledger-unused"})
        try:
            reader.assign([TopicPartition(COMMANDS, partition, first)])
            deadline = time.monotonic() + _READ_BACK_S
            offset = first
            while offset < end and time.monotonic() < deadline:
                message = reader.poll(_POLL_S)
                if message is None or message.error() is not None:
                    continue
                offset = (message.offset() or 0) + 1
                command = self._decode(message) if offset <= end else None
                if command is not None:
                    with self._lock:
                        known = command.command_id in self._ledger
                    if not known:
                        self.settle(command.command_id, "unknown")
                        self._give_away(message)
        finally:
            reader.close()

    def _without_group(self) -> dict[str, Any]:
        own = ("group.", "session.", "heartbeat.", "partition.")
        return {name: value for name, value in self._config.items() if not name.startswith(own)}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._mine.difference_update(p.partition for p in partitions)
        consumer.incremental_unassign(partitions)
