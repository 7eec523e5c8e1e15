"""`kintsugi archive`: what the archive holds, and whether it is whole and equal to the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from consumers.history import History
from consumers.log_reader import LogReader, RangeGoneError, record_of
from schemas.archive import Archive
from schemas.archive_format import ArchiveDamagedError, FileInfo, Gap
from schemas.log_record import LogRecord
from schemas.objects import Objects
from schemas.topics import EVENTS

from .stack import Addresses

#: Findings kept to be shown; all are counted.
SHOWN_MAX = 100
#: Called with (what is being done, files done, files in all).
Progress = Callable[[str, int, int], None]
Row = dict[str, Any]


def archive_of(at: Addresses, log: LogReader) -> Archive:
    """The archive of the events of this cluster."""
    return Archive(Objects(at.objects), cluster=log.cluster_id(), topic=EVENTS)


def history_of(at: Addresses, log: LogReader, *, archived: bool = True) -> History:
    """All events there are; without the archive on request."""
    return History(log, EVENTS, archive_of(at, log) if archived else None)


def status(at: Addresses) -> list[Row]:
    """A row for each partition."""
    with LogReader(at.kafka) as log:
        archive = archive_of(at, log)
        return [_state(archive, partition, low, high) for partition, (low, high) in log.bounds(EVENTS).items()]


def _state(archive: Archive, partition: int, low: int, high: int) -> Row:
    found = archive.listing(partition)
    last = archive.info(partition, found.files[-1].first) if found.files else None
    end = 0 if last is None else last.next
    return {
        "partition": partition,
        "archived_to": end,
        "log_from": low,
        "log_to": high,
        "lag_records": max(0, high - max(low, end)),
        "lost_records": max(0, low - end),
        "files": len(found.files),
        "bytes": sum(entry.size_bytes for entry in found.files),
        "gaps": len(found.gaps),
        "last_record": None if last is None else last.last_timestamp_ms,
    }


def files(at: Addresses, partition: int) -> Iterator[tuple[FileInfo, int]]:
    """What each file of a partition says of itself, and its size."""
    with LogReader(at.kafka) as log:
        archive = archive_of(at, log)
        for entry in archive.listing(partition).files:
            info = archive.info(partition, entry.first)
            if info is not None:
                yield info, entry.size_bytes


def records(at: Addresses, partition: int, start: int, end: int) -> Iterator[LogRecord]:
    """Archived records of a range. ArchiveGapError when a part of it is missing."""
    with LogReader(at.kafka) as log:
        yield from archive_of(at, log).records(partition, start, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it must be, or a gap that is known."""

    rule: str
    partition: int
    offset: int
    detail: str


@dataclass(slots=True)
class Report:
    """What was checked, and what is wrong."""

    files: int = 0
    bytes: int = 0
    records: int = 0
    compared: int = 0
    #: Offsets within files at which the log had no record, such as markers of transactions.
    empty_offsets: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    known_gaps: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether the archive is whole, apart from known gaps, and equal to the log."""
        return not self.counts

    def note(self, rule: str, partition: int, offset: int, detail: str) -> None:
        """Count a finding, and keep it while there is room."""
        self.counts[rule] = self.counts.get(rule, 0) + 1
        if len(self.findings) < SHOWN_MAX:
            self.findings.append(Finding(rule=rule, partition=partition, offset=offset, detail=detail))

    def gap(self, gap: Gap, *, allowed: bool) -> None:
        """A gap that the archiver recorded. One at the beginning is where archiving began."""
        detail = f"{gap.next - gap.first} offsets up to {gap.next - 1}: {gap.reason}"
        if gap.first > 0 and not allowed:
            self.note("gap", gap.partition, gap.first, detail)
        elif len(self.known_gaps) < SHOWN_MAX:
            self.known_gaps.append(Finding(rule="gap", partition=gap.partition, offset=gap.first, detail=detail))


def verify(at: Addresses, progress: Progress, *, allow_gaps: bool = False) -> Report:
    """Check every file, and every record that the log still holds. Memory: one file and a batch of the log."""
    report = Report()
    with LogReader(at.kafka) as log:
        archive = archive_of(at, log)
        for partition, (low, high) in log.bounds(EVENTS).items():
            beside = _Beside(log, archive.topic, partition, low, high)
            _Verification(report, archive, partition, beside, allow_gaps=allow_gaps).run(progress)
    return report


class _Verification:
    """One partition."""

    def __init__(self, report: Report, archive: Archive, partition: int, beside: _Beside, *, allow_gaps: bool) -> None:
        self._report = report
        self._archive = archive
        self._partition = partition
        self._beside = beside
        self._allow_gaps = allow_gaps

    def run(self, progress: Progress) -> None:
        entries = self._archive.listing(self._partition).files
        what = f"partition {self._partition}"
        expected = 0
        for number, entry in enumerate(entries):
            progress(what, number, len(entries))
            if entry.first > expected:
                self._note("hole", expected, f"no file holds {entry.first - expected} offsets up to {entry.first - 1}")
            elif entry.first < expected:
                self._note("overlap", entry.first, f"the file before it reaches to {expected - 1}")
            self._report.files += 1
            self._report.bytes += entry.size_bytes
            expected = max(expected, self._file(entry.first))
        progress(what, len(entries), len(entries))
        if expected < self._beside.low:
            self._note("lost", expected, f"not archived, and not in the log any more: up to {self._beside.low - 1}")
        if expected > self._beside.high:
            self._note("beyond_the_log", self._beside.high, f"archived up to {expected - 1}, the log ends before")

    def _file(self, first: int) -> int:
        """Check one file. Returns where the next one has to begin."""
        try:
            file = self._archive.file(self._partition, first)
            if file is None:
                self._note("hole", first, "the file went away while it was looked at")
                return first
            if file.info.gap is not None:
                self._report.gap(file.info.gap, allowed=self._allow_gaps)
                # A record too large for the archive is in the log all the same.
                self._beside.skip(file.info.next)
                return file.info.next
            count = 0
            for record in file.records():
                count += 1
                self._compare(record)
            for missed in self._beside.until(file.info.next):
                self._note("missing", missed.offset, "in the log and not in the archive")
        except ArchiveDamagedError as error:
            self._note("damaged", first, str(error))
            # What it says of its end is all there is to go by.
            return self._end_of(first)
        self._report.records += count
        self._report.empty_offsets += file.info.next - first - count
        return file.info.next

    def _end_of(self, first: int) -> int:
        try:
            info = self._archive.info(self._partition, first)
        except ArchiveDamagedError:
            return first
        return first if info is None else info.next

    def _compare(self, archived: LogRecord) -> None:
        for missed in self._beside.until(archived.offset):
            self._note("missing", missed.offset, "in the log and not in the archive")
        if not self._beside.low <= archived.offset < self._beside.high:
            return
        logged = self._beside.at(archived.offset)
        if logged is None:
            if archived.offset >= self._beside.low:  # it may have moved just now
                self._note("invented", archived.offset, "in the archive and not in the log")
            return
        if logged != archived:
            names = [name for name in LogRecord.__slots__ if getattr(logged, name) != getattr(archived, name)]
            self._note("differs", archived.offset, f"{', '.join(names)}: not as in the log")
        self._report.compared += 1

    def _note(self, rule: str, offset: int, detail: str) -> None:
        self._report.note(rule, self._partition, offset, detail)


class _Beside:
    """The log of one partition, read along with the archive. What retention removes meanwhile is left out."""

    def __init__(self, log: LogReader, topic: str, partition: int, low: int, high: int) -> None:
        self._log = log
        self._topic = topic
        self._partition = partition
        self._next: LogRecord | None = None
        self._records: Iterator[LogRecord] | None = None
        #: Where the log begins and ends.
        self.low, self.high = low, high

    def until(self, end: int) -> Iterator[LogRecord]:
        """Records before an offset that were not asked for."""
        while end > self.low and (record := self._peek(end)) is not None and record.offset < end:
            self._next = None
            yield record

    def skip(self, end: int) -> None:
        """Leave out what lies before an offset."""
        if self._next is not None and self._next.offset >= end:
            return
        self._next = self._records = None
        self.low = max(self.low, min(end, self.high))

    def at(self, offset: int) -> LogRecord | None:
        """The record at an offset, none before it being left."""
        record = self._peek(offset + 1)
        if record is None or record.offset != offset:
            return None
        self._next = None
        return record

    def _peek(self, end: int) -> LogRecord | None:
        if self._next is None and min(end, self.high) > self.low:
            self._next = self._read()
        return self._next

    def _read(self) -> LogRecord | None:
        while self.low < self.high:
            if self._records is None:
                messages = self._log.read(self._topic, {self._partition: (self.low, self.high)})
                self._records = map(record_of, messages)
            try:
                return next(self._records, None)
            except RangeGoneError:
                self._records = None
                self.low = max(self.low, self._log.bounds(self._topic)[self._partition][0])
        return None
