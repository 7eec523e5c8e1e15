"""Reads recorded history, archive and log as one, into a backtest. It writes nothing anywhere.

Reading begins `LEAD_MS` before the time that is asked about, so that workflows that were running then are known from
their start. Memory: what `engine.backtest` keeps, and one file of the archive.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from consumers.history import Bounds, History
from consumers.log_reader import LogReader
from consumers.policies import Applied, read_policies
from engine.backtest import Backtest
from engine.backtest_report import Report, account
from engine.inspection import Inspector
from engine.policy import Policy
from schemas.archive import Archive
from schemas.archive_format import Gap
from schemas.codec import Codec
from schemas.errors import FatalError, PoisonError
from schemas.keystore import keys_optional, open_keystore
from schemas.records.events import PolicyChanged
from schemas.registry import Registry

from .archive import archive_of, history_of
from .stack import Addresses
from .tables_proof import counted, event_of

#: History before the time that is asked about: the longest that a workflow may take by the policy that ships.
LEAD_MS = 24 * 3600 * 1000

#: Called with (what is being done, records done, records in all).
Progress = Callable[[str, int, int], None]


class IncompleteError(FatalError):
    """A part of the history that was asked for is not there any more."""


@dataclass(slots=True)
class Outcome:
    """What came of a backtest."""

    report: Report
    account: list[str]
    events: int
    unreadable: int
    not_applicable: int
    reproduced: int
    read_from_ms: int
    gaps: list[Gap] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which errors: opened from `since_ms` on and before `until_ms`, of one type of workflow."""

    since_ms: int
    until_ms: int
    workflow_type: str | None = None
    accept_gap: bool = False


def backtest(at: Addresses, candidate: Policy, started_with: Policy, asked: Asked, progress: Progress) -> Outcome:
    """Run the candidate over history. IncompleteError: a gap is not accepted; RetriableError: Kafka is away."""
    keystore = open_keystore(objects_url=at.objects)
    inspector = Inspector(
        None if keystore is None else keystore.get,
        keys_optional=keys_optional(),
        verify=started_with.corruption.verify_on_arrival,
    )
    with Registry(at.registry) as registry, LogReader(at.kafka) as log:
        reading = _Reading(history_of(at, log), archive_of(at, log), read_policies(log), asked)
        fold = Backtest(candidate, started_with, since_us=asked.since_ms * 1000, until_us=asked.until_ms * 1000)
        unreadable = reading.into(fold, Codec(registry), inspector, progress)
    report = Report(fold.finish(), fold.evidence)
    told = account(report, candidate, fold.versions.values(), fold.unknown_versions)
    told += [
        f"Offsets {g.first} to {g.next - 1} of partition {g.partition} are missing: {g.reason}." for g in reading.gaps
    ]
    if fold.not_applicable:
        told.append(f"{fold.not_applicable} records could not be folded and were left out.")
    return Outcome(
        report=report,
        account=told,
        events=fold.events,
        unreadable=unreadable,
        not_applicable=fold.not_applicable,
        reproduced=fold.reproduced,
        read_from_ms=asked.since_ms - LEAD_MS,
        gaps=reading.gaps,
    )


class _Reading:
    def __init__(self, history: History, archive: Archive, applied: Applied, asked: Asked) -> None:
        self._history = history
        self._archive = archive
        self._applied = applied
        self._asked = asked
        self.gaps: list[Gap] = []

    def into(self, fold: Backtest, codec: Codec, inspector: Inspector, progress: Progress) -> int:
        """Fold what was asked for; says how many records nobody can read."""
        ranges = {partition: self._range(partition, found) for partition, found in self._history.bounds().items()}
        for partition, (start, _) in ranges.items():
            if start == 0:
                fold.begins_at_zero(partition)
            before = self._applied.before(partition, start)
            if before is not None:
                fold.policy_before(partition, before.text, before.sequence)
        total, unreadable = sum(end - start for start, end in ranges.values()), 0
        if total <= 0:
            raise FatalError("the history is empty: no record in that time", hint="kintsugi archive status")
        for found in counted("events", self._history.read(ranges, on_gap=self._gap), ranges, progress):
            try:
                record = event_of(codec, found)
            except PoisonError:
                record = None
            if record is None:
                unreadable += 1
                continue
            only = self._asked.workflow_type
            if only is not None and record.workflow_type != only and not isinstance(record, PolicyChanged):
                continue
            fold.event(inspector.deliver(record, found.partition, found.offset, found.timestamp_ms * 1000))
        return unreadable

    def _range(self, partition: int, found: Bounds) -> tuple[int, int]:
        """Offsets to read. What retention has cut off of the time that was asked for is a gap."""
        start = self._place(partition, self._asked.since_ms - LEAD_MS, found)
        if found.first > 0 and start <= found.first:
            # The first record that is whole tells whether any of the time asked about lies before it.
            whole_ms = self._time_of(partition, found)
            if whole_ms is None or whole_ms > self._asked.since_ms:
                # How much of what is gone lies in that time, nobody can tell.
                gone = start if start < found.first else 0
                reason = "neither archived nor in the log, and some of them may be of that time"
                self._gap(Gap(partition=partition, first=gone, next=found.first, reason=reason))
            start = found.first
        return start, max(start, self._place(partition, self._asked.until_ms, found))

    def _time_of(self, partition: int, found: Bounds) -> int | None:
        one = next(iter(self._history.read({partition: (found.first, min(found.first + 1, found.end))})), None)
        return None if one is None else one.timestamp_ms

    def _place(self, partition: int, moment_ms: int, found: Bounds) -> int:
        """First offset at or after a moment; in the archive, where the file that holds it begins."""
        if moment_ms >= time.time_ns() // 1_000_000:
            return found.end
        in_log = self._history.offset_at(partition, max(0, moment_ms))
        if in_log is None and (found.low < found.end or found.low == 0):
            return found.end
        if in_log is not None and (in_log > found.low or found.low == 0):
            return in_log
        files = [entry.first for entry in self._archive.listing(partition).files if entry.first < found.low]

        def ends_ms(first: int) -> int:
            info = self._archive.info(partition, first)
            return 0 if info is None or info.last_timestamp_ms is None else info.last_timestamp_ms

        at = bisect_right(files, moment_ms - 1, key=ends_ms)
        return files[at] if at < len(files) else found.low

    def _gap(self, gap: Gap) -> None:
        if not self._asked.accept_gap:
            raise IncompleteError(
                f"partition {gap.partition}: offsets {gap.first} to {gap.next - 1} are missing: {gap.reason}",
                hint="a shorter --since, or --accept-gap to go without them",
            )
        self.gaps.append(gap)
