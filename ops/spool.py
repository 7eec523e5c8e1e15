"""Records of a partition, gathered by workflow within a bounded memory: what goes beyond it goes to a file.

The file has no name, so nothing is left of it however the process ends.
"""

from __future__ import annotations

import errno
import struct
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from zlib import crc32

from schemas.errors import DiskFullError
from schemas.log_record import LogRecord

#: Buckets of one partition: a partition of 2 GB is folded in parts of 8 MB, one of 8 GB in parts of 32 MB.
BUCKETS = 256
#: Keys and values in memory before they go to the file.
MEMORY_BYTES_MAX = 128 * 1024 * 1024
#: Keys and values of one part: some 75 MB as rows in memory, where one is written while the next one is folded.
PART_BYTES_MAX = 8 * 1024 * 1024
#: Python's own share of a record in memory.
_RECORD_BYTES = 300

#: A disk, a quota and a limit of the process that leave no room; and no folder in which there is any.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT})

_head = struct.Struct(">qqii")


def bucket_of(key: bytes | None) -> int:
    """The bucket of a workflow."""
    return crc32(key or b"") % BUCKETS


class Spool:
    """Records by bucket, each bucket in the order of the log."""

    def __init__(self, partition: int, *, without: Collection[int] = ()) -> None:
        """`without`: buckets that are not wanted any more."""
        self._partition = partition
        self._without = without
        with _room():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._held: dict[int, list[LogRecord]] = {}
        self._held_bytes = 0
        #: Bucket to (place, bytes) of its pieces in the file.
        self._pieces: dict[int, list[tuple[int, int]]] = {}
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # what it has not written yet is not wanted any more
            self._file.close()

    def add(self, record: LogRecord) -> None:
        """Take the next record of the partition. DiskFullError when it finds no room."""
        bucket = bucket_of(record.key)
        if bucket in self._without:
            return
        size = len(record.key or b"") + len(record.value or b"") + _RECORD_BYTES
        self._held.setdefault(bucket, []).append(record)
        self._sizes[bucket] = self._sizes.get(bucket, 0) + size
        self._held_bytes += size
        if self._held_bytes > MEMORY_BYTES_MAX:
            self._spill()

    def parts(self) -> Iterator[tuple[list[int], list[LogRecord]]]:
        """All buckets, as many together as a part may hold, and their records; a workflow's in the order of the log."""
        buckets: list[int] = []
        size = 0
        for bucket in range(BUCKETS):
            if bucket in self._without:
                continue
            if buckets and size + self._sizes.get(bucket, 0) > PART_BYTES_MAX:
                yield buckets, [record for b in buckets for record in self._records(b)]
                buckets, size = [], 0
            buckets.append(bucket)
            size += self._sizes.get(bucket, 0)
        if buckets:
            yield buckets, [record for b in buckets for record in self._records(b)]

    def _spill(self) -> None:
        with _room():
            place = self._file.seek(0, 2)
            for bucket, records in self._held.items():
                data = b"".join(
                    _head.pack(r.offset, r.timestamp_ms, -1 if r.key is None else len(r.key), len(r.value or b""))
                    + (r.key or b"")
                    + (r.value or b"")
                    for r in records
                )
                self._file.write(data)
                self._pieces.setdefault(bucket, []).append((place, len(data)))
                place += len(data)
            self._file.flush()
        self._held.clear()
        self._held_bytes = 0

    def _records(self, bucket: int) -> Iterator[LogRecord]:
        for place, size in self._pieces.get(bucket, ()):
            self._file.seek(place)
            data, at = self._file.read(size), 0
            while at < size:
                offset, timestamp_ms, key_size, value_size = _head.unpack_from(data, at)
                at += _head.size
                key = None if key_size < 0 else data[at : at + key_size]
                at += max(key_size, 0)
                value = data[at : at + value_size] or None
                at += value_size
                yield LogRecord(self._partition, offset, timestamp_ms, 2, key, value, ())
        yield from self._held.get(bucket, ())


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFullError(
            f"no room for temporary files: {error.strerror}",
            hint="make room where they lie, or name another folder with TMPDIR",
        ) from None
