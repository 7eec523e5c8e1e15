"""The archiver between log and store: where it begins, when it writes, and what a store that fails does to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Message
from prometheus_client import REGISTRY

from consumers.archiver import Archiver
from consumers.deadline import Deadline
from consumers.handler import LogRange, OwnPosition
from consumers.log_reader import record_of
from schemas.archive import Archive
from schemas.archive_format import FILE_SIZE_BYTES_MAX, Gap
from schemas.errors import FencedError, RetriableError
from schemas.objects import Objects, ObjectStoreError

AGE_S = 60.0


class Store(Objects):
    """A folder that fails when told to."""

    away = False

    def put_new(self, path: str, data: bytes) -> bool:
        if self.away:
            raise ObjectStoreError("away")
        return super().put_new(path, data)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[object]:  # type: ignore[override]
        if self.away:
            raise ObjectStoreError("away")
        yield from super().list(prefix, after=after)


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path.as_uri())


@pytest.fixture
def archive(store: Store) -> Archive:
    return Archive(store, cluster="cluster", topic="topic")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archiver(archive: Archive, clock: Clock) -> Archiver:
    return Archiver(archive, age_s=AGE_S, clock=clock)


def messages(offsets: Iterable[int], value: bytes = b"value", partition: int = 0) -> list[Message]:
    return [
        Message(
            topic="topic",
            partition=partition,
            offset=offset,
            key=b"key",
            value=value,
            headers=[("a", b"1"), ("a", None)],
            timestamp=(2, 1_000 + offset),
        )
        for offset in offsets
    ]


def log(high: int, low: int = 0, partition: int = 0, committed: int | None = None) -> LogRange:
    return LogRange(partition=partition, low=low, high=high, committed=committed)


def archived(archive: Archive, partition: int = 0) -> list[int]:
    return [record.offset for record in archive.records(partition, 0, archive.end_of(partition))]


def firsts(archive: Archive, partition: int = 0) -> list[int]:
    return [entry.first for entry in archive.listing(partition).files]


def test_the_loop_asks_it_for_its_position(archiver: Archiver) -> None:
    assert isinstance(archiver, OwnPosition)


def test_records_wait_until_they_are_old_enough(archiver: Archiver, archive: Archive, clock: Clock) -> None:
    assert archiver.assigned(log(100)) == 0
    archiver.handle(0, messages(range(10)))
    clock.now_s += AGE_S - 1
    archiver.handle(0, messages(range(10, 12)))
    assert archiver.flush() == {}
    assert archiver.stored(0) == 0
    assert archiver.tick(5_000_000, lambda partition: True) == 6_000_000
    clock.now_s += 1
    assert archiver.flush() == {}
    assert archiver.stored(0) == 12
    assert archived(archive) == list(range(12))
    assert archiver.tick(5_000_000, lambda partition: True) is None
    assert archive.record(0, 3) == record_of(messages([3])[0])


def test_it_begins_where_the_archive_ends_whatever_the_group_says(
    archiver: Archiver, archive: Archive, clock: Clock
) -> None:
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(10)))
    clock.now_s += AGE_S
    archiver.flush()
    successor = Archiver(archive, age_s=AGE_S, clock=clock)
    assert successor.assigned(log(100, committed=50)) == 10
    assert successor.assigned(log(100, committed=3)) == 10


def test_a_full_file_is_written_at_once(archiver: Archiver, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.archive_format.FILE_RECORDS_MAX", 10)
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(35)))
    assert archiver.stored(0) == 30
    assert firsts(archive) == [0, 10, 20]


def test_the_largest_buffers_are_written_when_memory_is_short(archive: Archive, clock: Clock) -> None:
    noise = bytes(range(256)) * 4
    size = 12 * len(noise)
    archiver = Archiver(archive, age_s=AGE_S, clock=clock, buffered_bytes_max=size)
    for partition, count in ((0, 5), (1, 10), (2, 2)):
        archiver.assigned(log(100, partition=partition))
        archiver.handle(partition, messages(range(count), noise, partition))
    archiver.flush()
    assert [archiver.stored(partition) for partition in (0, 1, 2)] == [0, 10, 0]
    buffered = REGISTRY.get_sample_value("kintsugi_archive_buffered_bytes")
    assert buffered is not None and 0 < buffered <= size


def test_a_store_that_is_away_loses_nothing_and_fills_no_memory(
    archiver: Archiver, archive: Archive, store: Store, clock: Clock
) -> None:
    for partition in (0, 1):
        archiver.assigned(log(100, partition=partition))
        archiver.handle(partition, messages(range(10), partition=partition))
    clock.now_s += AGE_S
    store.away = True
    failures = archiver.flush()
    assert set(failures) == {0, 1}
    assert all(isinstance(error, RetriableError) for error in failures.values())
    assert REGISTRY.get_sample_value("kintsugi_archive_buffered_bytes") == 0
    with pytest.raises(ObjectStoreError):
        archiver.assigned(log(100))
    store.away = False
    assert archiver.assigned(log(100)) == 0
    archiver.handle(0, messages(range(12)))
    clock.now_s += AGE_S
    assert archiver.flush() == {}
    assert archived(archive) == list(range(12))


def test_who_comes_second_is_fenced_and_goes_on_behind_the_first(archive: Archive, clock: Clock) -> None:
    first, second = (Archiver(archive, age_s=AGE_S, clock=clock) for _ in range(2))
    for archiver, count in ((first, 10), (second, 20)):
        assert archiver.assigned(log(100)) == 0
        archiver.handle(0, messages(range(count)))
    clock.now_s += AGE_S
    assert first.flush() == {}
    assert isinstance(second.flush()[0], FencedError)
    assert second.stored(0) == 0
    assert second.assigned(log(100)) == 10
    second.handle(0, messages(range(10, 20)))
    clock.now_s += AGE_S
    assert second.flush() == {}
    assert archived(archive) == list(range(20))


def test_what_the_log_lost_is_a_gap_and_archiving_goes_on(archiver: Archiver, archive: Archive, clock: Clock) -> None:
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(10)))
    clock.now_s += AGE_S
    archiver.flush()
    before = REGISTRY.get_sample_value("kintsugi_archive_missing_records_total") or 0
    assert archiver.assigned(log(100, low=30)) == 30
    assert archiver.stored(0) == 30
    assert REGISTRY.get_sample_value("kintsugi_archive_missing_records_total") == before + 20
    archiver.handle(0, messages(range(30, 40)))
    clock.now_s += AGE_S
    archiver.flush()
    (gap,) = [segment for segment in archive.segments(0, 0) if isinstance(segment, Gap)]
    assert (gap.first, gap.next) == (10, 30)
    assert "before they were archived" in gap.reason and gap.noticed_ms is not None
    assert archive.listing(0).gaps == [10]
    assert [r.offset for r in archive.records(0, 30, 40)] == list(range(30, 40))


def test_a_gap_that_a_crash_left_half_recorded_is_shown_at_the_next_start(archiver: Archiver, archive: Archive) -> None:
    assert archive.put_gap(Gap(partition=0, first=0, next=30, reason="lost", noticed_ms=1))
    assert archive.listing(0).gaps == []
    assert archiver.assigned(log(100, low=30)) == 30
    assert archive.listing(0).gaps == [0]


def test_two_that_find_the_same_gap_record_it_once(archive: Archive, clock: Clock) -> None:
    first, second = (Archiver(archive, age_s=AGE_S, clock=clock) for _ in range(2))
    first.assigned(log(100))
    first.handle(0, messages(range(5)))
    assert second.assigned(log(100, low=30)) == 30
    clock.now_s += AGE_S
    assert isinstance(first.flush()[0], FencedError), "a gap takes the place of records that one still had"
    assert first.assigned(log(100, low=30)) == 30
    assert len(firsts(archive)) == 1


def test_a_record_that_no_file_holds_is_a_gap(archiver: Archiver, archive: Archive, clock: Clock) -> None:
    """A producer that compresses gets far larger records past the broker than it allows."""
    archiver.assigned(log(100))
    huge = messages([3], bytes(FILE_SIZE_BYTES_MAX))
    archiver.handle(0, [*messages(range(3)), *huge, *messages([4, 5])])
    clock.now_s += AGE_S
    assert archiver.flush() == {}
    assert firsts(archive) == [0, 3, 4]
    gap = archive.info(0, 3)
    assert gap is not None and gap.gap is not None and (gap.first, gap.next) == (3, 4)
    assert "larger" in gap.gap.reason


def test_a_damaged_end_of_the_archive_is_not_built_upon(
    archiver: Archiver, archive: Archive, clock: Clock, tmp_path: Path
) -> None:
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(10)))
    clock.now_s += AGE_S
    archiver.flush()
    (file,) = (tmp_path / "archive/cluster/topic/0").glob("*.avro")
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(RetriableError, match="damaged"):
        archiver.assigned(log(100))
    file.unlink()
    assert archiver.assigned(log(100)) == 0, "what the log still holds is archived anew"


def test_a_handover_writes_what_waits(archiver: Archiver, archive: Archive) -> None:
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(10)))
    archiver.revoked([0], Deadline(10))
    assert archiver.stored(0) == 10
    assert archived(archive) == list(range(10))


@pytest.mark.parametrize("reason", ["no time", "no store"])
def test_a_handover_that_cannot_write_leaves_it_to_the_next_owner(
    archiver: Archiver, archive: Archive, store: Store, reason: str
) -> None:
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(10)))
    store.away = reason == "no store"
    archiver.revoked([0], Deadline(-1 if reason == "no time" else 10))
    store.away = False
    assert archiver.stored(0) == 0
    assert archive.end_of(0) == 0
    assert archiver.tick(0, lambda partition: True) is None


def test_lost_partitions_are_forgotten(archiver: Archiver, archive: Archive, clock: Clock) -> None:
    archiver.assigned(log(100))
    archiver.handle(0, messages(range(10)))
    archiver.lost([0])
    clock.now_s += AGE_S
    assert archiver.flush() == {}
    assert archive.end_of(0) == 0
