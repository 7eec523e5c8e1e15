"""Reads what the coordinator says about leases that steps of this process wait for or hold.

Nothing is read while there are none. Then the workflow's partition is read from the place of its request on: so no
answer is missed, however fast it comes, and a step hears of it when what it holds is taken away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from ._schemas.codec import Codec
from ._schemas.errors import PoisonError, RetriableError
from ._schemas.records.events import ResourceGranted, ResourceReleased
from ._schemas.topics import EVENTS
from .settings import Seldom, connected, describe_error

#: Who grants; what a service itself releases is no answer to it.
_COORDINATOR = "kintsugi-coordinator"
#: Reasons of a release that no step asks for, whoever writes it; the engine takes them for errors.
_TAKEN = frozenset({"lost", "expired"})
_POLL_S = 0.1
_RETRY_S = 0.5
_BATCH_MAX = 500

log = logging.getLogger("kintsugi_client")


class Wish:
    """A lease that a step waits for, and then holds."""

    __slots__ = ("_answered", "lease_id", "lost", "offset", "partition", "refusal", "workflow_id")

    def __init__(self, workflow_id: str, lease_id: str, partition: int, offset: int) -> None:
        self.workflow_id = workflow_id
        self.lease_id = lease_id
        self.partition = partition
        self.offset = offset
        #: Why it is not granted; None while that is open, and when it is.
        self.refusal: str | None = None
        #: Why it was taken away after it had been granted.
        self.lost: str | None = None
        self._answered = threading.Event()

    def settle(self, refusal: str | None) -> None:
        """The first answer counts."""
        if not self._answered.is_set():
            self.refusal = refusal
            self._answered.set()

    def end(self, reason: str) -> None:
        """It is refused, or taken away when it was granted."""
        if not self._answered.is_set():
            self.settle(reason)
        elif self.refusal is None and self.lost is None:
            self.lost = reason

    def wait(self, timeout_s: float) -> bool:
        """Whether it is answered within the time."""
        return self._answered.wait(timeout_s)


class Grants:
    """One thread and one consumer without a group, from the first wish on. Thread-safe."""

    def __init__(self, settings: dict[str, Any], codec: Callable[[], Codec]) -> None:
        self._settings = {**settings, "auto.offset.reset": "earliest"}
        self._make_codec = codec
        self._changed = threading.Condition()
        self._wishes: dict[str, Wish] = {}
        self._next: dict[int, int] = {}
        self._stale = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._seldom = Seldom()

    def watch(self, wish: Wish) -> None:
        """Look for the answer to a wish, whose request is in the log."""
        with self._changed:
            self._wishes[wish.lease_id] = wish
            self._next[wish.partition] = min(self._next.get(wish.partition, wish.offset), wish.offset)
            self._stale = True
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="kintsugi-grants", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def forget(self, wish: Wish) -> None:
        """It is neither waited for nor held any more."""
        with self._changed:
            if self._wishes.get(wish.lease_id) is wish:
                del self._wishes[wish.lease_id]
            wanted = {w.partition for w in self._wishes.values()}
            self._next = {p: offset for p, offset in self._next.items() if p in wanted}
            self._stale = True

    def close(self, timeout_s: float) -> None:
        """Read no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        codec = self._make_codec()
        while self._wanted():
            consumer = connected(Consumer, self._settings)
            try:
                self._read(consumer, codec)
            except KafkaException as error:
                if self._seldom.due(error.args[0].code()):
                    log.warning("answers to leases cannot be read: %s", describe_error(error.args[0]))
            except RetriableError as error:
                if self._seldom.due("retriable"):
                    log.warning("answers to leases wait: %s", error)
            except Exception:
                log.exception("the search for answers to leases begins anew")
            finally:
                consumer.close()
            with self._changed:
                self._stale = True
            if not self._closed:
                time.sleep(_RETRY_S)

    def _wanted(self) -> bool:
        """Wait until there is a wish or a lease; False when the client closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._wishes or self._closed)
            return not self._closed

    def _read(self, consumer: Consumer, codec: Codec) -> None:
        while True:
            with self._changed:
                idle = not self._wishes
            if idle:
                consumer.unassign()  # nothing is to be fetched ahead meanwhile
            if not self._wanted():
                return
            self._assign(consumer)
            first = consumer.poll(_POLL_S)
            if first is None:
                continue
            for message in [first, *consumer.consume(_BATCH_MAX, 0)]:
                error = message.error()
                if error is not None:
                    raise KafkaException(error)
                self._take(message, codec)

    def _assign(self, consumer: Consumer) -> None:
        with self._changed:
            if not self._stale:
                return
            self._stale = False
            places = [TopicPartition(EVENTS, p, offset) for p, offset in self._next.items()]
        consumer.assign(places)

    def _take(self, message: Message, codec: Codec) -> None:
        partition, offset = message.partition() or 0, message.offset() or 0
        with self._changed:
            of = {w.workflow_id.encode() for w in self._wishes.values() if w.partition == partition}
        if message.key() in of:
            self._answer(message, codec)
        with self._changed:
            if partition in self._next and not self._stale:
                self._next[partition] = offset + 1

    def _answer(self, message: Message, codec: Codec) -> None:
        try:
            record = codec.decode(message.value())
        except PoisonError:
            return  # it is not ours to complain of
        if not isinstance(record, ResourceGranted | ResourceReleased):
            return
        with self._changed:
            wish = self._wishes.get(record.lease_id)
        if wish is None or (message.offset() or 0) <= wish.offset:
            return
        if isinstance(record, ResourceGranted):
            wish.settle(None)
        elif record.producer.startswith(_COORDINATOR) or record.reason in _TAKEN:
            wish.end(record.reason or "released")
