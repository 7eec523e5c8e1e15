"""Which records a replay takes: offsets or times, by partition, held against what log and archive have.

`P:OFFSET` or `P:@TIME` for one partition, `@TIME` for all. A range begins at `from` and ends before `to`. What is wrong
with it is said before anything is replayed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from consumers.history import Bounds, History
from schemas.archive import Archive
from schemas.archive_format import Gap
from schemas.errors import KintsugiError
from schemas.topics import EVENTS

_PLACE = re.compile(r"(?:(?P<partition>\d{1,9}):)?(?:(?P<offset>\d{1,18})|@(?P<time>\S+))")
#: Said with every place that is none.
_OLDEST_HINT = "debugging.replay_mode.max_replay_days of the policy in force"
_FORMS = "write 0:1200 for offset 1200 of partition 0, 0:@2026-11-20T10:00Z for a time, or @TIME for all partitions"


class ReplayError(KintsugiError):
    """A replay that cannot be made. `reason` is a short word: spec, topic, partition, empty, reversed, beyond_end,
    missing, inject, size, too_old, taken, grant, unknown."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An offset, or a broker time; of all partitions when `partition` is None."""

    text: str
    partition: int | None
    offset: int | None = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Records of one partition from `start` up to `end`. What lies from `first` on is folded before, for the state.

    `gap_end`: where the last part of it that is missing ends; 0 when nothing is.
    """

    partition: int
    first: int
    start: int
    end: int
    gap_end: int = 0

    @property
    def whole(self) -> bool:
        """Whether every workflow in it is known from its beginning."""
        return self.first == 0 and self.gap_end == 0

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oldest:
    """How far back a range may begin. `refuse`: somebody said where it begins; else it begins later."""

    days: int
    place: Place
    refuse: bool

    @classmethod
    def of(cls, days: int, now_ms: int, *, refuse: bool) -> Oldest:
        """So many days before a moment."""
        time_ms = max(0, now_ms - days * 86_400_000)
        return cls(days=days, place=Place(text=f"{days} days ago", partition=None, time_ms=time_ms), refuse=refuse)


def parse_place(text: str) -> Place:
    """One end of a range. ReplayError "spec" when it is none."""
    match = _PLACE.fullmatch(text.strip())
    if match is None or (match["offset"] is not None and match["partition"] is None):
        raise ReplayError("spec", f"{text!r:.100} is no place in a topic", hint=_FORMS)
    partition = None if match["partition"] is None else int(match["partition"])
    if match["offset"] is not None:
        return Place(text=text, partition=partition, offset=int(match["offset"]))
    try:
        moment = datetime.fromisoformat(match["time"])
    except ValueError:
        raise ReplayError("spec", f"{match['time']!r:.60} is no time", hint=_FORMS) from None
    if moment.tzinfo is None:
        raise ReplayError("spec", f"{match['time']!r:.60} names no time zone", hint="end it with Z for UTC")
    # Kafka takes times below zero for other questions: -1 asks for the end.
    return Place(text=text, partition=partition, time_ms=max(0, int(moment.timestamp() * 1000)))


def check_topic(topic: str) -> None:
    """ReplayError "topic" for one whose records the engine does not fold."""
    if topic != EVENTS:
        raise ReplayError("topic", f"topic {topic!r:.100} cannot be replayed", hint=f"--topic {EVENTS}")


class Resolver:
    """Turns places into ranges."""

    def __init__(self, history: History, archive: Archive | None) -> None:
        self._history = history
        self._archive = archive
        self._bounds = history.bounds()
        #: Partitions of which a range would have begun before what may be replayed, and where it begins.
        self.shortened: dict[int, int] = {}

    def ranges(
        self,
        starts: Iterable[Place],
        ends: Iterable[Place],
        *,
        cold: bool,
        accept_gap: bool,
        oldest: Oldest | None = None,
    ) -> tuple[list[Range], list[Gap]]:
        """The ranges in order of partitions, and what is missing of them. ReplayError says what is wrong."""
        begin, stop = self._by_partition(starts), self._by_partition(ends)
        unbegun = next((p for n, p in stop.items() if begin and n not in begin and p.partition is not None), None)
        if unbegun is not None:
            raise ReplayError(
                "spec",
                f"{unbegun.text}: the range begins in other partitions",
                hint=f"--from {unbegun.partition}:OFFSET",
            )
        chosen = set(begin) | (set(stop) if not begin else set())
        found: list[Range] = []
        gaps: list[Gap] = []
        for partition in sorted(chosen or self._bounds):
            bounds = self._bounds[partition]
            check_times(begin.get(partition), stop.get(partition))
            end = self._offset(stop.get(partition), partition, bounds.end)
            start = self._offset(begin.get(partition), partition, bounds.first)
            given_by_time = any(p is not None and p.offset is None for p in (begin.get(partition), stop.get(partition)))
            if start == end and (given_by_time or not chosen):
                continue  # nothing happened there in that time
            check(partition, start, end, bounds)
            if oldest is not None:
                start = self._not_before(oldest, partition, start, end)
                if start == end:
                    continue
            missing = self._missing(partition, start, end, bounds)
            gaps += missing
            first = start if cold or missing else min(start, bounds.first)
            gap_end = max((g.next for g in missing), default=0)
            found.append(Range(partition=partition, first=first, start=start, end=end, gap_end=gap_end))
        if not found and self.shortened:
            raise ReplayError("too_old", "everything in this range is older than may be replayed", hint=_OLDEST_HINT)
        if not found:
            raise ReplayError("empty", "no partition holds a record in this range", hint="kintsugi archive status")
        if gaps and not accept_gap:
            told = "; ".join(
                f"partition {g.partition}: offsets {g.first} to {g.next - 1} ({g.reason})" for g in gaps[:5]
            )
            raise ReplayError(
                "missing", f"retention removed a part of the range: {told}", hint="--accept-gap replays what is left"
            )
        return found, gaps

    def _not_before(self, oldest: Oldest, partition: int, start: int, end: int) -> int:
        first = min(end, self._offset(oldest.place, partition, 0))
        if start >= first:
            return start
        if oldest.refuse:
            raise ReplayError(
                "too_old",
                f"partition {partition}: offsets before {first} are older than the {oldest.days} days that may be"
                " replayed",
                hint=_OLDEST_HINT,
            )
        self.shortened[partition] = first
        return first

    def _by_partition(self, places: Iterable[Place]) -> dict[int, Place]:
        found: dict[int, Place] = {}
        for place in places:
            for partition in self._bounds if place.partition is None else (place.partition,):
                if partition not in self._bounds:
                    known = f"0 to {max(self._bounds)}"
                    raise ReplayError("partition", f"{place.text}: there is no partition {partition}, only {known}")
                if partition in found and place.partition is not None and found[partition].partition is not None:
                    raise ReplayError("spec", f"{place.text}: partition {partition} is given twice", hint=_FORMS)
                if partition not in found or place.partition is not None:
                    found[partition] = place
        return found

    def _offset(self, place: Place | None, partition: int, default: int) -> int:
        if place is None:
            return default
        if place.offset is not None:
            return place.offset
        assert place.time_ms is not None
        bounds = self._bounds[partition]
        archived = self._archived_at(partition, place.time_ms, bounds.low) if bounds.low > 0 else None
        if archived is not None:
            return archived
        found = self._history.offset_at(partition, place.time_ms)
        return bounds.end if found is None else min(found, bounds.end)

    def _archived_at(self, partition: int, time_ms: int, low: int) -> int | None:
        """First archived offset at or after a time, of those that the log no longer holds."""
        if self._archive is None:
            return None
        files = [entry.first for entry in self._archive.listing(partition).files if entry.first < low]
        begin, end = 0, len(files)
        while begin < end:  # broker times never run backwards within a partition
            middle = (begin + end) // 2
            number, last_ms = middle, self._last_ms(partition, files[middle])
            while last_ms is None and number > begin:  # a gap has no times: the file before it tells
                number -= 1
                last_ms = self._last_ms(partition, files[number])
            if last_ms is None or last_ms < time_ms:
                begin = middle + 1
            else:
                end = number
        if begin == len(files):
            return None
        file = self._archive.file(partition, files[begin])
        records = () if file is None else file.records(files[begin])
        return next((r.offset for r in records if r.timestamp_ms >= time_ms and r.offset < low), None)

    def _last_ms(self, partition: int, first: int) -> int | None:
        info = None if self._archive is None else self._archive.info(partition, first)
        return None if info is None else info.last_timestamp_ms

    def _missing(self, partition: int, start: int, end: int, bounds: Bounds) -> list[Gap]:
        if start >= bounds.first:
            return []
        gaps: list[Gap] = []
        for _ in self._history.read({partition: (start, min(end, bounds.first))}, on_gap=gaps.append):
            pass
        return gaps


def check_times(start: Place | None, end: Place | None) -> None:
    """ReplayError for times that run backwards, also where no record lies between them."""
    if start is None or end is None or start.time_ms is None or end.time_ms is None:
        return
    if start.time_ms > end.time_ms:
        raise ReplayError("reversed", f"{start.text} is later than {end.text}", hint="swap the two")


def check(partition: int, start: int, end: int, bounds: Bounds) -> None:
    """ReplayError for a range that holds nothing, runs backwards, or reaches beyond what there is."""
    if start == end:
        raise ReplayError(
            "empty", f"partition {partition}: the range from {start} to {end} is empty", hint="--to is not included"
        )
    if start > bounds.end:
        raise ReplayError(
            "beyond_end",
            f"partition {partition} ends at {bounds.end}: the range from {start} begins beyond it",
            hint="kintsugi archive status",
        )
    if start > end:
        raise ReplayError(
            "reversed", f"partition {partition}: the range begins at {start} and ends at {end}", hint="swap the two"
        )
    if end > bounds.end:
        raise ReplayError(
            "beyond_end",
            f"partition {partition} ends at {bounds.end}: the range to {end} reaches beyond it",
            hint=f"--to {partition}:{bounds.end}",
        )
