"""One file of the archive: an Avro object container file that holds a range of a partition's log, record for record.

Any Avro reader can read it. Ours is stricter and takes nothing on trust: the header must be, byte for byte, what the
writer makes of its facts; the body must have the digest that the header names; sizes and counts are held against their
bounds before anything is allocated. A file that differs in one bit is refused (ArchiveDamagedError).

A range that the log lost before it was archived is a file too, without records and with a reason (`Gap`): it takes the
place of the records, so that of a writer with records and one without, one wins.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import orjson
import zstandard

from .errors import KintsugiError
from .log_record import SCHEMA, LogRecord, decode, long, sized

#: Records and bytes of a file before compression. A file is in memory as a whole when it is written and when it is
#: read; the largest record (12 MiB) fits.
FILE_RECORDS_MAX = 50_000
FILE_SIZE_BYTES_MAX = 16 * 1024 * 1024
#: A file covers no more offsets than that, so the file of an offset is found among this many names before it.
FILE_OFFSETS_MAX = FILE_RECORDS_MAX
#: Compressed one by one, and found one by one: about 430 records of the usual size, 4 ms of reading.
BLOCK_SIZE_BYTES = 256 * 1024
#: Bytes that do not compress grow by less than 1 %; beside that the header.
OBJECT_SIZE_BYTES_MAX = FILE_SIZE_BYTES_MAX + 1024 * 1024
#: A header is 1.3 KB, and as much again leaves room for long names of topics and reasons.
HEADER_SIZE_BYTES_MAX = 4096
#: Level 1 against deflate 1, events of 600 B in blocks of 256 KiB: 860 and 150 MB/s, to 29 and 33 %.
_LEVEL = 1
_VERSION = 1
_REASON_MAX = 500
_LONG_SIZE_BYTES_MAX = 10
_OFFSET_MAX = 2**63 - 1

_HEX = re.compile(r"[0-9a-f]{64}")


class ArchiveDamagedError(KintsugiError):
    """A file of the archive is not what was written, or not one of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Offsets from `first` up to `next` that the archive does not have, and why."""

    partition: int
    first: int
    next: int
    reason: str
    noticed_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """What a file says of itself. `next` is the offset at which the next file begins."""

    cluster: str
    topic: str
    partition: int
    first: int
    next: int
    records: int
    first_timestamp_ms: int | None
    last_timestamp_ms: int | None
    body_size_bytes: int
    body_sha256: str
    gap_reason: str | None = None
    gap_noticed_ms: int | None = None
    version: int = _VERSION

    @property
    def gap(self) -> Gap | None:
        """The gap that this file stands for."""
        if self.gap_reason is None:
            return None
        return Gap(
            partition=self.partition,
            first=self.first,
            next=self.next,
            reason=self.gap_reason,
            noticed_ms=self.gap_noticed_ms,
        )


_PREFIX = (
    b"Obj\x01"
    + long(4)
    + sized(b"avro.schema")
    + sized(orjson.dumps(SCHEMA))
    + sized(b"avro.codec")
    + sized(b"zstandard")
    + sized(b"kintsugi.archive")
)


def _header(facts: bytes) -> bytes:
    """The whole header, made of the facts alone: one that was changed anywhere is not equal to it."""
    digest = hashlib.sha256(facts)
    proof = sized(b"kintsugi.digest") + sized(digest.hexdigest().encode())
    return b"".join((_PREFIX, sized(facts), proof, long(0), _sync(facts)))


def _sync(facts: bytes) -> bytes:
    return hashlib.sha256(b"sync" + facts).digest()[:16]


class FileBuilder:
    """Collects the records of one file. `first` is where the archive ends; every record lies at or behind it."""

    def __init__(self, cluster: str, topic: str, partition: int, first: int) -> None:
        self._place = (cluster, topic, partition)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._blocks: list[tuple[int, bytes]] = []
        self._open: list[bytes] = []
        self._open_size_bytes = 0
        self._size_bytes = 0
        self._times: tuple[int, int] | None = None
        self.first = self.next = first
        self.records = 0
        #: Bytes of memory it takes.
        self.held_bytes = 0

    def takes(self, offset: int, size_bytes: int) -> bool:
        """Whether a record of this encoded size fits in; the first one does, unless no file could hold it."""
        if self.records == 0:
            return size_bytes <= FILE_SIZE_BYTES_MAX
        return (
            self.records < FILE_RECORDS_MAX
            and self._size_bytes + size_bytes <= FILE_SIZE_BYTES_MAX
            and offset - self.first < FILE_OFFSETS_MAX
        )

    def add(self, record: LogRecord, encoded: bytes) -> None:
        """Take the next record that `takes` said fits."""
        assert record.offset >= self.next and self.takes(record.offset, len(encoded))
        if self._open and self._open_size_bytes + len(encoded) > BLOCK_SIZE_BYTES:
            self._close_block()
        self._open.append(encoded)
        self._open_size_bytes += len(encoded)
        self._size_bytes += len(encoded)
        self.held_bytes += len(encoded)
        self._times = (record.timestamp_ms if self._times is None else self._times[0], record.timestamp_ms)
        self.records += 1
        self.next = record.offset + 1

    def build(self) -> tuple[FileInfo, bytes]:
        """The file's facts and its bytes."""
        assert self.records > 0
        if self._open:
            self._close_block()
        return _build(self._place, self.first, self.next, self.records, self._times, self._blocks, None)

    def _close_block(self) -> None:
        block = self._compressor.compress(b"".join(self._open))
        self._blocks.append((len(self._open), block))
        self.held_bytes += len(block) - self._open_size_bytes
        self._open, self._open_size_bytes = [], 0


def build_gap(cluster: str, topic: str, gap: Gap) -> tuple[FileInfo, bytes]:
    """A file that says what is missing."""
    assert gap.first < gap.next
    return _build((cluster, topic, gap.partition), gap.first, gap.next, 0, None, [], gap)


def _build(
    place: tuple[str, str, int],
    first: int,
    next_: int,
    records: int,
    times: tuple[int, int] | None,
    blocks: list[tuple[int, bytes]],
    gap: Gap | None,
) -> tuple[FileInfo, bytes]:
    cluster, topic, partition = place
    # The facts name the body's digest and the sync marker is made of the facts: the digest leaves the markers out.
    digest = hashlib.sha256()
    size_bytes = 0
    for count, block in blocks:
        head = long(count) + long(len(block))
        digest.update(head)
        digest.update(block)
        size_bytes += len(head) + len(block) + 16
    info = FileInfo(
        cluster=cluster,
        topic=topic,
        partition=partition,
        first=first,
        next=next_,
        records=records,
        first_timestamp_ms=times[0] if times else None,
        last_timestamp_ms=times[1] if times else None,
        body_size_bytes=size_bytes,
        body_sha256=digest.hexdigest(),
        gap_reason=None if gap is None else gap.reason[:_REASON_MAX],
        gap_noticed_ms=None if gap is None else gap.noticed_ms,
    )
    facts = orjson.dumps(asdict(info), option=orjson.OPT_SORT_KEYS)
    sync = _sync(facts)
    parts = [_header(facts)]
    for count, block in blocks:
        parts += (long(count), long(len(block)), block, sync)
    return info, b"".join(parts)


def read_header(path: str, data: bytes) -> tuple[FileInfo, int, bytes]:
    """(facts, size of the header, sync marker) from a file's first bytes. ArchiveDamagedError when it is not whole."""
    if not data.startswith(_PREFIX):
        raise _damaged(path, "it does not begin like a file of the archive")
    size_bytes, at = _read_long(path, data, len(_PREFIX))
    if not 0 < size_bytes <= HEADER_SIZE_BYTES_MAX:
        raise _damaged(path, "the header has an impossible size")
    facts = data[at : at + size_bytes]
    header = _header(facts)
    if not data.startswith(header):
        raise _damaged(path, "the header is not what was written")
    try:
        info = FileInfo(**orjson.loads(facts))
        _check(info)
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"the header's facts: {error}") from None
    return info, len(header), _sync(facts)


def _check(info: FileInfo) -> None:
    """The bounds that every writer keeps. ValueError names the one that is broken, TypeError a fact of another type."""
    if info.version != _VERSION:
        raise ValueError(f"version {info.version} is not known here")
    numbers = (info.partition, info.first, info.next, info.records, info.body_size_bytes)
    if any(type(number) is not int or not 0 <= number <= _OFFSET_MAX for number in numbers):
        raise ValueError("a number that is none")
    if not isinstance(info.body_sha256, str) or not _HEX.fullmatch(info.body_sha256):
        raise ValueError("a digest that is none")
    if info.first >= info.next or info.records > min(FILE_RECORDS_MAX, info.next - info.first):
        raise ValueError("an impossible range")
    if info.body_size_bytes > OBJECT_SIZE_BYTES_MAX or (info.records == 0) != (info.gap_reason is not None):
        raise ValueError("an impossible size")


class ArchiveFile:
    """A file whose header and digest were found right. Its records are decoded as they are asked for."""

    def __init__(self, path: str, data: bytes) -> None:
        """ArchiveDamagedError when any byte is not what was written."""
        self.path = path
        self.info, self._at, self._sync = read_header(path, data)
        self._data = memoryview(data)
        if len(data) - self._at != self.info.body_size_bytes:
            raise _damaged(path, f"{len(data) - self._at} bytes of records, {self.info.body_size_bytes} were written")
        digest = hashlib.sha256()
        for start, end in self._blocks():
            digest.update(self._data[start:end])
        if digest.hexdigest() != self.info.body_sha256:
            raise _damaged(path, "the records do not have the digest that the header names")

    def records(self, start: int = 0) -> Iterator[LogRecord]:
        """Records from an offset on, in order. ArchiveDamagedError when they are not those of the header."""
        last, count = self.info.first - 1, 0
        skipped = False
        for records, raw in self._raw_blocks(start):
            if records is None:
                skipped = True
                continue
            for record in self._decoded(records, raw):
                if not last < record.offset < self.info.next:
                    raise _damaged(self.path, f"offset {record.offset} is out of order")
                last = record.offset
                count += 1
                if record.offset >= start:
                    yield record
        if not skipped and (count != self.info.records or last + 1 != self.info.next) and self.info.gap_reason is None:
            raise _damaged(self.path, f"{count} records up to {last}, {self.info.records} were written")

    def _decoded(self, count: int, raw: bytes) -> Iterator[LogRecord]:
        try:
            yield from decode(self.info.partition, count, raw)
        except ValueError as error:
            raise _damaged(self.path, str(error)) from None

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """(start, end) of each block with its two numbers, without the marker behind it."""
        at, end = self._at, len(self._data)
        while at < end:
            _, behind = self._count(at)
            size_bytes, behind = _read_long(self.path, self._data, behind)
            if not 0 < size_bytes <= end - behind - 16:
                raise _damaged(self.path, f"a block at {at} has an impossible size")
            marker = behind + size_bytes
            if self._data[marker : marker + 16] != self._sync:
                raise _damaged(self.path, f"no marker behind the block at {at}")
            yield at, marker
            at = marker + 16

    def _count(self, at: int) -> tuple[int, int]:
        count, behind = _read_long(self.path, self._data, at)
        if not 0 < count <= self.info.records:
            raise _damaged(self.path, f"a block at {at} has an impossible count")
        return count, behind

    def _raw_blocks(self, start: int) -> Iterator[tuple[int | None, bytes]]:
        """(records, bytes) of each block; None for one whose records all lie before `start`."""
        waiting: tuple[int, bytes] | None = None
        total = 0
        decompressor = zstandard.ZstdDecompressor()
        for at, end in self._blocks():
            count, behind = self._count(at)
            _, behind = _read_long(self.path, self._data, behind)
            raw = self._decompress(decompressor, self._data[behind:end])
            total += len(raw)
            if total > FILE_SIZE_BYTES_MAX:
                raise _damaged(self.path, "more bytes of records than a file may hold")
            if waiting is not None:
                # The offset is a record's first field, so a block's first offset is its first number.
                yield (None, b"") if _read_long(self.path, raw, 0)[0] <= start else waiting
            waiting = (count, raw)
        if waiting is not None:
            yield waiting

    def _decompress(self, decompressor: zstandard.ZstdDecompressor, block: memoryview) -> bytes:
        try:
            size_bytes = zstandard.frame_content_size(block)
            if not 0 <= size_bytes <= FILE_SIZE_BYTES_MAX:  # -1: not said
                raise _damaged(self.path, "a block of more bytes than a file may hold")
            return decompressor.decompress(block, max_output_size=FILE_SIZE_BYTES_MAX, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _damaged(self.path, f"a block cannot be decompressed: {error}") from None


def _read_long(path: str, data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends. ArchiveDamagedError when there is none."""
    number = 0
    for index, byte in enumerate(data[at : at + _LONG_SIZE_BYTES_MAX]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at + index + 1
    raise _damaged(path, f"no number at {at}")


def _damaged(path: str, what: str) -> ArchiveDamagedError:
    return ArchiveDamagedError(f"{path}: {what}", hint="kintsugi archive verify; docs/operations.md, Archive")
