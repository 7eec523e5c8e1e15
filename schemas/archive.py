"""The archive of a topic: every record of its log, in object storage, for longer than Kafka keeps it.

    archive/<cluster id>/<topic>/<partition>/<first offset, 20 digits>.avro    records, or a gap (`archive_format`)
    archive/<cluster id>/<topic>/<partition>/<first offset, 20 digits>.gap     the gap once more, as JSON, to be seen

The archive is its own position: a writer begins where the last file ends and creates the next file under that offset,
and only if nothing is there. Of two writers at one place one wins, so files can neither overlap nor leave a hole,
whoever crashes when. Files are never changed. A hole is therefore the work of somebody who deleted a file; readers
report it like a recorded gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import orjson

from .archive_format import (
    FILE_OFFSETS_MAX,
    HEADER_SIZE_BYTES_MAX,
    OBJECT_SIZE_BYTES_MAX,
    ArchiveDamagedError,
    ArchiveFile,
    FileBuilder,
    FileInfo,
    Gap,
    build_gap,
    read_header,
)
from .errors import KintsugiError
from .log_record import LogRecord
from .objects import Objects, ObjectStoreError

#: Names of one partition listed at once, about 150 bytes each. At one file a minute, two years.
FILES_MAX = 1_000_000
_SUFFIX, _GAP_SUFFIX = ".avro", ".gap"
_DIGITS = 20


class ArchiveGapError(KintsugiError):
    """Records that were asked for are not in the archive. `gap` names them and says why."""

    def __init__(self, topic: str, gap: Gap) -> None:
        super().__init__(
            f"{topic}[{gap.partition}]: offsets {gap.first} to {gap.next - 1} are not archived: {gap.reason}",
            hint="kintsugi archive verify lists all that is missing",
        )
        self.gap = gap


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A file as a listing shows it."""

    first: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a partition, in order, and the first offsets of its gaps."""

    files: list[Entry]
    gaps: list[int]


class Archive:
    """The archive of one topic of one cluster. Thread-safe.

    Every method raises ObjectStoreError when the store is away, and ArchiveDamagedError for a file that is not what was
    written.
    """

    def __init__(self, objects: Objects, *, cluster: str, topic: str) -> None:
        self._objects = objects
        self.cluster = cluster
        self.topic = topic
        self._folder = f"archive/{cluster}/{topic}"

    def path(self, partition: int, first: int) -> str:
        """Where the file that begins at an offset lies."""
        return f"{self._folder}/{partition}/{first:0{_DIGITS}d}{_SUFFIX}"

    def listing(self, partition: int) -> Listing:
        """All files of a partition."""
        files: list[Entry] = []
        gaps: list[int] = []
        for first, size_bytes, is_gap in self._list(partition, None):
            if is_gap:
                gaps.append(first)
            else:
                files.append(Entry(first, size_bytes))
            if len(files) > FILES_MAX:
                raise ArchiveDamagedError(f"{self._folder}/{partition}: more than {FILES_MAX} files")
        return Listing(files=sorted(files), gaps=sorted(gaps))

    def last(self, partition: int, *, near: int = 0) -> FileInfo | None:
        """The newest file's facts; None when nothing is archived. The file is read whole and checked: what follows is
        built on it. `near` is a guess of the archive's end: a good one spares listing what lies far before it."""
        newest = None
        for after in (max(0, near - FILE_OFFSETS_MAX), None):
            firsts = (first for first, _, is_gap in self._list(partition, after) if not is_gap)
            newest = max(firsts, default=None)
            if newest is not None:
                break
        file = None if newest is None else self.file(partition, newest)
        return None if file is None else file.info

    def end_of(self, partition: int, *, near: int = 0) -> int:
        """The offset behind the last one archived: where the next file begins. Every archive begins at 0, with a gap
        where the log did not reach back to it, so that writers agree on the place of the first file too."""
        found = self.last(partition, near=near)
        return 0 if found is None else found.next

    def whole_from(self, partition: int) -> int:
        """The offset from which on no gap is recorded."""
        newest_gap = max((first for first, _, is_gap in self._list(partition, None) if is_gap), default=None)
        info = None if newest_gap is None else self.info(partition, newest_gap)
        return 0 if info is None else info.next

    def info(self, partition: int, first: int) -> FileInfo | None:
        """What the file that begins at an offset says of itself; None when there is none. Reads its header alone."""
        path = self.path(partition, first)
        data = self._read(path, HEADER_SIZE_BYTES_MAX)
        return None if data is None else self._mine(path, partition, first, read_header(path, data)[0])

    def file(self, partition: int, first: int) -> ArchiveFile | None:
        """The file that begins at an offset, checked; None when there is none."""
        path = self.path(partition, first)
        data = self._read(path, OBJECT_SIZE_BYTES_MAX + 1)
        if data is None:
            return None
        if len(data) > OBJECT_SIZE_BYTES_MAX:
            raise ArchiveDamagedError(f"{path}: larger than a file of the archive may be")
        file = ArchiveFile(path, data)
        self._mine(path, partition, first, file.info)
        return file

    def put(self, builder: FileBuilder) -> FileInfo | None:
        """Write a file; None, and nothing is written, when another writer was there first."""
        info, data = builder.build()
        return info if self._objects.put_new(self.path(info.partition, info.first), data) else None

    def put_gap(self, gap: Gap) -> bool:
        """Record that offsets will never be archived; False when another writer was there first. `show_gap` follows."""
        info, data = build_gap(self.cluster, self.topic, gap)
        return self._objects.put_new(self.path(info.partition, info.first), data)

    def show_gap(self, gap: Gap) -> None:
        """Write the gap once more under a name that a listing shows. Done again, it changes nothing."""
        data = orjson.dumps({"topic": self.topic, **asdict(gap)}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        self._objects.put_new(f"{self._folder}/{gap.partition}/{gap.first:0{_DIGITS}d}{_GAP_SUFFIX}", data)

    def segments(self, partition: int, start: int) -> Iterator[ArchiveFile | Gap]:
        """Files from the one that holds `start` on, each beginning where the one before ends, up to the archive's end.

        What is missing comes as a Gap: recorded ones, deleted files, and what lies before the first file.
        """
        at = self._begin(partition, start)
        if at is None:
            return
        if isinstance(at, Gap):
            yield at
            at = at.next
        while True:
            file = self.file(partition, at)
            if file is None:
                following = self._following(partition, at)
                if following is None:
                    return
                yield Gap(partition=partition, first=at, next=following, reason="a file of the archive is missing")
                at = following
                continue
            yield file.info.gap or file
            at = file.info.next

    def records(self, partition: int, start: int, end: int) -> Iterator[LogRecord]:
        """Records of a range, in order. ArchiveGapError when a part of the range is missing, also at its end."""
        at = start
        for segment in self.segments(partition, start):
            if isinstance(segment, Gap):
                if segment.first < end:
                    raise ArchiveGapError(self.topic, segment)
                return
            for record in segment.records(at):
                if record.offset >= end:
                    return
                yield record
            at = segment.info.next
            if at >= end:
                return
        if at < end:
            missing = Gap(partition=partition, first=at, next=end, reason="the archive ends before")
            raise ArchiveGapError(self.topic, missing)

    def record(self, partition: int, offset: int) -> LogRecord | None:
        """One record; None when the log had none at this offset. ArchiveGapError when it is not archived."""
        return next(self.records(partition, offset, offset + 1), None)

    def _begin(self, partition: int, start: int) -> int | Gap | None:
        """First offset of the file that holds `start`, or what is missing there; None when the archive ends before."""
        at = following = None
        # A store that lists in order shows that file first, unless it is a gap, which may begin anywhere. What is found
        # is proven by its header; before anything is said to be missing, all names are looked at.
        for after, eager in ((max(0, start - FILE_OFFSETS_MAX), True), (None, False)):
            at, following = self._around(partition, start, after=after, eager=eager)
            info = None if at is None else self.info(partition, at)
            if info is not None and info.first <= start < info.next:
                return info.first
        if following is None:
            return None
        reason = "archiving began later" if at is None else "a file of the archive is missing"
        return Gap(partition=partition, first=start, next=following, reason=reason)

    def _around(
        self, partition: int, start: int, *, after: int | None, eager: bool = False
    ) -> tuple[int | None, int | None]:
        """The last first offset up to `start`, and the next one behind it, among the names from `after` on.

        `eager` takes the names as if they came in order, and stops at the first one behind.
        """
        before: int | None = None
        behind: int | None = None
        for first, _, is_gap in self._list(partition, after):
            if is_gap:
                continue
            if first <= start:
                before = first if before is None else max(before, first)
            else:
                behind = first if behind is None else min(behind, first)
                if eager:
                    break
        return before, behind

    def _following(self, partition: int, at: int) -> int | None:
        return self._around(partition, at, after=at)[1]

    def _list(self, partition: int, after: int | None) -> Iterator[tuple[int, int, bool]]:
        """(first offset, bytes, whether it is the JSON of a gap) of every name of ours, in no certain order."""
        folder = f"{self._folder}/{partition}"
        behind = None if after is None else f"{folder}/{after:0{_DIGITS}d}"
        for found in self._objects.list(folder, after=behind):
            name = found.path.rsplit("/", 1)[-1]
            digits, suffix = name[:_DIGITS], name[_DIGITS:]
            if len(digits) == _DIGITS and digits.isdecimal() and suffix in (_SUFFIX, _GAP_SUFFIX):
                yield int(digits), found.size_bytes, suffix == _GAP_SUFFIX

    def _read(self, path: str, size_bytes_max: int) -> bytes | None:
        """The beginning of an object, or all of it. A store that refuses to read from an empty one is not away."""
        try:
            return self._objects.get_range(path, 0, size_bytes_max)
        except ObjectStoreError:
            found = self._objects.info(path)
            if found is None or found.size_bytes > 0:
                raise
            return b""

    def _mine(self, path: str, partition: int, first: int, info: FileInfo) -> FileInfo:
        if (info.cluster, info.topic, info.partition, info.first) != (self.cluster, self.topic, partition, first):
            raise ArchiveDamagedError(f"{path}: it belongs elsewhere: {info.topic}[{info.partition}] at {info.first}")
        return info
