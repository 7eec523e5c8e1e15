"""Reads one record of the event topic by partition and offset: from the log, or from the archive when the log no longer
has it."""

from __future__ import annotations

import threading
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ._schemas.archive import Archive, ArchiveGapError
from ._schemas.archive_format import ArchiveDamagedError
from ._schemas.codec import Codec
from ._schemas.errors import DecodeError, RetriableError
from ._schemas.objects import Objects
from ._schemas.records import Record
from ._schemas.topics import EVENTS
from .bounded import Bounded
from .errors import ClosedError, RestoreError
from .settings import connected, describe_error

FETCH_TIMEOUT_S = 10.0
#: A store may give no answer at all, whatever is set for its requests: a network file system, for one.
STORE_TIMEOUT_S = 20.0
_POLL_S = 0.2
_ABSENT = (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)


class History:
    """One consumer without a group, used by one restore at a time, and the archive of its cluster."""

    def __init__(self, settings: dict[str, Any], codec: Codec, objects: Objects | None = None) -> None:
        self._settings = {
            **settings,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            # One record is asked for: no more than a little is read ahead.
            "queued.max.messages.kbytes": 16_384,
        }
        self._codec = codec
        self._objects = objects
        self._bounded = Bounded()
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._closed = False

    def fetch(self, partition: int, offset: int) -> Record:
        """The record at (partition, offset). RestoreError when it is nowhere or unreadable, RetriableError when Kafka,
        the registry or the object store is away."""
        where = f"{EVENTS}[{partition}]@{offset}"
        if partition < 0 or offset < 0:
            raise RestoreError("checkpoint_missing", f"{where} is no place in the log")
        found, value, cluster = self._from_log(partition, offset, where)
        if not found:
            value = self._from_archive(cluster, partition, offset, where)
        try:
            record = self._codec.decode(value)
        except DecodeError as failure:
            raise RestoreError("corrupt", f"{where} cannot be read: {failure}", fault=failure.reason) from failure
        if isinstance(record, Record):
            return record
        raise RestoreError("checkpoint_missing", f"{where} is a {record.name}, which this client does not know")

    def close(self) -> None:
        """Give up the connection; a read under way ends."""
        self._closed = True
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    # -- the log --------------------------------------------------------------------------------------------------

    def _from_log(self, partition: int, offset: int, where: str) -> tuple[bool, bytes | None, str]:
        """(whether the log has it, its value, id of the cluster)."""
        if not self._lock.acquire(timeout=FETCH_TIMEOUT_S):
            raise RetriableError(f"{where} cannot be read now: other restores are being read")
        try:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._consumer is None:
                self._consumer = connected(Consumer, self._settings)
            found, value = self._read(self._consumer, TopicPartition(EVENTS, partition, offset), where)
            cluster = "" if found or self._objects is None else _cluster_of(self._consumer)
            return found, value, cluster
        except KafkaException as error:
            if error.args[0].code() in _ABSENT:
                raise RestoreError("checkpoint_missing", f"{where}: there is no such partition") from error
            raise RetriableError(f"{where} cannot be read now: {describe_error(error.args[0])}") from error
        finally:
            self._lock.release()

    def _read(self, consumer: Consumer, place: TopicPartition, where: str) -> tuple[bool, bytes | None]:
        low, high = consumer.get_watermark_offsets(place, FETCH_TIMEOUT_S, cached=False)
        if not low <= place.offset < high:
            return False, None
        consumer.assign([place])
        try:
            return self._poll(consumer, place.offset, where)
        finally:
            consumer.unassign()

    def _poll(self, consumer: Consumer, offset: int, where: str) -> tuple[bool, bytes | None]:
        deadline_s = time.monotonic() + FETCH_TIMEOUT_S
        trouble = "no answer"
        while time.monotonic() < deadline_s and not self._closed:
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is None and message.offset() == offset:
                return True, message.value()
            if error is None or error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError._PARTITION_EOF):
                return False, None
            trouble = describe_error(error)
        raise RetriableError(f"{where} cannot be read now: {trouble}")

    # -- the archive ----------------------------------------------------------------------------------------------

    def _from_archive(self, cluster: str, partition: int, offset: int, where: str) -> bytes | None:
        if self._objects is None:
            raise RestoreError(
                "checkpoint_missing",
                f"{where} is not in the log, or not any more, and no object storage is configured for the archive",
                hint="set KINTSUGI_OBJECTS, and run the archiver",
            )
        archive = Archive(self._objects, cluster=cluster, topic=EVENTS)
        try:
            record = self._bounded.call("the archive", lambda: archive.record(partition, offset), STORE_TIMEOUT_S)
        except ArchiveGapError as error:
            raise RestoreError("checkpoint_missing", f"{where} is not in the log any more; {error}") from error
        except ArchiveDamagedError as error:
            raise RestoreError("corrupt", f"{where} is not in the log any more; {error}", fault="archive") from error
        if record is None:
            raise RestoreError("checkpoint_missing", f"{where} holds no record")
        return record.value


def _cluster_of(consumer: Consumer) -> str:
    return str(consumer.list_topics(EVENTS, FETCH_TIMEOUT_S).cluster_id or "unknown")
