"""A topic's records from the archive, as far back as it reaches, and then from the log: one sequence.

Of each partition every record comes once and in order. The archive is only read where the log does not begin early
enough, also when retention moves that place while the records are read. What is in neither is a gap: a typed error, or
a call for those who want to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from schemas.archive import Archive, ArchiveGapError
from schemas.archive_format import Gap
from schemas.log_record import LogRecord

from .log_reader import LogReader, RangeGoneError, Ranges, record_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What there is of a partition: whole from `first` on, in the log from `low` on, up to `end`."""

    first: int
    low: int
    end: int


class History:
    """Log and archive of one topic. One thread, like the reader it is made with."""

    def __init__(self, log: LogReader, topic: str, archive: Archive | None) -> None:
        """Without an archive the log is all there is."""
        self._log = log
        self._topic = topic
        self._archive = archive

    def bounds(self) -> dict[int, Bounds]:
        """By partition, now. Errors of the archive come only where the log does not begin at 0."""
        return {
            partition: Bounds(first=self._first(partition, low), low=low, end=high)
            for partition, (low, high) in self._log.bounds(self._topic).items()
        }

    def offset_at(self, partition: int, timestamp_ms: int) -> int | None:
        """First offset in the log at or after a broker time; None when everything is older."""
        return self._log.offset_at(self._topic, partition, timestamp_ms)

    def read(self, ranges: Ranges, *, on_gap: Callable[[Gap], None] | None = None) -> Iterator[LogRecord]:
        """Records of the ranges; within a partition in order, partitions mixed.

        ArchiveGapError at the first part of a range that is nowhere; with `on_gap` that is called and reading goes on.
        """
        at = {partition: start for partition, (start, end) in ranges.items() if start < end}
        gone: RangeGoneError | None = None
        while True:
            low = self._log.bounds(self._topic)
            behind = [p for p in at if at[p] < low[p][0]]
            if gone is not None and not behind:
                raise gone  # the log begins early enough and yet does not hold it: it was made anew
            for partition in behind:
                end = min(low[partition][0], ranges[partition][1])
                yield from self._archived(partition, at[partition], end, on_gap)
                at[partition] = end
            try:
                for message in self._log.read(self._topic, {p: (at[p], ranges[p][1]) for p in at}):
                    record = record_of(message)
                    at[record.partition] = record.offset + 1
                    yield record
                return
            except RangeGoneError as error:
                gone = error  # retention was here first: the archive has it by now, or nobody

    def _first(self, partition: int, low: int) -> int:
        if low == 0 or self._archive is None or self._archive.end_of(partition, near=low) < low:
            return low
        return min(low, self._archive.whole_from(partition))

    def _archived(
        self, partition: int, start: int, end: int, on_gap: Callable[[Gap], None] | None
    ) -> Iterator[LogRecord]:
        at = start
        for segment in self._archive.segments(partition, start) if self._archive is not None else ():
            if isinstance(segment, Gap):
                self._report(replace(segment, first=at, next=min(segment.next, end)), on_gap)
                at = segment.next
            else:
                for record in segment.records(at):
                    if record.offset >= end:
                        return
                    yield record
                at = segment.info.next
            if at >= end:
                return
        self._report(Gap(partition=partition, first=at, next=end, reason="neither archived nor in the log"), on_gap)

    def _report(self, gap: Gap, on_gap: Callable[[Gap], None] | None) -> None:
        if on_gap is None:
            raise ArchiveGapError(self._topic, gap)
        on_gap(gap)


def ranges_of(bounds: Mapping[int, Bounds]) -> dict[int, tuple[int, int]]:
    """Everything that is whole."""
    return {partition: (found.first, found.end) for partition, found in bounds.items()}
