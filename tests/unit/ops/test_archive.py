"""`kintsugi archive verify` finds whatever is wrong with an archive, and nothing when nothing is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from confluent_kafka import Message

from consumers.log_reader import LogReader, RangeGoneError, Ranges, record_of
from ops import archive as ops_archive
from ops.archive import Report
from ops.stack import Addresses
from schemas.archive import Archive
from schemas.archive_format import FileBuilder, Gap
from schemas.log_record import encode
from schemas.objects import Objects
from schemas.topics import EVENTS


class Log(LogReader):
    """One partition of `high` records."""

    low = 0
    high = 30
    moves_to: int | None = None
    missing: frozenset[int] = frozenset()

    def __init__(self, servers: str) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def cluster_id(self) -> str:
        return "cluster"

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {0: (self.low, self.high)}

    def read(self, topic: str, ranges: Ranges) -> Iterator[Message]:
        start, end = ranges[0]
        if self.moves_to is not None:
            type(self).low, type(self).moves_to = self.moves_to, None
            raise RangeGoneError("gone")
        for offset in range(start, end):
            if offset not in self.missing:
                yield message(offset)


def message(offset: int, value: bytes = b"value") -> Message:
    headers: list[tuple[str, str | bytes | None]] = [("a", b"%d" % offset), ("a", None)]
    return Message(
        topic=EVENTS, partition=0, offset=offset, key=b"k", value=value, headers=headers, timestamp=(2, offset)
    )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(Objects(tmp_path.as_uri()), cluster="cluster", topic=EVENTS)


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    class Ours(Log):
        pass

    monkeypatch.setattr(ops_archive, "LogReader", Ours)
    at = Addresses(kafka="", registry="", postgres="", objects=tmp_path.as_uri())

    def run(*, allow_gaps: bool = False, **log: object) -> Report:
        for name, value in log.items():
            setattr(Ours, name, value)
        return ops_archive.verify(at, lambda what, done, total: None, allow_gaps=allow_gaps)

    return run


def put(archive: Archive, *messages: Message, first: int | None = None) -> None:
    records = [record_of(m) for m in messages]
    builder = FileBuilder("cluster", EVENTS, 0, records[0].offset if first is None else first)
    for record in records:
        builder.add(record, encode(record))
    assert archive.put(builder) is not None


def fill(archive: Archive, *edges: int) -> None:
    for first, end in pairwise(edges):
        put(archive, *map(message, range(first, end)))


def lose(archive: Archive, first: int, end: int) -> None:
    assert archive.put_gap(Gap(partition=0, first=first, next=end, reason="lost"))


def file_at(folder: Path, first: int) -> Path:
    return folder / f"archive/cluster/{EVENTS}/0/{first:020d}.avro"


def rules(report: Report) -> list[tuple[str, int]]:
    return [(finding.rule, finding.offset) for finding in report.findings]


def test_a_whole_archive_is_sound(archive: Archive, verify: Callable[..., Report]) -> None:
    fill(archive, 0, 10, 11, 25)
    report = verify()
    assert report.sound
    assert (report.files, report.records, report.compared) == (3, 25, 25)
    report = verify(low=12)
    assert (report.sound, report.compared) == (True, 13)
    report = verify(low=25)
    assert (report.sound, report.compared) == (True, 0)


def test_an_empty_archive_is_sound_until_the_log_loses_something(verify: Callable[..., Report]) -> None:
    assert verify().sound
    assert rules(verify(low=4)) == [("lost", 0)]


def test_a_missing_file_is_a_hole(archive: Archive, verify: Callable[..., Report], tmp_path: Path) -> None:
    fill(archive, 0, 10, 20, 30)
    file_at(tmp_path, 10).unlink()
    report = verify(low=15)
    assert ("hole", 10) in rules(report)
    assert [offset for rule, offset in rules(report) if rule == "missing"] == [15, 16, 17, 18, 19]


def test_files_that_overlap_are_found(archive: Archive, verify: Callable[..., Report]) -> None:
    fill(archive, 0, 10)
    put(archive, *map(message, range(8, 20)))
    assert ("overlap", 8) in rules(verify())


def test_damage_is_found_and_the_rest_is_still_looked_at(
    archive: Archive, verify: Callable[..., Report], tmp_path: Path
) -> None:
    fill(archive, 0, 10, 20)
    put(archive, message(20, b"other"))
    data = bytearray(file_at(tmp_path, 10).read_bytes())
    data[-20] ^= 1
    file_at(tmp_path, 10).write_bytes(bytes(data))
    found = rules(verify())
    assert found[0] == ("damaged", 10)
    assert ("differs", 20) in found
    file_at(tmp_path, 10).write_bytes(b"")
    assert ("damaged", 10) in rules(verify())


@pytest.mark.parametrize(
    "changed",
    [
        {"value": b"other"},
        {"value": None},
        {"key": None},
        {"headers": [("a", None), ("a", b"3")]},
        {"headers": [("a", b"3")]},
        {"headers": [("a", b"3"), ("a", b"")]},
        {"timestamp": (2, 4)},
        {"timestamp": (1, 3)},
    ],
)
def test_a_record_that_differs_in_anything_is_found(
    archive: Archive, verify: Callable[..., Report], changed: dict[str, object]
) -> None:
    usual = {"key": b"k", "value": b"value", "headers": [("a", b"3"), ("a", None)], "timestamp": (2, 3)}
    fill(archive, 0, 3)
    put(archive, Message(topic=EVENTS, partition=0, offset=3, **{**usual, **changed}))  # type: ignore[arg-type]
    report = verify()
    assert rules(report) == [("differs", 3)]
    assert next(iter(changed)) in report.findings[0].detail


def test_a_record_that_one_side_does_not_have_is_found(archive: Archive, verify: Callable[..., Report]) -> None:
    fill(archive, 0, 5)
    put(archive, message(5), message(7), message(8))
    assert rules(verify()) == [("missing", 6)]
    report = verify(missing=frozenset({6}))
    assert (report.sound, report.empty_offsets) == (True, 1)
    assert rules(verify(missing=frozenset({4, 6}))) == [("invented", 4)]


def test_recorded_gaps_are_a_difference_unless_allowed_or_at_the_beginning(
    archive: Archive, verify: Callable[..., Report]
) -> None:
    lose(archive, 0, 5)
    fill(archive, 5, 10)
    report = verify(low=5)
    assert report.sound and [gap.offset for gap in report.known_gaps] == [0]
    lose(archive, 10, 15)
    fill(archive, 15, 20)
    assert rules(verify(low=15)) == [("gap", 10)]
    report = verify(low=15, allow_gaps=True)
    assert report.sound and [gap.offset for gap in report.known_gaps] == [0, 10]


def test_an_archive_of_another_log_is_found(archive: Archive, verify: Callable[..., Report]) -> None:
    fill(archive, 0, 30, 40)
    assert rules(verify()) == [("beyond_the_log", 30)]


def test_what_retention_removes_meanwhile_is_left_out(archive: Archive, verify: Callable[..., Report]) -> None:
    fill(archive, 0, 10, 30)
    report = verify(moves_to=17)
    assert report.sound
    assert report.compared == 13


def test_a_record_in_the_log_within_a_gap_is_no_second_difference(
    archive: Archive, verify: Callable[..., Report]
) -> None:
    fill(archive, 0, 10)
    lose(archive, 10, 11)
    fill(archive, 11, 20)
    assert rules(verify()) == [("gap", 10)]
    report = verify(allow_gaps=True)
    assert report.sound and report.compared == 19
