"""Receives commands, at most once each.

A command's offset is committed before the command is accepted, and its acceptance is confirmed in the log before it is
carried out: a crash loses a command (the engine notices and decides anew), it never runs one twice. A repeated id is
recognised by the partition itself, read back on assignment as far as a command can still be valid; it is acknowledged
again and not carried out. Expiry is judged by the broker's time of the acceptance, so no clock needs to be right.
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
        revoked: Callable[[set[int]], None],
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
        self._revoked = revoked
        self._wanted = wanted
        self._ledger: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self.unreadable = 0
        self._consumer = Consumer(self._config)
        self._thread = threading.Thread(target=self._run, name="kintsugi-commands", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def ready(self, timeout_s: float) -> bool:
        """Wait for the first assignment of partitions."""
        return self._ready.wait(timeout_s)

    def settle(self, command_id: str, status: str) -> None:
        """Remember how a command ended, for when its id comes again."""
        with self._lock:
            self._ledger[command_id] = status
            while len(self._ledger) > LEDGER_MAX:
                self._ledger.popitem(last=False)

    def close(self) -> None:
        """Leave the group; commands that were not accepted yet go to another member."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

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

    def _receive(self, message: Message) -> None:
        if not self._commit(message):
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
        """Remember the ids of commands that were received before, here or by another process."""
        if first >= end:
            return
        config = {
            k: v
            for k, v in self._config.items()
            if not k.startswith(("group.", "session.", "heartbeat.", "partition."))
        }
        reader = Consumer({**config, "group.id": "kintsugi-ledger-unused"})
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
        finally:
            reader.close()

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._revoked({p.partition for p in partitions})
        consumer.incremental_unassign(partitions)
