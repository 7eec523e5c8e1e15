"""Reads ranges of a topic without a group: for checks, timelines and replay. It commits nothing and disturbs nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import FatalError, RetriableError
from schemas.log_record import LogRecord
from schemas.topics import MESSAGE_SIZE_BYTES_MAX

from .dead_letter import headers_of, raw
from .kafka import Reporter, describe

#: Waits for metadata and watermarks.
LOOKUP_TIMEOUT_S = 15.0
#: Without a record for this long a read that is not at its end gives up.
SILENCE_S_MAX = 30.0
_BATCH_RECORDS = 500
#: What is read is in the log already. A fetch that waits at a partition's end holds up that of the partition read next,
#: for half a second by default.
_FETCH_WAIT_MS = 10
_POLL_S = 0.2

#: Per partition: first offset, and the offset after the last.
Ranges = Mapping[int, tuple[int, int]]


class RangeGoneError(FatalError):
    """The log does not hold the beginning of a range any more."""


def record_of(message: Message) -> LogRecord:
    """The record, free of the client library."""
    kind, timestamp_ms = message.timestamp()
    return LogRecord(
        message.partition() or 0,
        message.offset() or 0,
        timestamp_ms,
        kind,
        raw(message.key()),
        raw(message.value()),
        tuple(headers_of(message)),
    )


class LogReader:
    """One consumer, one thread. Use as a context manager."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "kintsugi-reader-unused",
                "client.id": "kintsugi-reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.message.max.bytes": MESSAGE_SIZE_BYTES_MAX + 1024 * 1024,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
                "queued.max.messages.kbytes": 65_536,
                "allow.auto.create.topics": False,
                "log_level": 4,
                "error_cb": Reporter(),
            }
        )

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """What a topic holds now, by partition. RetriableError when Kafka is away, FatalError without the topic."""
        try:
            found = self._consumer.list_topics(topic, LOOKUP_TIMEOUT_S).topics[topic]
            if found.error is not None or not found.partitions:
                raise FatalError(f"topic {topic} does not exist", hint="run: kintsugi topics create")
            return {
                partition: self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), LOOKUP_TIMEOUT_S, cached=False
                )
                for partition in sorted(found.partitions)
            }
        except KafkaException as error:
            raise self._away(error) from error

    def cluster_id(self) -> str:
        """Id of the cluster. RetriableError when Kafka is away."""
        try:
            return str(self._consumer.list_topics(timeout=LOOKUP_TIMEOUT_S).cluster_id or "unknown")
        except KafkaException as error:
            raise self._away(error) from error

    def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """First offset at or after a broker time; None when everything is older."""
        try:
            place = TopicPartition(topic, partition, timestamp_ms)
            found = self._consumer.offsets_for_times([place], LOOKUP_TIMEOUT_S)[0]
        except KafkaException as error:
            raise self._away(error) from error
        return None if found.offset < 0 else int(found.offset)

    def read(self, topic: str, ranges: Ranges) -> Iterator[Message]:
        """Records of the ranges; within a partition in order, partitions mixed.

        RangeGoneError when the log no longer holds a range, RetriableError when Kafka falls silent.
        """
        left = {partition: end for partition, (start, end) in ranges.items() if start < end}
        self._consumer.assign([TopicPartition(topic, p, ranges[p][0]) for p in left])
        heard_s = time.monotonic()
        try:
            while left:
                messages = self._next()
                if messages:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > SILENCE_S_MAX:
                    self._skip_gaps(topic, left)
                    heard_s = time.monotonic()
                for message in messages:
                    partition, offset = message.partition(), message.offset()
                    assert partition is not None and offset is not None
                    end = left.get(partition)
                    if end is None:
                        continue
                    if offset + 1 >= end:
                        self._consumer.incremental_unassign([TopicPartition(topic, partition)])
                        del left[partition]
                    if offset < end:
                        yield message
        finally:
            self._consumer.unassign()

    def _next(self) -> Sequence[Message]:
        first = self._consumer.poll(_POLL_S)
        if first is None:
            return ()
        messages = [first, *self._consumer.consume(_BATCH_RECORDS, 0)]
        for message in messages:
            error = message.error()
            if error is None:
                continue
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise RangeGoneError(f"{message.topic()}[{message.partition()}]: the range is not in the log any more")
            if error.fatal():
                raise FatalError(f"Kafka: {describe(error)}")
        return [m for m in messages if m.error() is None]

    def _skip_gaps(self, topic: str, left: dict[int, int]) -> None:
        """A range may end in offsets that hold no record (transaction markers, compaction): they count as read."""
        places = self._consumer.position([TopicPartition(topic, p) for p in left])
        ended = [place.partition for place in places if place.offset >= left[place.partition]]
        if not ended:
            raise RetriableError(f"Kafka at {self._servers} gave no record for {SILENCE_S_MAX:g} s")
        for partition in ended:
            del left[partition]

    def _away(self, error: KafkaException) -> RetriableError:
        return RetriableError(
            f"Kafka at {self._servers} does not answer: {describe(error.args[0])}", hint="run: kintsugi status"
        )
