"""Archive and log as one sequence, whatever retention does, and what is in neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from consumers.history import Bounds, History, ranges_of
from consumers.log_reader import LogReader, RangeGoneError, Ranges, record_of
from schemas.archive import Archive, ArchiveGapError
from schemas.archive_format import FileBuilder, Gap
from schemas.log_record import LogRecord, encode
from schemas.objects import Objects

TOPIC = "topic"


def message(partition: int, offset: int) -> Message:
    return Message(
        topic=TOPIC, partition=partition, offset=offset, key=b"k", value=b"%d" % offset, timestamp=(2, offset)
    )


class Log(LogReader):
    """The log as a reader shows it, with a retention that moves on when told to."""

    def __init__(self, *high: int) -> None:
        self.low = [0] * len(high)
        self.high = list(high)
        #: After so many records, the log of partition 0 begins there.
        self.moves: list[tuple[int, int]] = []
        self.given = 0

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {p: (self.low[p], self.high[p]) for p in range(len(self.high))}

    def read(self, topic: str, ranges: Ranges) -> Iterator[Message]:
        for partition, (start, end) in ranges.items():
            for offset in range(start, end):
                if self.moves and self.given >= self.moves[0][0]:
                    self.low[0] = self.moves.pop(0)[1]
                if offset < self.low[partition]:
                    raise RangeGoneError("gone")
                self.given += 1
                yield message(partition, offset)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return empty(tmp_path.as_uri())


def empty(url: str) -> Archive:
    return Archive(Objects(url), cluster="cluster", topic=TOPIC)


def fill(archive: Archive, *edges: int, partition: int = 0) -> None:
    """Files between the edges."""
    for first, end in pairwise(edges):
        builder = FileBuilder("cluster", TOPIC, partition, first)
        for offset in range(first, end):
            record = record_of(message(partition, offset))
            builder.add(record, encode(record))
        assert archive.put(builder) is not None


def lose(archive: Archive, first: int, end: int) -> None:
    gap = Gap(partition=0, first=first, next=end, reason="lost", noticed_ms=1)
    assert archive.put_gap(gap)
    archive.show_gap(gap)


def offsets(records: Iterator[LogRecord] | Sequence[LogRecord], partition: int = 0) -> list[int]:
    return [record.offset for record in records if record.partition == partition]


@given(st.data())
def test_every_record_comes_once_and_in_order(data: st.DataObject) -> None:
    high = data.draw(st.integers(1, 60), "end of the log")
    archived = data.draw(st.integers(0, high), "end of the archive")
    log = Log(high)
    log.low[0] = data.draw(st.integers(0, archived), "begin of the log")
    edges = sorted({0, archived, *data.draw(st.lists(st.integers(0, archived), max_size=5), "files")})
    archive = empty("memory:///")
    fill(archive, *edges)
    start = data.draw(st.integers(0, high), "from")
    end = data.draw(st.integers(start, high), "to")
    history = History(log, TOPIC, archive)
    assert history.bounds() == {0: Bounds(first=0, low=log.low[0], end=high)}
    assert list(history.read({0: (start, end)})) == [record_of(message(0, o)) for o in range(start, end)]


def test_partitions_come_together(archive: Archive) -> None:
    log = Log(20, 10, 5)
    fill(archive, 0, 7, 15)
    log.low = [12, 0, 5]
    history = History(log, TOPIC, archive)
    bounds = history.bounds()
    assert [(b.first, b.low, b.end) for b in bounds.values()] == [(0, 12, 20), (0, 0, 10), (5, 5, 5)]
    found = list(history.read(ranges_of(bounds)))
    assert offsets(found, 0) == list(range(20))
    assert offsets(found, 1) == list(range(10))
    assert offsets(found, 2) == []


def test_retention_that_overtakes_the_reader_is_made_up_from_the_archive(archive: Archive) -> None:
    fill(archive, 0, 50, 90)
    log = Log(100)
    log.moves = [(10, 40), (30, 80)]
    assert offsets(History(log, TOPIC, archive).read({0: (0, 100)})) == list(range(100))
    assert log.low == [80]


def test_a_log_that_was_made_anew_ends_the_reading() -> None:
    class Anew(Log):
        def read(self, topic: str, ranges: Ranges) -> Iterator[Message]:
            raise RangeGoneError("gone")

    with pytest.raises(RangeGoneError):
        offsets(History(Anew(10), TOPIC, None).read({0: (0, 10)}))


def test_without_an_archive_the_log_is_all_there_is() -> None:
    log = Log(10)
    log.low = [4]
    history = History(log, TOPIC, None)
    assert history.bounds() == {0: Bounds(first=4, low=4, end=10)}
    assert offsets(history.read({0: (4, 10)})) == [4, 5, 6, 7, 8, 9]
    with pytest.raises(ArchiveGapError) as caught:
        offsets(history.read({0: (2, 10)}))
    assert (caught.value.gap.first, caught.value.gap.next) == (2, 4)


def test_the_store_is_not_asked_while_the_log_is_whole(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    for name in ("get", "get_range", "list", "info"):
        monkeypatch.setattr(Objects, name, refuse)
    history = History(Log(10), TOPIC, archive)
    assert offsets(history.read(ranges_of(history.bounds()))) == list(range(10))


def gaps_of(history: History, start: int, end: int) -> tuple[list[int], list[tuple[int, int]]]:
    gaps: list[Gap] = []
    found = offsets(history.read({0: (start, end)}, on_gap=gaps.append))
    return found, [(gap.first, gap.next) for gap in gaps]


def test_what_is_nowhere_is_told_and_passed_over(archive: Archive) -> None:
    lose(archive, 0, 5)
    fill(archive, 5, 10, 20)
    lose(archive, 20, 30)
    fill(archive, 30, 40)
    log = Log(100)
    log.low = [50]
    history = History(log, TOPIC, archive)
    assert gaps_of(history, 0, 60) == (
        [*range(5, 20), *range(30, 40), *range(50, 60)],
        [(0, 5), (20, 30), (40, 50)],
    )
    assert gaps_of(history, 22, 25) == ([], [(22, 25)])
    assert gaps_of(history, 15, 25) == ([15, 16, 17, 18, 19], [(20, 25)])
    with pytest.raises(ArchiveGapError) as caught:
        offsets(history.read({0: (15, 60)}))
    assert (caught.value.gap.first, caught.value.gap.next) == (20, 30)


def test_what_is_whole_begins_behind_the_last_gap(archive: Archive) -> None:
    lose(archive, 0, 5)
    fill(archive, 5, 10)
    log = Log(100)
    log.low = [8]
    history = History(log, TOPIC, archive)
    assert history.bounds()[0].first == 5
    lose(archive, 10, 20)
    fill(archive, 20, 40)
    log.low = [30]
    assert history.bounds()[0].first == 20
    log.low = [15]
    assert history.bounds()[0].first == 15, "the log still holds what the archive has lost"
    log.low = [45]
    assert history.bounds()[0].first == 45, "the archive ends before the log begins"
