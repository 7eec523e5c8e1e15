"""A file of the archive gives back exactly the records that went in, or says that it is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

import fastavro
import orjson
import pytest
import zstandard
from avro.datafile import DataFileReader
from avro.io import DatumReader
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import archive_format
from schemas.archive_format import (
    BLOCK_SIZE_BYTES,
    FILE_OFFSETS_MAX,
    FILE_RECORDS_MAX,
    FILE_SIZE_BYTES_MAX,
    HEADER_SIZE_BYTES_MAX,
    OBJECT_SIZE_BYTES_MAX,
    ArchiveDamagedError,
    ArchiveFile,
    FileBuilder,
    Gap,
    build_gap,
    read_header,
)
from schemas.log_record import SCHEMA, LogRecord, encode, long, sized

PARTITION = 3
OCTETS = st.none() | st.binary(max_size=200)
HEADERS = st.lists(st.tuples(st.text(max_size=10), OCTETS), max_size=5).map(tuple)
TIMES = st.integers(-1, 2**62)
STEPS = st.integers(0, 1000)


def record(offset: int, **fields: Any) -> LogRecord:
    usual = {"timestamp_ms": 1_700_000_000_000 + offset, "timestamp_type": 2, "key": b"key", "value": b"value"}
    return LogRecord(partition=PARTITION, offset=offset, **{**usual, "headers": (("a", b"1"),), **fields})


def file_of(records: Sequence[LogRecord], first: int = 0) -> bytes:
    builder = FileBuilder("cluster", "topic", PARTITION, first)
    for one in records:
        encoded = encode(one)
        assert builder.takes(one.offset, len(encoded))
        builder.add(one, encoded)
    return builder.build()[1]


def read(data: bytes, start: int = 0) -> list[LogRecord]:
    return list(ArchiveFile("file", data).records(start))


@st.composite
def logs(draw: st.DrawFn) -> list[LogRecord]:
    """Records with whatever a log may hold; offsets may be left out."""
    found: list[LogRecord] = []
    offset = draw(st.integers(0, 2**40))
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 2))
        found.append(LogRecord(PARTITION, offset, draw(TIMES), kind, draw(OCTETS), draw(OCTETS), draw(HEADERS)))
        offset += 1 + draw(STEPS)
    return found


@given(logs())
def test_what_went_in_comes_out(records: list[LogRecord]) -> None:
    data = file_of(records, records[0].offset)
    assert read(data) == records
    info = ArchiveFile("file", data).info
    assert (info.first, info.next, info.records) == (records[0].offset, records[-1].offset + 1, len(records))
    assert (info.first_timestamp_ms, info.last_timestamp_ms) == (records[0].timestamp_ms, records[-1].timestamp_ms)
    assert data == file_of(records, records[0].offset), "the same records make the same bytes"


@given(logs())
def test_other_readers_of_avro_read_the_same(records: list[LogRecord]) -> None:
    with DataFileReader(BytesIO(file_of(records, records[0].offset)), DatumReader()) as reader:
        found: Iterator[Any] = iter(reader)
        plain = [{**asdict(r), "headers": [{"key": k, "value": v} for k, v in r.headers]} for r in records]
        assert list(found) == [{k: v for k, v in r.items() if k != "partition"} for r in plain]


@given(logs())
def test_our_encoding_is_that_of_fastavro(records: list[LogRecord]) -> None:
    parsed = fastavro.parse_schema(SCHEMA)
    for one in records:
        plain = {**asdict(one), "headers": [{"key": key, "value": value} for key, value in one.headers]}
        out = BytesIO()
        fastavro.schemaless_writer(out, parsed, plain)
        assert encode(one) == out.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"key": None},
        {"value": None},
        {"key": b"", "value": b""},
        {"headers": ()},
        {"headers": (("a", b"1"), ("a", b"1"), ("a", None), ("", b""), ("b", b"\xff\x00"))},
        {"timestamp_ms": -1, "timestamp_type": 0},
    ],
)
def test_null_is_not_empty_and_headers_keep_order_and_duplicates(fields: dict[str, Any]) -> None:
    records = [record(7, **fields), record(8)]
    assert read(file_of(records, 7)) == records


def small() -> bytes:
    return file_of([record(5), record(6, key=None), record(9, headers=())], 4)


def test_every_flipped_bit_is_found() -> None:
    data = small()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(ArchiveDamagedError):
                read(bytes(changed))


def test_every_truncation_and_addition_is_found() -> None:
    data = small()
    for size in range(len(data)):
        with pytest.raises(ArchiveDamagedError):
            read(data[:size])
    with pytest.raises(ArchiveDamagedError):
        read(data + b"\x00")


@given(st.binary(max_size=400))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    for data in (rubbish, small()[:700] + rubbish, archive_format._PREFIX + rubbish):
        with pytest.raises(ArchiveDamagedError):
            read(data)


def test_a_header_is_proven_without_the_records() -> None:
    data = small()
    info, size_bytes, _ = read_header("file", data[:HEADER_SIZE_BYTES_MAX])
    assert (info.first, info.next, info.records) == (4, 10, 3)
    for at in range(size_bytes):
        changed = bytearray(data[:HEADER_SIZE_BYTES_MAX])
        changed[at] ^= 1
        with pytest.raises(ArchiveDamagedError):
            read_header("file", bytes(changed))


def test_a_header_of_long_names_fits_its_bound() -> None:
    gap = Gap(partition=2**31 - 1, first=2**62, next=2**63 - 1, reason="\U0001f9f1" * 1000, noticed_ms=2**62)
    info, data = build_gap("c" * 249, "t" * 249, gap)
    assert len(data) <= HEADER_SIZE_BYTES_MAX
    assert read_header("file", data[:HEADER_SIZE_BYTES_MAX])[0] == info


def forged(blocks: Sequence[tuple[int, bytes]], **facts: Any) -> bytes:
    """A file of a forger who computes every digest right."""
    info, _ = archive_format._build(("cluster", "topic", PARTITION), 0, 10, 10, None, list(blocks), None)
    plain = orjson.dumps({**asdict(info), **facts}, option=orjson.OPT_SORT_KEYS)
    parts = [archive_format._header(plain)]
    for count, block in blocks:
        parts += (long(count), long(len(block)), block, archive_format._sync(plain))
    return b"".join(parts)


def packed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


def bomb(mebibytes: int) -> bytes:
    made = zstandard.ZstdCompressor().compressobj(size=mebibytes * 2**20)
    return b"".join(made.compress(bytes(2**20)) for _ in range(mebibytes)) + made.flush()


ONE = encode(record(0))


@pytest.mark.parametrize(
    ("blocks", "facts"),
    [
        ([(10, bomb(256))], {}),
        ([(1, packed(bytes(FILE_SIZE_BYTES_MAX))), (1, packed(bytes(FILE_SIZE_BYTES_MAX)))], {}),
        ([(1, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**20)))], {}),
        ([(2**60, packed(ONE))], {}),
        ([(-1, packed(ONE))], {}),
        ([(0, packed(b""))], {}),
        ([(1, packed(ONE))], {"records": 2**40, "next": 2**41}),
        ([(1, packed(ONE))], {"records": FILE_RECORDS_MAX + 1, "next": FILE_RECORDS_MAX + 1}),
        ([(1, packed(ONE))], {"body_size_bytes": OBJECT_SIZE_BYTES_MAX + 1}),
        ([(1, packed(ONE))], {"records": True}),
        ([(1, packed(ONE))], {"first": -1}),
        ([(1, packed(ONE))], {"next": 2**63}),
        ([(1, packed(ONE))], {"version": 2}),
        ([(1, packed(ONE))], {"extra": 1}),
        ([(1, packed(ONE))], {"body_sha256": None}),
        ([(1, packed(ONE))], {"records": 0, "gap_reason": None}),
        ([(1, packed(ONE + b"\x00"))], {}),
        ([(1, packed(ONE[:-1]))], {}),
        ([(2, packed(ONE + ONE))], {}),
        ([(1, packed(encode(record(99))))], {}),
        ([(1, packed(ONE))], {"records": 10}),
        # A record whose key claims 2^60 bytes, and one whose headers claim as many.
        ([(1, packed(long(0) * 3 + b"\x02" + long(2**60)))], {}),
        ([(1, packed(long(0) * 3 + b"\x00\x00" + long(2**60)))], {}),
        ([(1, b"not zstandard")], {}),
        ([(1, packed(ONE) + b"more")], {}),
        ([(1, b"")], {}),
    ],
)
def test_a_forged_file_is_refused_before_it_does_harm(blocks: Any, facts: dict[str, Any]) -> None:
    with pytest.raises(ArchiveDamagedError):
        read(forged(blocks, **facts))


def test_a_forger_who_keeps_to_the_rules_is_read() -> None:
    """The proof that the cases above fail for what is wrong with them."""
    records = [record(offset) for offset in range(10)]
    raw = b"".join(map(encode, records))
    assert read(forged([(10, packed(raw))])) == records


def test_a_huge_header_is_refused() -> None:
    facts = orjson.dumps({"cluster": "c" * 10 * HEADER_SIZE_BYTES_MAX})
    proof = sized(b"kintsugi.digest") + sized(hashlib.sha256(facts).hexdigest().encode())
    with pytest.raises(ArchiveDamagedError, match="impossible size"):
        read_header("file", archive_format._PREFIX + sized(facts) + proof + long(0) + archive_format._sync(facts))


def test_a_file_is_bounded_in_records_bytes_and_offsets() -> None:
    builder = FileBuilder("cluster", "topic", PARTITION, 0)
    assert not builder.takes(0, FILE_SIZE_BYTES_MAX + 1), "no file could hold it"
    large = record(0, value=bytes(12 * 1024 * 1024))
    builder.add(large, encode(large))
    assert builder.takes(1, 3 * 1024 * 1024)
    assert not builder.takes(1, 5 * 1024 * 1024)
    assert builder.takes(FILE_OFFSETS_MAX - 1, 10)
    assert not builder.takes(FILE_OFFSETS_MAX, 10)
    many = FileBuilder("cluster", "topic", PARTITION, 0)
    one = encode(record(0))
    for offset in range(FILE_RECORDS_MAX):
        many.add(record(offset), one)
    assert not many.takes(FILE_RECORDS_MAX, 10)


def test_a_record_that_does_not_compress_fits() -> None:
    blob = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(12 * 1024 * 32))
    records = [record(0, value=blob), record(1), record(2, value=blob[: 3 * 1024 * 1024])]
    data = file_of(records)
    assert len(data) <= OBJECT_SIZE_BYTES_MAX
    assert read(data) == records


def test_a_buffer_says_how_much_memory_it_takes() -> None:
    builder = FileBuilder("cluster", "topic", PARTITION, 0)
    for offset in range(1000):
        one = record(offset, value=bytes(1000))
        builder.add(one, encode(one))
    assert builder.held_bytes < BLOCK_SIZE_BYTES + 10_000, "closed blocks are compressed"


@settings(max_examples=30)
@given(st.integers(0, 4_100))
def test_reading_begins_at_any_offset(start: int) -> None:
    assert read(MANY_BLOCKS, start) == MANY[start:]


MANY = [record(offset, value=offset.to_bytes(4, "big") * 100) for offset in range(4_000)]
MANY_BLOCKS = file_of(MANY)


def test_blocks_before_the_start_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = archive_format.decode

    def counting(partition: int, count: int, raw: bytes) -> Iterator[LogRecord]:
        decoded.append(count)
        return decode(partition, count, raw)

    monkeypatch.setattr(archive_format, "decode", counting)
    assert next(ArchiveFile("file", MANY_BLOCKS).records(3_000)).offset == 3_000
    assert len(decoded) == 1 and decoded[0] < 700


def test_a_gap_is_a_file_without_records() -> None:
    gap = Gap(partition=PARTITION, first=10, next=500_000, reason="lost", noticed_ms=5)
    _, data = build_gap("cluster", "topic", gap)
    file = ArchiveFile("file", data)
    assert file.info.gap == gap
    assert list(file.records()) == []
    with pytest.raises(ArchiveDamagedError):
        ArchiveFile("file", data + data[-20:])
