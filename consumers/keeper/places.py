"""Reads single records at known places: from the log, its checksums verified, or from the archive.

Places are given in order, and read in order: from one to the next by reading on when it is near, by a jump when it is
not. What is wrong with a place is an answer, not an error; errors are for what is away.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import groupby
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.kafka import Reporter, describe
from consumers.log_reader import LOOKUP_TIMEOUT_S, SILENCE_S_MAX, record_of
from schemas.admission import admit
from schemas.archive import Archive
from schemas.archive_format import ArchiveDamagedError, Gap
from schemas.codec import Codec
from schemas.errors import FatalError, PoisonError, RetriableError
from schemas.log_record import LogRecord
from schemas.records.events import CheckpointCreated

#: Reading so many records costs as much as a jump does, some 5 ms.
NEAR_RECORDS = 500
#: A jump throws away what was fetched: fetch no more than this at once. A larger record comes all the same (KIP-74).
_FETCH_BYTES = 1024 * 1024
#: A fetch that waits at the end of a partition holds up the next one, which goes elsewhere.
_FETCH_WAIT_MS = 20
_QUEUED_KBYTES_MAX = 16 * 1024
_BATCH_RECORDS = 500
_POLL_S = 0.2
#: After damage librdkafka may ask for offsets that never were, and is then told that they are not there.
_JUMPS_MAX = 5

#: Partition and offset.
Place = tuple[int, int]


class Problem(Enum):
    """Why there is no record: neither in the log nor in the archive; nothing at that offset; its bytes are damaged."""

    GONE = "gone"
    NONE = "none"
    DAMAGED = "damaged"


class _LogMovedOnError(Exception):
    """The log begins behind the place by now."""


class Places:
    """Log and archive of one topic. One thread. Without an archive the log is all there is."""

    def __init__(self, servers: str, topic: str, archive: Archive | None) -> None:
        self._servers = servers
        self._topic = topic
        self._archive = archive
        settings: dict[str, Any] = {
            "bootstrap.servers": servers,
            "group.id": "kintsugi-reader-unused",
            "client.id": "kintsugi-keeper",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "check.crcs": True,
            "fetch.message.max.bytes": _FETCH_BYTES,
            "fetch.wait.max.ms": _FETCH_WAIT_MS,
            "queued.max.messages.kbytes": _QUEUED_KBYTES_MAX,
            "allow.auto.create.topics": False,
            "log_level": 4,
            "error_cb": Reporter(),
        }
        self._consumer = Consumer(settings)
        #: What comes next of the partition that is assigned, and what of it is in hand already.
        self._at: Place | None = None
        self._waiting: deque[Message] = deque()

    def rest(self) -> None:
        """Fetch no more until the next read, which then begins with a jump."""
        self._waiting.clear()
        self._at = None
        self._consumer.unassign()

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()

    def bounds(self) -> dict[int, tuple[int, int]]:
        """First and next offset of the log, by partition. RetriableError when Kafka is away."""
        try:
            found = self._consumer.list_topics(self._topic, LOOKUP_TIMEOUT_S).topics[self._topic]
            if found.error is not None or not found.partitions:
                raise FatalError(f"topic {self._topic} does not exist", hint="run: kintsugi topics create")
            return {partition: self._watermarks(partition) for partition in sorted(found.partitions)}
        except KafkaException as error:
            raise self._away(error) from error

    def read(self, places: Sequence[Place]) -> Iterator[tuple[Place, LogRecord | Problem]]:
        """What lies at each place, in the order given: by partition, then by offset.

        RetriableError or ObjectStoreError when Kafka or the object store is away.
        """
        for partition, group in groupby(places, lambda place: place[0]):
            yield from self._partition(partition, [offset for _, offset in group])

    def archived(self, partition: int, offsets: Sequence[int]) -> Iterator[tuple[Place, LogRecord | Problem]]:
        """What lies at these places of the archive, in the order given."""
        at = 0
        while at < len(offsets):
            held = at
            for place, found in self._one_file(partition, offsets, at):
                yield place, found
                at += 1
            assert at > held

    def _partition(self, partition: int, offsets: list[int]) -> Iterator[tuple[Place, LogRecord | Problem]]:
        done = 0
        while done < len(offsets):
            try:
                low, high = self._watermarks(partition)
            except KafkaException as error:
                raise self._away(error) from error
            behind = sum(offset < low for offset in offsets)
            if done < behind:
                yield from self.archived(partition, offsets[done:behind])
                done = behind
            beyond = sum(offset < high for offset in offsets)
            try:
                while done < beyond:
                    yield (partition, offsets[done]), self._logged(partition, offsets[done])
                    done += 1
            except _LogMovedOnError:
                self.rest()
                continue
            for offset in offsets[done:]:
                yield (partition, offset), Problem.GONE
            return

    def _logged(self, partition: int, offset: int) -> LogRecord | Problem:
        """From the log. A damaged batch is one that cannot be read when it is asked for by the offset itself."""
        direct, jumps, heard_s = False, 0, time.monotonic()
        if not self._near(partition, offset):
            direct = self._jump(partition, offset)
        while True:
            message = self._next()
            if message is None:
                if time.monotonic() - heard_s > SILENCE_S_MAX:
                    raise RetriableError(f"Kafka at {self._servers} gave no record for {SILENCE_S_MAX:g} s")
                continue
            error, found = message.error(), message.offset()
            if error is None:
                assert found is not None
                if found > offset:
                    self._waiting.appendleft(message)
                    return Problem.NONE
                self._at = partition, found + 1
                if found == offset:
                    return record_of(message)
                direct = False
            elif error.code() == KafkaError._BAD_MSG:
                self.rest()
                if direct:
                    return Problem.DAMAGED
                direct = self._jump(partition, offset)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.rest()
                return Problem.NONE
            elif self._worth_a_jump(partition, offset, error):
                jumps += 1
                if jumps > _JUMPS_MAX:
                    raise RetriableError(f"{self._topic}[{partition}]: {describe(error)}")
                direct = self._jump(partition, offset)

    def _near(self, partition: int, offset: int) -> bool:
        """Whether reading on from where we are gets there soon."""
        return self._at is not None and self._at[0] == partition and 0 <= offset - self._at[1] <= NEAR_RECORDS

    def _jump(self, partition: int, offset: int) -> bool:
        self._waiting.clear()
        self._at = partition, offset
        self._consumer.assign([TopicPartition(self._topic, partition, offset)])
        return True

    def _next(self) -> Message | None:
        """The next record as soon as it is there; with it is taken what came with it."""
        if not self._waiting:
            first = self._consumer.poll(_POLL_S)  # `consume` alone would wait to fill up
            if first is None:
                return None
            self._waiting.append(first)
            self._waiting.extend(self._consumer.consume(_BATCH_RECORDS, 0))
        return self._waiting.popleft()

    def _worth_a_jump(self, partition: int, offset: int, error: KafkaError) -> bool:
        """Whether reading must begin anew after an error; most are retried by the client itself."""
        if error.fatal():
            raise FatalError(f"Kafka: {describe(error)}")
        if error.code() not in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            return False
        try:
            low, _ = self._watermarks(partition)
        except KafkaException as away:
            raise self._away(away) from away
        if offset < low:
            raise _LogMovedOnError
        return True

    def _one_file(
        self, partition: int, offsets: Sequence[int], first: int
    ) -> Iterator[tuple[Place, LogRecord | Problem]]:
        """Answers for the offsets from number `first` on, as far as one file of the archive, or a gap, reaches."""
        wanted = list(offsets[first:])
        try:
            segment = None if self._archive is None else next(self._archive.segments(partition, wanted[0]), None)
            if segment is None:
                end = wanted[-1] + 1
                records: dict[int, LogRecord] = {}
                problem = Problem.GONE
            elif isinstance(segment, Gap):
                end, records, problem = segment.next, {}, Problem.GONE
            else:
                end, problem = segment.info.next, Problem.NONE
                chosen = {offset for offset in wanted if offset < end}
                records = {r.offset: r for r in segment.records(wanted[0]) if r.offset in chosen}
        except ArchiveDamagedError:
            yield (partition, wanted[0]), Problem.DAMAGED
            return
        for offset in wanted:
            if offset >= end:
                return
            yield (partition, offset), records.get(offset, problem)

    def _watermarks(self, partition: int) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(
            TopicPartition(self._topic, partition), LOOKUP_TIMEOUT_S, cached=False
        )
        return low, high

    def _away(self, error: KafkaException) -> RetriableError:
        return RetriableError(
            f"Kafka at {self._servers} does not answer: {describe(error.args[0])}", hint="run: kintsugi status"
        )


def checkpoint_of(codec: Codec, lies: LogRecord | Problem) -> CheckpointCreated | None:
    """The checkpoint that lies at a place; None for nothing, for what nobody can read, and for another record."""
    if isinstance(lies, Problem):
        return None
    try:
        record = admit(codec, lies.key, lies.value)
    except PoisonError:
        return None
    return record if isinstance(record, CheckpointCreated) else None
