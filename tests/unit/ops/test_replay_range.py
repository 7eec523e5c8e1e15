"""Which records a replay takes, over a log and an archive of which retention took something, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from consumers.history import History
from consumers.log_reader import LogReader, Ranges
from ops.replay_range import Oldest, Range, ReplayError, Resolver, check_topic, parse_place
from schemas.archive import Archive
from schemas.archive_format import FileBuilder, Gap
from schemas.log_record import LogRecord, encode
from schemas.objects import Objects

TOPIC = "workflow.events"
#: Broker time of the record at offset 0; one a second follows.
BEGIN_MS = 1_800_000_000_000


class Log(LogReader):
    """Partitions as the log shows them: from `low` up to `high`, one record a second."""

    def __init__(self, *edges: tuple[int, int]) -> None:
        self.edges = dict(enumerate(edges))

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return dict(self.edges)

    def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        assert timestamp_ms >= 0, "below zero Kafka is asked for something else"
        low, high = self.edges[partition]
        found = max(low, -(-(timestamp_ms - BEGIN_MS) // 1000))
        return found if found < high else None

    def read(self, topic: str, ranges: Ranges) -> Iterator[object]:  # type: ignore[override]
        assert all(start >= end for start, end in ranges.values()), "only what the archive should have is looked at"
        return iter(())


def archive(*edges: int, lost: tuple[int, int] | None = None) -> Archive:
    """Files between the edges; in place of one, a gap."""
    made = Archive(Objects("memory:///"), cluster="cluster", topic=TOPIC)
    for first, end in pairwise(edges):
        if (first, end) == lost:
            gap = Gap(partition=0, first=first, next=end, reason="lost", noticed_ms=1)
            assert made.put_gap(gap)
            made.show_gap(gap)
            continue
        builder = FileBuilder("cluster", TOPIC, 0, first)
        for offset in range(first, end):
            record = LogRecord(0, offset, BEGIN_MS + 1000 * offset, 2, b"k", b"%d" % offset, ())
            builder.add(record, encode(record))
        assert made.put(builder) is not None
    return made


def resolved(
    log: Log,
    starts: str = "",
    ends: str = "",
    *,
    kept: Archive | None = None,
    cold: bool = False,
    accept_gap: bool = False,
) -> tuple[list[Range], list[Gap]]:
    resolver = Resolver(History(log, TOPIC, kept), kept)
    begin, stop = ([parse_place(text) for text in places.split()] for places in (starts, ends))
    return resolver.ranges(begin, stop, cold=cold, accept_gap=accept_gap)


def spans(found: tuple[list[Range], list[Gap]]) -> list[tuple[int, int, int, int]]:
    assert not found[1]
    return [(r.partition, r.first, r.start, r.end) for r in found[0]]


def time(second: float) -> str:
    """A place's time, so many seconds behind the first record: 2027-01-15T08:00Z."""
    minutes, seconds = divmod(second, 60)
    return f"@2027-01-15T08:{int(minutes):02}:{seconds:06.3f}Z"


def refused(log: Log, starts: str = "", ends: str = "", *, kept: Archive | None = None) -> ReplayError:
    with pytest.raises(ReplayError) as found:
        resolved(log, starts, ends, kept=kept)
    return found.value


@pytest.mark.parametrize("text", ["", "5", "0", "0:", ":5", "0:-5", "0:five", "@", "0:@", "x:5", "0:5:6", "9" * 40])
def test_what_is_no_place_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ReplayError, match="is no place") as found:
        parse_place(text)
    assert found.value.reason == "spec" and "0:1200" in (found.value.hint or "")


def test_a_time_needs_to_be_one_and_to_name_its_zone() -> None:
    with pytest.raises(ReplayError, match="no time zone"):
        parse_place("@2026-11-20T10:00")
    with pytest.raises(ReplayError, match="is no time"):
        parse_place("0:@yesterday")
    assert parse_place(time(0)).time_ms == BEGIN_MS
    assert parse_place("3:@2027-01-15T09:00+01:00").time_ms == BEGIN_MS
    assert parse_place("@1969-12-31T23:59:59.999Z").time_ms == 0


def test_only_the_topic_that_the_engine_folds_can_be_replayed() -> None:
    check_topic(TOPIC)
    with pytest.raises(ReplayError) as found:
        check_topic("workflow.commands")
    assert found.value.reason == "topic"


LOG = ((0, 100), (0, 50), (0, 0))


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ("", "", [(0, 0, 0, 100), (1, 0, 0, 50)]),
        ("0:10", "0:20", [(0, 0, 10, 20)]),
        ("0:10", "", [(0, 0, 10, 100)]),
        ("", "0:20", [(0, 0, 0, 20)]),
        ("1:5 0:10", "0:20", [(0, 0, 10, 20), (1, 0, 5, 50)]),
        (time(10), time(20), [(0, 0, 10, 20), (1, 0, 10, 20)]),
        (time(9.5), time(20.5), [(0, 0, 10, 21), (1, 0, 10, 21)]),
        (time(60), "", [(0, 0, 60, 100)]),
        (time(10), time(3_000), [(0, 0, 10, 100), (1, 0, 10, 50)]),
        ("1:" + time(10), time(20), [(1, 0, 10, 20)]),
        (f"{time(10)} 1:30", time(40), [(0, 0, 10, 40), (1, 0, 30, 40)]),
        (f"1:30 {time(10)}", time(40), [(0, 0, 10, 40), (1, 0, 30, 40)]),
        ("0:99", "0:100", [(0, 0, 99, 100)]),
    ],
)
def test_a_range_goes_from_its_place_up_to_the_next(
    starts: str, ends: str, expected: list[tuple[int, int, int, int]]
) -> None:
    assert spans(resolved(Log(*LOG), starts, ends)) == expected


def test_cold_begins_with_the_range() -> None:
    assert spans(resolved(Log(*LOG), "0:10", "0:20", cold=True)) == [(0, 10, 10, 20)]


@pytest.mark.parametrize(
    ("starts", "ends", "reason", "said"),
    [
        ("0:5", "0:5", "empty", "from 5 to 5 is empty"),
        ("0:100", "", "empty", "is empty"),
        ("2:0", "", "empty", "is empty"),
        (time(3_000), "", "empty", "no partition"),
        (time(10.1), time(10.9), "empty", "no partition"),
        ("0:9", "0:5", "reversed", "begins at 9 and ends at 5"),
        (time(20), time(10), "reversed", "is later than"),
        (time(10.9), time(10.1), "reversed", "is later than"),
        (time(3_600 - 1), time(3_000), "reversed", "is later than"),
        ("0:5", "0:101", "beyond_end", "ends at 100"),
        ("0:101", "", "beyond_end", "begins beyond"),
        ("0:900", "0:901", "beyond_end", "begins beyond"),
        ("3:0", "3:1", "partition", "no partition 3, only 0 to 2"),
        ("0:5 0:6", "0:9", "spec", "given twice"),
        ("0:5", "1:9", "spec", "begins in other partitions"),
    ],
)
def test_a_range_that_cannot_be_is_refused_with_a_reason(starts: str, ends: str, reason: str, said: str) -> None:
    found = refused(Log(*LOG), starts, ends)
    assert found.reason == reason and said in str(found), str(found)
    assert found.hint or reason == "partition"


def test_a_topic_without_records_holds_no_range() -> None:
    assert refused(Log((0, 0), (0, 0))).reason == "empty"


def test_what_retention_took_is_named_and_refused_unless_accepted() -> None:
    log = Log((40, 100))
    found = refused(log, "0:10", "0:60")
    assert found.reason == "missing" and "offsets 10 to 39" in str(found) and "--accept-gap" in (found.hint or "")
    [range_], [gap] = resolved(log, "0:10", "0:60", accept_gap=True)
    # Nothing before it is folded: a state with a hole in it is no state.
    assert (range_.first, range_.start, range_.end, range_.gap_end) == (10, 10, 60, 40)
    assert (gap.first, gap.next) == (10, 40)


def test_a_range_from_0_with_a_hole_in_it_is_not_whole() -> None:
    [range_], _ = resolved(Log((40, 100)), "0:0", "0:60", accept_gap=True)
    assert range_.first == 0 and not range_.whole
    [range_], _ = resolved(Log((0, 100)), "0:0", "0:60", accept_gap=True)
    assert range_.whole


def test_a_range_that_is_gone_altogether_is_missing() -> None:
    assert refused(Log((40, 100)), "0:10", "0:20").reason == "missing"


def test_without_places_a_replay_begins_where_the_records_do() -> None:
    assert spans(resolved(Log((40, 100)))) == [(0, 40, 40, 100)]
    assert spans(resolved(Log((40, 100)), kept=archive(0, 20, 40))) == [(0, 0, 0, 100)]


def test_the_archive_has_what_the_log_has_not() -> None:
    log, kept = Log((40, 100)), archive(0, 20, 40, 60)
    assert spans(resolved(log, "0:10", "0:60", kept=kept)) == [(0, 0, 10, 60)]
    assert spans(resolved(log, "0:50", "0:60", kept=kept)) == [(0, 0, 50, 60)]


def test_a_hole_in_the_archive_is_missing_only_where_a_range_touches_it() -> None:
    log, kept = Log((40, 100)), archive(0, 10, 20, 30, 40, lost=(10, 20))
    assert "offsets 10 to 19 (lost)" in str(refused(log, "0:5", "0:25", kept=kept))
    [range_], [gap] = resolved(log, "0:5", "0:60", kept=kept, accept_gap=True)
    assert (range_.first, range_.gap_end, range_.whole) == (5, 20, False)
    assert (gap.first, gap.next) == (10, 20)
    # Behind it, the state begins behind it.
    assert spans(resolved(log, "0:30", "0:60", kept=kept)) == [(0, 20, 30, 60)]
    assert spans(resolved(log, "0:0", "0:10", kept=kept)) == [(0, 0, 0, 10)]


@pytest.mark.parametrize("lost", [None, (10, 20), (20, 30)])
def test_a_time_is_found_in_the_archive_also_between_its_holes(lost: tuple[int, int] | None) -> None:
    log, kept = Log((40, 100)), archive(0, 10, 20, 30, 40, lost=lost)
    for second in range(45):
        found, gaps = resolved(log, time(second), "", kept=kept, accept_gap=True)
        gone = lost is not None and lost[0] <= second < lost[1]
        assert found[0].start == (lost[1] if gone and lost else second)
        assert bool(gaps) is (lost is not None and second < lost[0])


def within(*, seconds: int, refuse: bool, starts: tuple[str, ...] = (), log: Log | None = None) -> Resolver:
    """A resolver that was asked for what is no older than so many seconds after the first record."""
    resolver = Resolver(History(log or Log((0, 100), (0, 100)), TOPIC, None), None)
    oldest = Oldest.of(30, BEGIN_MS + seconds * 1000 + 30 * 86_400_000, refuse=refuse)
    places = [parse_place(text) for text in starts]
    found, _ = resolver.ranges(places, [], cold=False, accept_gap=False, oldest=oldest)
    assert all(resolver.shortened.get(r.partition, r.start) == r.start for r in found)
    return resolver


def test_without_a_beginning_a_range_begins_no_earlier_than_is_allowed_and_with_one_it_is_refused() -> None:
    assert within(seconds=40, refuse=False).shortened == {0: 40, 1: 40}
    assert within(seconds=0, refuse=False).shortened == {}
    assert within(seconds=40, refuse=True, starts=("0:40",)).shortened == {}
    with pytest.raises(ReplayError, match="before 40 are older than the 30 days") as refused:
        within(seconds=40, refuse=True, starts=("0:39",))
    assert refused.value.reason == "too_old"


def test_a_log_that_is_too_old_altogether_says_so() -> None:
    with pytest.raises(ReplayError) as refused:
        within(seconds=1_000, refuse=False)
    assert refused.value.reason == "too_old"
