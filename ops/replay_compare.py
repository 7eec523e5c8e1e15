"""Holds what the engine asks for in a replay against what an engine wrote when it happened. Pure.

Ids are derived from causes, so the two are found by their ids. Verdicts: `same`; `reworded` (the same choice, with
other reasons or another policy's version); `differs`; `not_recorded` (it follows now and was not written then);
`not_asked` (it was written then and does not follow now); `open` (its record would stand behind the range).
Where the beginning of a workflow is not known, `not_asked` and `not_recorded` prove nothing: `unproven`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from engine.effects import PRODUCER
from engine.events import Delivered
from engine.invariants import GRACE_US
from schemas.records import Record
from schemas.records.events import RecoveryDecided, TimerFired

#: Differences and decisions kept to be shown; all are counted.
SHOWN_MAX = 10_000
#: Fields that say why, and not what.
_WORDS = frozenset({"policy_version", "rule", "evidence", "alternatives", "occurred_at", "reason"})
#: Verdicts that say that engine and log disagree.
WRONG = ("differs", "not_recorded", "not_asked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One fact of the engine, asked for, recorded, or both. `offset` is its cause's, or its own where that is unknown.

    `fields`: what differs, to (recorded, now).
    """

    verdict: str
    partition: int
    offset: int
    timestamp_us: int
    record: Record
    fields: dict[str, tuple[Any, Any]]


class Comparison:
    """Takes causes and recorded facts of one partition in log order."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        #: Asked for and not seen in the log yet: record, offset and time of the cause, in the range or before it.
        self._pending: dict[str, tuple[Record, int, int, bool]] = {}
        self._matched: set[str] = set()
        self._unreadable: set[str] = set()
        self._last_us = 0
        self.counts: Counter[str] = Counter()
        self.decisions: list[Compared] = []
        self.differences: list[Compared] = []

    def sees(self, event: Delivered, *, inside: bool, known: bool) -> None:
        """A record of the log. `known`: the beginning of its workflow is."""
        record = event.record
        if event.timestamp_us > self._last_us:
            self._last_us = event.timestamp_us
        if event.unreadable is not None:
            self._unreadable.add(record.event_id)
        if record.producer != PRODUCER or type(record) is TimerFired:
            return
        asked = self._pending.pop(record.event_id, None)
        if asked is not None:
            self._matched.add(record.event_id)
            if inside:
                self._note(self._judge(asked[0], record, asked[1], asked[2]))
        elif inside and record.event_id not in self._matched and record.causation_id not in self._unreadable:
            self._matched.add(record.event_id)
            verdict = "not_asked" if known else "unproven"
            self._note(self._made(verdict, event.offset, event.timestamp_us, record))

    def asks(self, record: Record, cause: Delivered, *, inside: bool) -> None:
        """The engine wants this fact in the log."""
        if record.event_id not in self._matched:
            self._pending.setdefault(record.event_id, (record, cause.offset, cause.timestamp_us, inside))

    def finish(self, known: Any) -> None:
        """The end of the range. `known(workflow_id)`: whether its beginning is."""
        for record, offset, cause_us, inside in self._pending.values():
            if not inside:
                continue
            verdict = "open" if self._last_us - cause_us <= GRACE_US else "not_recorded"
            if verdict == "not_recorded" and not known(record.workflow_id):
                verdict = "unproven"
            self._note(self._made(verdict, offset, cause_us, record))

    def _judge(self, asked: Record, recorded: Record, offset: int, cause_us: int) -> Compared:
        verdict, changed = judged(asked, recorded)
        return self._made(verdict, offset, cause_us, asked, changed)

    def _made(
        self,
        verdict: str,
        offset: int,
        cause_us: int,
        record: Record,
        changed: dict[str, tuple[Any, Any]] | None = None,
    ) -> Compared:
        return Compared(
            verdict=verdict,
            partition=self._partition,
            offset=offset,
            timestamp_us=cause_us,
            record=record,
            fields=changed or {},
        )

    def _note(self, found: Compared) -> None:
        self.counts[found.verdict] += 1
        if type(found.record) is RecoveryDecided and len(self.decisions) < SHOWN_MAX:
            self.decisions.append(found)
        if found.verdict != "same" and len(self.differences) < SHOWN_MAX:
            self.differences.append(found)


def judged(asked: Record, recorded: Record) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """A verdict on what is asked for now and was recorded under the same id, and what differs: (recorded, now)."""
    if asked == recorded:
        return "same", {}
    changed = dict(_changed(recorded, asked))
    return ("differs" if set(changed) - _WORDS else "reworded"), changed


def _changed(recorded: Record, asked: Record) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for f in fields(asked):
        before, now = getattr(recorded, f.name, None), getattr(asked, f.name)
        if before != now:
            yield f.name, (before, now)
