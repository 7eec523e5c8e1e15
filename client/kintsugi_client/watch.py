"""Reads every command to this service, whoever is to carry it out.

A member of a group sees the commands of its own partitions only. This reader sees all: so a process knows the ids that
others have received before it takes over a partition of theirs, and learns that a workflow it holds was given to
another process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ._schemas.topics import COMMANDS
from .inbox import Inbox, Received
from .ledger import COMMAND_EXPIRY_MAX_MS, Ledger
from .settings import Seldom, connected, describe_error

LOOKUP_S = 5.0
_POLL_S = 0.2
_RETRY_S = 1.0
_BATCH_MAX = 500

log = logging.getLogger("kintsugi_client")


class Watch:
    """The thread that reads all partitions. Positions survive a reconnect; nothing is skipped."""

    def __init__(
        self, settings: dict[str, Any], inbox: Inbox, ledger: Ledger, seen: Callable[[Received, bool], None]
    ) -> None:
        self._settings = {**settings, "enable.partition.eof": True, "auto.offset.reset": "earliest"}
        self._inbox = inbox
        self._ledger = ledger
        self._seen = seen
        #: Per partition: the next offset to read, where reading began, and the end of the log at that time.
        self._next: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._live_from: dict[int, int] = {}
        self._seldom = Seldom()
        self._stopping = threading.Event()
        self._incomplete = False
        self._thread = threading.Thread(target=self._run, name="kintsugi-watch", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop reading."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def first(self, partition: int) -> int | None:
        """Offset of the oldest command that may still be valid; None while that is not known."""
        found = self._first.get(partition)
        self._incomplete = self._incomplete or found is None
        return found

    def reached(self, partition: int, offset: int) -> bool:
        """Whether every id before `offset` is in the ledger."""
        return self._next.get(partition, -1) >= offset

    def _run(self) -> None:
        while not self._stopping.is_set():
            consumer = connected(Consumer, self._settings)
            try:
                self._read(consumer)
            except KafkaException as error:
                if self._seldom.due(error.args[0].code()):
                    log.warning("commands cannot be watched: %s", describe_error(error.args[0]))
            except Exception:
                log.exception("the watch on commands begins anew")
            finally:
                consumer.close()
            self._stopping.wait(_RETRY_S)

    def _read(self, consumer: Consumer) -> None:
        self._assign(consumer)
        while not self._stopping.is_set():
            first = consumer.poll(_POLL_S)
            if self._incomplete:  # the topic has grown
                self._assign(consumer)
            if first is None:
                continue
            for message in [first, *consumer.consume(_BATCH_MAX, 0)]:
                error = message.error()
                if error is None:
                    self._take(message)
                elif error.fatal():
                    raise KafkaException(error)
                elif error.code() != KafkaError._PARTITION_EOF and self._seldom.due(error.code()):
                    log.warning("commands: %s", describe_error(error))

    def _take(self, message: Message) -> None:
        partition, offset = message.partition() or 0, message.offset() or 0
        if offset < self._next[partition]:  # the topic was made anew
            self._live_from[partition] = offset
        received = self._inbox.read(message, self._stopping)
        if received is not None:
            command = received.command
            first = self._ledger.saw(command.command_id, received.place, received.timestamp_ms, command.expires_at)
            if offset >= self._live_from[partition]:
                try:
                    self._seen(received, first)
                except Exception:
                    log.exception("command %s could not be looked at", command.command_id)
        if not self._stopping.is_set():
            self._next[partition] = offset + 1

    # -- where to begin -------------------------------------------------------------------------------------------

    def _assign(self, consumer: Consumer) -> None:
        """Read on where reading stopped; a partition not read so far begins at the oldest command that may be valid."""
        topic = consumer.list_topics(COMMANDS, LOOKUP_S).topics[COMMANDS]
        if topic.error is not None:
            raise KafkaException(topic.error)
        bounds = {p: self._bounds(consumer, p) for p in topic.partitions}
        fresh = {p: bounds[p] for p in bounds if p not in self._next}
        starts = self._starts(consumer, fresh)
        for partition, (low, high) in bounds.items():
            if partition in fresh:
                self._live_from[partition] = high
                self._first[partition] = self._next[partition] = starts[partition]
            else:  # after a reconnect; a topic that was made anew begins anew
                self._next[partition] = min(max(self._next[partition], low), high)
                self._live_from[partition] = min(self._live_from[partition], high)
        consumer.assign([TopicPartition(COMMANDS, p, offset) for p, offset in self._next.items()])
        self._incomplete = False

    def _bounds(self, consumer: Consumer, partition: int) -> tuple[int, int]:
        low, high = consumer.get_watermark_offsets(TopicPartition(COMMANDS, partition), LOOKUP_S, cached=False)
        return low, high

    def _starts(self, consumer: Consumer, bounds: dict[int, tuple[int, int]]) -> dict[int, int]:
        """Per partition: the first command whose id may come again. By the broker's time of the last one, not by ours:
        what comes later is later still."""
        filled = {p: high for p, (low, high) in bounds.items() if high > low}
        newest_ms = self._last_timestamps(consumer, filled)
        asked = [TopicPartition(COMMANDS, p, max(0, ms - COMMAND_EXPIRY_MAX_MS)) for p, ms in newest_ms.items()]
        starts = {p: high for p, (_, high) in bounds.items()}
        if asked:
            for place in consumer.offsets_for_times(asked, LOOKUP_S):
                if place.error is not None:
                    raise KafkaException(place.error)
                low, high = bounds[place.partition]
                starts[place.partition] = min(max(place.offset, low), high) if place.offset >= 0 else high
        return starts

    def _last_timestamps(self, consumer: Consumer, ends: dict[int, int]) -> dict[int, int]:
        """Broker time of the last record of each partition."""
        found: dict[int, int] = {}
        if not ends:
            return found
        consumer.assign([TopicPartition(COMMANDS, p, high - 1) for p, high in ends.items()])
        open_ = set(ends)
        deadline_s = time.monotonic() + LOOKUP_S
        while open_ and not self._stopping.is_set():
            if time.monotonic() > deadline_s:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            partition, error = message.partition() or 0, message.error()
            if error is None:
                found[partition] = max(found.get(partition, 0), message.timestamp()[1])
                if (message.offset() or 0) >= ends[partition] - 1:
                    open_.discard(partition)
            elif error.code() == KafkaError._PARTITION_EOF:
                open_.discard(partition)
        return found
