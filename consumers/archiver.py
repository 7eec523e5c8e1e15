"""The archiver role: writes the log to object storage, record for record, before Kafka's retention removes it.

The archive is its own position. A partition is taken up where the archive ends, whatever the group says, and records
wait in memory, compressed, until there are enough of them or they are old enough; then they become one file, created
where the last one ends. A crash loses what waits, and the next owner reads it again. Another writer at the same place
makes the file fail (FencedError) and the partition is taken up again at the archive's new end.

What the log lost before it was archived cannot be had back. It is recorded as a gap, said loudly, and archiving goes
on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from confluent_kafka import Message

from schemas.archive import Archive
from schemas.archive_format import FILE_SIZE_BYTES_MAX, ArchiveDamagedError, FileBuilder, Gap
from schemas.errors import FencedError, KintsugiError, RetriableError
from schemas.log_record import encode

from . import telemetry
from .crash import crash_point
from .deadline import Deadline
from .handler import LogRange
from .log_reader import record_of

ROLE = "archiver"
#: Memory of all buffers together: beyond it the largest are written early. Compressed, it is 8 files of the usual kind.
BUFFERED_BYTES_MAX = 64 * 1024 * 1024
_LOST = "removed from the log before they were archived"
_LATE = "removed from the log before archiving began"
_TOO_LARGE = "a record larger than a file of the archive may be"


class Archiver:
    """Handler of the archiver role."""

    def __init__(
        self,
        archive: Archive,
        *,
        age_s: float,
        buffered_bytes_max: int = BUFFERED_BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = archive
        self._age_s = age_s
        self._buffered_bytes_max = buffered_bytes_max
        self._clock = clock
        self._buffers: dict[int, FileBuilder] = {}
        self._due_s: dict[int, float] = {}
        self._stored: dict[int, int] = {}

    def assigned(self, log: LogRange) -> int | None:
        """Start where the archive ends; where the log begins, when it has lost what comes before."""
        partition = log.partition
        self.lost([partition])
        try:
            last = self._archive.last(partition, near=max(log.low, log.committed or 0))
        except ArchiveDamagedError as error:
            # Nothing can be built on it; the other partitions go on while somebody looks at it.
            raise RetriableError(f"the end of the archive is damaged: {error}", hint=error.hint) from error
        if last is not None and last.gap is not None:
            self._archive.show_gap(last.gap)
        self._stored[partition] = 0 if last is None else last.next
        if self._stored[partition] < log.low:
            self._give_up(partition, log.low, _LATE if last is None else _LOST)
        return self._stored[partition]

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Keep records; write a file when no more fit in."""
        for message in messages:
            record = record_of(message)
            encoded = encode(record)
            buffer = self._buffers.get(partition)
            if buffer is not None and not buffer.takes(record.offset, len(encoded)):
                self._write(partition)
                buffer = None
            if len(encoded) > FILE_SIZE_BYTES_MAX:
                self._give_up(partition, record.offset + 1, _TOO_LARGE)
                continue
            if buffer is None:
                buffer = self._begin(partition)
            buffer.add(record, encoded)
        crash_point("after_fold")

    def flush(self) -> Mapping[int, KintsugiError]:
        """Write what has waited for long enough, and what takes too much memory."""
        failures: dict[int, KintsugiError] = {}
        away: RetriableError | None = None
        for partition in list(self._due()):
            if away is not None:
                # One store for all: asking it again for each would hold the loop up for minutes.
                self._drop(partition)
                failures[partition] = away
                continue
            try:
                self._write(partition)
            except FencedError as error:
                failures[partition] = error
            except RetriableError as error:
                failures[partition] = away = error
        self._measure()
        return failures

    def stored(self, partition: int) -> int:
        """Where the archive of a partition ends."""
        return self._stored.get(partition, 0)

    def committed(self, partition: int, next_offset: int) -> None:
        """Nothing to do: the position is in the archive."""

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        """`flush` does what is due."""
        if not self._due_s:
            return None
        return now_us + int((min(self._due_s.values()) - self._clock()) * 1_000_000)

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        """Write what waits while there is time. What is not written is read again by the next owner."""
        for partition in partitions:
            if partition in self._buffers and not deadline.passed:
                try:
                    self._write(partition)
                except (RetriableError, FencedError) as error:
                    telemetry.log().warning("not archived at the handover", partition=partition, error=error)
                    break
        for partition in partitions:
            self._drop(partition)
        self._measure()

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget."""
        for partition in partitions:
            self._drop(partition)
            self._stored.pop(partition, None)
        self._measure()

    def _begin(self, partition: int) -> FileBuilder:
        buffer = FileBuilder(self._archive.cluster, self._archive.topic, partition, self._stored[partition])
        self._buffers[partition] = buffer
        self._due_s[partition] = self._clock() + self._age_s
        return buffer

    def _due(self) -> Iterator[int]:
        now_s = self._clock()
        held = sum(buffer.held_bytes for buffer in self._buffers.values())
        for partition, buffer in sorted(self._buffers.items(), key=lambda item: -item[1].held_bytes):
            if held > self._buffered_bytes_max:
                held -= buffer.held_bytes
                yield partition
            elif now_s >= self._due_s[partition]:
                yield partition

    def _write(self, partition: int) -> None:
        """Make a file of what waits. Whether it succeeds or not, nothing waits afterwards."""
        buffer = self._buffers[partition]
        self._drop(partition)
        try:
            with telemetry.ARCHIVE_SECONDS.time():
                info = self._archive.put(buffer)
        except RetriableError:
            telemetry.ARCHIVE_FILES.labels("failed").inc()
            raise
        crash_point("after_write")
        if info is None:
            raise self._fenced(partition)
        self._stored[partition] = info.next
        telemetry.ARCHIVE_FILES.labels("written").inc()
        telemetry.ARCHIVE_BYTES.inc(info.body_size_bytes)
        telemetry.EVENTS_PROCESSED.labels(ROLE, "archived").inc(info.records)

    def _give_up(self, partition: int, end: int, reason: str) -> None:
        """Record that what lies between the archive's end and `end` will never be archived."""
        gap = Gap(
            partition=partition,
            first=self._stored[partition],
            next=end,
            reason=reason,
            noticed_ms=time.time_ns() // 1_000_000,
        )
        if not self._archive.put_gap(gap):
            raise self._fenced(partition)
        crash_point("after_write")
        self._archive.show_gap(gap)
        self._stored[partition] = end
        telemetry.ARCHIVE_FILES.labels("gap").inc()
        telemetry.ARCHIVE_MISSING.inc(end - gap.first)
        telemetry.log().error("archive gap", partition=partition, first=gap.first, next=end, reason=reason)

    def _fenced(self, partition: int) -> FencedError:
        telemetry.ARCHIVE_FILES.labels("fenced").inc()
        return FencedError(f"another archiver was first at {self._archive.path(partition, self._stored[partition])}")

    def _drop(self, partition: int) -> None:
        self._buffers.pop(partition, None)
        self._due_s.pop(partition, None)

    def _measure(self) -> None:
        telemetry.ARCHIVE_BUFFERED.set(sum(buffer.held_bytes for buffer in self._buffers.values()))
