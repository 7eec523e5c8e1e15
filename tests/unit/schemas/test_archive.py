"""Names, places and order of the archive's files: who writes where, and what is found by offset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from schemas import archive as archives
from schemas.archive import Archive, ArchiveGapError
from schemas.archive_format import FILE_OFFSETS_MAX, ArchiveDamagedError, ArchiveFile, FileBuilder, Gap
from schemas.log_record import LogRecord, encode
from schemas.objects import ObjectInfo, Objects

P = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def archive(folder: Path) -> Archive:
    return Archive(Objects(folder.as_uri()), cluster="cluster", topic="topic")


def record(offset: int) -> LogRecord:
    return LogRecord(P, offset, 1_000 + offset, 2, b"key", b"%d" % offset, ())


def builder(first: int, end: int, step: int = 1) -> FileBuilder:
    made = FileBuilder("cluster", "topic", P, first)
    for offset in range(first, end, step):
        made.add(record(offset), encode(record(offset)))
    return made


def put(archive: Archive, first: int, end: int) -> None:
    assert archive.put(builder(first, end)) is not None


def gap(first: int, end: int) -> Gap:
    return Gap(partition=P, first=first, next=end, reason="lost", noticed_ms=1)


def put_gap(archive: Archive, first: int, end: int) -> None:
    assert archive.put_gap(gap(first, end))
    archive.show_gap(gap(first, end))


def offsets(found: Iterator[LogRecord]) -> list[int]:
    return [one.offset for one in found]


def test_an_empty_archive_begins_at_0(archive: Archive) -> None:
    assert archive.end_of(P) == 0
    assert archive.last(P) is None
    assert archive.whole_from(P) == 0
    assert archive.listing(P).files == []
    assert list(archive.segments(P, 0)) == []
    assert archive.info(P, 0) is None


def test_files_follow_each_other_and_are_found_by_offset(archive: Archive, folder: Path) -> None:
    for first, end in ((0, 10), (10, 11), (11, 300)):
        put(archive, first, end)
    assert (folder / "archive/cluster/topic/2/00000000000000000010.avro").is_file()
    assert archive.end_of(P) == 300
    assert [entry.first for entry in archive.listing(P).files] == [0, 10, 11]
    for start in (0, 9, 10, 11, 12, 299):
        assert offsets(archive.records(P, start, 300)) == list(range(start, 300))
    assert offsets(archive.records(P, 5, 12)) == list(range(5, 12))
    assert archive.record(P, 10) == record(10)


def test_of_two_writers_at_one_place_one_wins(archive: Archive) -> None:
    put(archive, 0, 10)
    assert archive.put(builder(0, 20)) is None
    assert not archive.put_gap(gap(0, 50))
    assert archive.end_of(P) == 10
    put_gap(archive, 10, 20)
    assert archive.put(builder(10, 12)) is None, "a gap takes the place of a file"
    assert archive.end_of(P) == 20


def test_other_partitions_topics_and_clusters_are_other_archives(archive: Archive, folder: Path) -> None:
    put(archive, 0, 10)
    assert archive.end_of(22) == archive.end_of(0) == 0
    for other in (
        Archive(Objects(folder.as_uri()), cluster="cluste", topic="topic"),
        Archive(Objects(folder.as_uri()), cluster="cluster", topic="topi"),
    ):
        assert other.end_of(P) == 0


def test_a_file_that_lies_elsewhere_is_refused(archive: Archive, folder: Path) -> None:
    put(archive, 0, 10)
    place = folder / "archive/cluster/topic/2"
    data = (place / "00000000000000000000.avro").read_bytes()
    (place / "00000000000000000010.avro").write_bytes(data)
    with pytest.raises(ArchiveDamagedError, match="belongs elsewhere"):
        archive.end_of(P)
    with pytest.raises(ArchiveDamagedError, match="belongs elsewhere"):
        offsets(archive.records(P, 0, 20))
    with pytest.raises(ArchiveDamagedError, match="belongs elsewhere"):
        archive.info(P, 10)


def test_what_is_missing_is_named(archive: Archive, folder: Path) -> None:
    for first, end in ((0, 10), (10, 20), (30, 40)):
        if first == 30:
            put_gap(archive, 20, 30)
        put(archive, first, end)

    def missing(start: int, end: int) -> Gap:
        with pytest.raises(ArchiveGapError) as caught:
            offsets(archive.records(P, start, end))
        return caught.value.gap

    assert missing(15, 35) == gap(20, 30)
    assert missing(22, 23) == gap(20, 30)
    assert (missing(35, 50).first, missing(35, 50).next) == (40, 50)
    assert (missing(60, 61).first, missing(60, 61).next) == (60, 61)
    assert offsets(archive.records(P, 15, 20)) == [15, 16, 17, 18, 19]
    assert archive.whole_from(P) == 30
    (folder / "archive/cluster/topic/2/00000000000000000010.avro").unlink()
    assert (missing(0, 40).first, missing(0, 40).next) == (10, 20)
    assert (missing(15, 40).first, missing(15, 40).next) == (15, 20)
    (folder / "archive/cluster/topic/2/00000000000000000000.avro").unlink()
    assert (missing(5, 6).first, missing(5, 6).next) == (5, 20)


def test_segments_go_on_behind_what_is_missing(archive: Archive, folder: Path) -> None:
    put_gap(archive, 0, 5)
    for first, end in ((5, 10), (10, 20), (20, 30)):
        put(archive, first, end)
    (folder / "archive/cluster/topic/2/00000000000000000010.avro").unlink()
    found = [(s.info.first if isinstance(s, ArchiveFile) else (s.first, s.next)) for s in archive.segments(P, 0)]
    assert found == [(0, 5), 5, (10, 20), 20]


def test_a_gap_of_any_length_is_found_from_within(archive: Archive) -> None:
    put_gap(archive, 0, 10 * FILE_OFFSETS_MAX)
    put(archive, 10 * FILE_OFFSETS_MAX, 10 * FILE_OFFSETS_MAX + 5)
    (found, *_) = archive.segments(P, 5 * FILE_OFFSETS_MAX)
    assert found == gap(0, 10 * FILE_OFFSETS_MAX)


def test_offsets_without_a_record_are_no_gap(archive: Archive) -> None:
    assert archive.put(builder(0, 10, step=2)) is not None
    assert archive.end_of(P) == 9
    assert offsets(archive.records(P, 0, 9)) == [0, 2, 4, 6, 8]
    assert archive.record(P, 3) is None


def test_a_gap_is_shown_as_json(archive: Archive, folder: Path) -> None:
    put_gap(archive, 0, 5)
    archive.show_gap(gap(0, 5))
    shown = orjson.loads((folder / "archive/cluster/topic/2/00000000000000000000.gap").read_bytes())
    assert (shown["first"], shown["next"], shown["reason"], shown["noticed_ms"]) == (0, 5, "lost", 1)
    assert archive.listing(P).gaps == [0]


def test_foreign_names_are_passed_over(archive: Archive, folder: Path) -> None:
    put(archive, 0, 5)
    place = folder / "archive/cluster/topic/2"
    for name in ("x.avro", "00000000000000000009.avro.tmp", "00000000000000000009", "9" * 21 + ".avro", "\u0661" * 20):
        (place / name).write_bytes(b"")
    assert [entry.first for entry in archive.listing(P).files] == [0]
    assert archive.end_of(P) == 5


def test_more_files_than_a_listing_may_hold_are_refused(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FILES_MAX", 2)
    for first in range(3):
        put(archive, first, first + 1)
    with pytest.raises(ArchiveDamagedError, match="more than 2 files"):
        archive.listing(P)


def test_an_object_larger_than_a_file_is_not_read(archive: Archive, folder: Path) -> None:
    place = folder / "archive/cluster/topic/2/00000000000000000000.avro"
    place.parent.mkdir(parents=True)
    with place.open("wb") as out:
        out.truncate(2**34)
    with pytest.raises(ArchiveDamagedError, match="larger"):
        archive.file(P, 0)


def test_an_empty_object_is_damaged_and_no_store_that_is_away(archive: Archive, folder: Path) -> None:
    """What a power cut may leave of a file in a local folder."""
    place = folder / "archive/cluster/topic/2/00000000000000000000.avro"
    place.parent.mkdir(parents=True)
    place.touch()
    for read in (archive.file, archive.info):
        with pytest.raises(ArchiveDamagedError):
            read(P, 0)


@pytest.mark.parametrize("near", [0, 10, 29, 30, 31, 10**12])
def test_the_end_is_found_whatever_is_guessed(archive: Archive, near: int) -> None:
    for first, end in ((0, 10), (10, 20), (20, 30)):
        put(archive, first, end)
    assert archive.end_of(P, near=near) == 30


class Listed(Objects):
    """A store that shows its names in an order of the test's."""

    backwards = False
    shown = 0

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:  # type: ignore[override]
        for found in sorted(super().list(prefix, after=after), key=lambda o: o.path, reverse=self.backwards):
            self.shown += 1
            yield found


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_of_a_listing_changes_only_how_long_it_takes(folder: Path, backwards: bool) -> None:
    store = Listed(folder.as_uri())
    store.backwards = backwards
    archive = Archive(store, cluster="cluster", topic="topic")
    step = FILE_OFFSETS_MAX // 2
    for number in range(40):
        made = FileBuilder("cluster", "topic", P, number * step)
        made.add(record((number + 1) * step - 1), encode(record((number + 1) * step - 1)))
        assert archive.put(made) is not None
    for number in range(40):
        store.shown = 0
        found = next(archive.segments(P, number * step + 7))
        assert isinstance(found, ArchiveFile) and found.info.first == number * step
        # In order: the files within FILE_OFFSETS_MAX before it, itself, and the one behind.
        assert backwards or store.shown <= 5
