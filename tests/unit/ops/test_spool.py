"""Records of a partition by workflow: whole, in order, within a memory that is bounded, also through the file."""

from __future__ import annotations

import os
import random
import resource
import uuid
from collections import defaultdict, deque

import pytest

from ops import spool as spooling
from ops.spool import BUCKETS, Spool, bucket_of
from schemas.errors import DiskFullError
from schemas.log_record import LogRecord


def records(seed: int, count: int = 400) -> list[LogRecord]:
    """Of some workflows, mixed; one has no key, and some no value."""
    draw = random.Random(seed)
    keys = [None, *(str(uuid.UUID(int=draw.getrandbits(128))).encode() for _ in range(12))]
    return [
        LogRecord(3, offset, 1_000 + offset, 2, draw.choice(keys), draw.choice([None, draw.randbytes(40)]), ())
        for offset in range(count)
    ]


def by_bucket(found: list[LogRecord]) -> dict[int, list[LogRecord]]:
    gathered: dict[int, list[LogRecord]] = defaultdict(list)
    for record in found:
        gathered[bucket_of(record.key)].append(record)
    return gathered


@pytest.mark.parametrize("memory_bytes", [2_000, 30_000, 10**9])
@pytest.mark.parametrize("part_bytes", [1, 20_000, 10**9])
def test_each_record_is_in_one_part_in_the_order_of_the_log(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: int, part_bytes: int
) -> None:
    monkeypatch.setattr(spooling, "MEMORY_BYTES_MAX", memory_bytes)
    monkeypatch.setattr(spooling, "PART_BYTES_MAX", part_bytes)
    wanted = records(memory_bytes)
    with Spool(3) as spool:
        for record in wanted:
            spool.add(record)
        parts = list(spool.parts())
    assert [bucket for buckets, _ in parts for bucket in buckets] == list(range(BUCKETS))
    for buckets, found in parts:
        assert {bucket_of(record.key) for record in found} <= set(buckets)
    assert by_bucket([record for _, found in parts for record in found]) == by_bucket(wanted)
    if part_bytes == 1:
        assert len(parts) > 10


def test_more_than_the_memory_goes_to_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "MEMORY_BYTES_MAX", 5_000)
    with Spool(3) as spool:
        for record in records(1):
            spool.add(record)
            assert spool._held_bytes <= 5_000
        assert spool._file.seek(0, os.SEEK_END) > 5_000
        assert os.fstat(spool._file.fileno()).st_nlink == 0
    assert spool._file.closed


def test_buckets_that_are_done_are_left_out() -> None:
    wanted = records(2)
    done = {bucket_of(wanted[0].key), bucket_of(wanted[1].key)}
    with Spool(3, without=done) as spool:
        for record in wanted:
            spool.add(record)
        parts = list(spool.parts())
    assert {b for buckets, _ in parts for b in buckets} == set(range(BUCKETS)) - done
    assert by_bucket([r for _, found in parts for r in found]) == {
        bucket: found for bucket, found in by_bucket(wanted).items() if bucket not in done
    }


def test_without_room_for_its_file_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses to write, as on a full disk; FAULTS.md row 20."""
    monkeypatch.setattr(spooling, "MEMORY_BYTES_MAX", 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    record = LogRecord(3, 0, 1_000, 2, b"key", bytes(40_000), ())
    with Spool(3) as spool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with pytest.raises(DiskFullError, match="no room for temporary files: File too large"):
                deque(map(spool.add, [record] * 3), maxlen=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
