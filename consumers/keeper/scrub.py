"""The scrub: the newest sound checkpoints of every live workflow are read again from where they really lie, and proven.

A pass goes once around the log, in its order, from where the last one stopped; it begins every `validation_interval`,
or when the one before is done. So each checkpoint is proven once per interval as long as the rate allows it, and when
it does not, all of them equally seldom, the one whose proof is oldest first.

What cannot be looked into (a key is erased or not here, a record is in neither log nor archive) is counted. What is
away is tried again. Only what is there and wrong is rejected, in the log, with derived ids.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from schemas import claims
from schemas.admission import admit
from schemas.codec import Codec
from schemas.errors import PoisonError, RetriableError, StateError
from schemas.log_record import LogRecord
from schemas.objects import Objects
from schemas.records.events import CheckpointCreated

from .. import telemetry
from ..inspecting import Inspection
from .desk import Desk
from .facts import rejected
from .mark import StoreMark
from .places import Place, Places, Problem
from .tables import Tables, Target

#: Proven together: their keys are fetched side by side, their facts confirmed and their rows compared at once.
CHUNK_RECORDS = 500
CHUNK_BYTES = 16 * 1024 * 1024
#: So many single claims or keys may fail to answer, one after the other, before their store counts as away.
_AWAY_MAX = 3
#: What was told is in the tables soon, and no target any more; until then it is not told again.
_TOLD_MAX = 10_000
#: The newest, and the one before: what a restore would take first, and what it would take next.
_PER_WORKFLOW = 2
#: Reasons that say nothing against a state, only that it cannot be looked into here and now.
_ERASED, _NO_KEYS = "key_erased", ("key_missing", "no_keys")
#: The record itself is damaged, in the log or, where that does not hold it any more, in the archive.
RECORD = "record"
#: Results, as the metric names them.
SOUND, REJECTED, ERASED, UNREADABLE, GONE, AWAY = "sound", "rejected", "erased", "unreadable", "gone", "away"


@dataclass(slots=True)
class Finding:
    """What was found at a target's place, and what came of it. `state` is the proven state."""

    target: Target
    record: CheckpointCreated | None = None
    outcome: str = SOUND
    reason: str = ""
    detail: str = ""
    state: dict[str, Any] | None = None


class Pace:
    """At most so many records per second."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._free_s = clock()

    def delay_s(self, records: int) -> float:
        """How long to wait after so many records."""
        now_s = self._clock()
        self._free_s = max(self._free_s, now_s - 1.0) + records / self._per_second
        return max(0.0, self._free_s - now_s)


class Scrubber:
    """Proves again. One thread."""

    def __init__(
        self,
        tables: Tables,
        places: Places,
        codec: Codec,
        inspection: Inspection,
        objects: Objects | None,
        desk: Desk,
        *,
        interval_s: float,
        per_second: float,
        errors: bool,
        after: Place = (-1, -1),
    ) -> None:
        """`errors`: whether a rejection is an error of the workflow too. `after`: where the first pass begins."""
        self._tables = tables
        self._places = places
        self._codec = codec
        self._inspection = inspection
        self._objects = objects
        self._mark = None if objects is None else StoreMark(objects)
        self._desk = desk
        self._interval_s = interval_s
        self._per_second = per_second
        self._errors = errors
        self._after = after
        self._pace = Pace(per_second)
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._away_count = 0

    def steps(self) -> Generator[float, None, None]:
        """One pass, in steps; each yields the seconds to wait before the next. RetriableError when what it needs is
        away; the next pass begins where this one stopped."""
        began_s, outcome, count = time.monotonic(), "interrupted", 0
        try:
            if self._mark is not None:
                self._mark.establish(claims_known=lambda: any(True for _ in self._tables.claims()))
            for chunk in chunks(self._tables.targets(per_workflow=self._per_workflow(), after=self._after)):
                # Also when it fails: what fails for ever comes last in the next pass, and keeps nothing from its turn.
                self._after = chunk[-1].place
                self._chunk(chunk)
                count += len(chunk)
                yield self._pace.delay_s(len(chunk))
            outcome = "whole"
        finally:
            self._places.rest()
            telemetry.SCRUB_PASSES.labels(outcome).inc()
        taken_s = time.monotonic() - began_s
        telemetry.SCRUB_SECONDS.observe(taken_s)
        telemetry.SCRUB_LAST.set_to_current_time()
        if taken_s > self._interval_s:
            telemetry.log().warning(
                "scrub slower than its interval",
                checkpoints=count,
                seconds=round(taken_s, 1),
                interval_s=self._interval_s,
            )

    def _per_workflow(self) -> int:
        """The one before the newest is proven too while both fit into the interval."""
        fits = _PER_WORKFLOW * self._tables.live_count() <= self._interval_s * self._per_second
        return _PER_WORKFLOW if fits else 1

    def _chunk(self, chunk: Sequence[Target]) -> None:
        found = self._places.read([target.place for target in chunk])
        findings = [self._look(target, lies) for target, (_, lies) in zip(chunk, found, strict=True)]
        self._inspection.prefetch(f.record for f in findings if f.record is not None)
        told = []
        for finding in findings:
            if finding.record is not None and finding.outcome == SOUND:
                self._prove(finding)
            telemetry.SCRUBBED.labels(finding.outcome).inc()
            if finding.outcome == REJECTED and self._tell(finding):
                told.append((finding.target.checkpoint_id, finding.reason))
        self._desk.flush()
        for key in told:
            self._told[key] = None
            if len(self._told) > _TOLD_MAX:
                self._told.popitem(last=False)
        self._compare([f for f in findings if f.state is not None and f.target.plain])

    def _look(self, target: Target, lies: LogRecord | Problem) -> Finding:
        """Whether what lies at the place is the checkpoint's record at all."""
        if lies is Problem.DAMAGED:
            ((_, copy),) = self._places.archived(target.partition, [target.offset])
            record = self._decode(copy) if isinstance(copy, LogRecord) else None
            where = "is damaged" if record is None else "is damaged in the log, though not in the archive"
            return Finding(target, record, REJECTED, RECORD, f"the record at {_shown(target)} {where}")
        if isinstance(lies, Problem):
            return Finding(target, outcome=GONE)
        record = self._decode(lies)
        if record is None:
            return Finding(target, outcome=UNREADABLE)
        if record.checkpoint_id != target.checkpoint_id:
            self._drift(target, "another record lies at its place")
            return Finding(target, outcome=UNREADABLE)
        if record.digest != target.checksum:
            self._drift(target, "its checksum is not that of the record")
        return Finding(target, record)

    def _decode(self, lies: LogRecord) -> CheckpointCreated | None:
        try:
            record = admit(self._codec, lies.key, lies.value)
        except PoisonError as error:  # its checksum held: our reader is at fault, for example a registry without it
            telemetry.log().warning(
                "record not readable", partition=lies.partition, offset=lies.offset, reason=error.reason
            )
            return None
        return record if isinstance(record, CheckpointCreated) else None

    def _prove(self, finding: Finding) -> None:
        record = finding.record
        assert record is not None
        try:
            finding.state = self._inspection.inspector.prove(record, self._stored(record))
            self._away_count = 0
        except StateError as error:
            if error.reason == _ERASED:
                finding.outcome = ERASED
            elif error.reason in _NO_KEYS:
                finding.outcome = UNREADABLE
            else:
                if error.reason == "claim_missing" and self._mark is not None:
                    self._mark.confirm()
                finding.outcome, finding.reason, finding.detail = REJECTED, error.reason, str(error)
        except RetriableError as error:
            self._away_count += 1
            if self._away_count >= _AWAY_MAX:
                self._away_count = 0
                raise
            finding.outcome = AWAY
            telemetry.log().warning("checkpoint not proven", error=error, place=_shown(finding.target))

    def _stored(self, record: CheckpointCreated) -> bytes:
        """The stored bytes, from where they lie."""
        stored = claims.stored_of(record, self._claimed)
        telemetry.SCRUB_BYTES.inc(len(stored))
        return stored

    def _claimed(self, uri: str) -> bytes:
        if self._objects is None:
            raise StateError("no_keys", "the state lies in object storage, and none is configured")
        return claims.get(self._objects, uri)

    def _tell(self, finding: Finding) -> bool:
        """Write the facts of a rejection, if they were not written before."""
        target = finding.target
        if (target.checkpoint_id, finding.reason) in self._told:
            return False
        telemetry.STATE_FAILURES.labels(finding.reason).inc()
        telemetry.log().warning(
            "checkpoint rejected",
            workflow_id=target.workflow_id,
            checkpoint_id=target.checkpoint_id,
            place=_shown(target),
            reason=finding.reason,
        )
        for fact in rejected(
            target, finding.record, finding.reason, finding.detail, self._desk.now_us(), error=self._errors
        ):
            self._desk.append(fact, target.partition)
        return True

    def _compare(self, findings: Sequence[Finding]) -> None:
        """A row that differs from its proven record is a damaged row; the checkpoint is sound."""
        rows = self._tables.states([f.target.checkpoint_id for f in findings]) if findings else {}
        for finding in findings:
            text = rows.get(finding.target.checkpoint_id)
            if text is not None and orjson.loads(text) != finding.state:
                self._drift(finding.target, "the state in its row is not that of the record")

    def _drift(self, target: Target, what: str) -> None:
        telemetry.TABLE_DRIFT.inc()
        telemetry.log().error(
            "row differs from the log",
            checkpoint_id=target.checkpoint_id,
            place=_shown(target),
            what=what,
            hint="kintsugi verify",
        )


def chunks(targets: Iterator[Target]) -> Iterator[list[Target]]:
    """Targets by their order, a bounded number and size at a time, within a chunk always further along the log."""
    chunk: list[Target] = []
    size_bytes = 0
    for target in targets:
        full = len(chunk) >= CHUNK_RECORDS or size_bytes + target.size_bytes > CHUNK_BYTES
        if chunk and (full or target.place < chunk[-1].place):
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(target)
        size_bytes += max(0, target.size_bytes)
    if chunk:
        yield chunk


def _shown(target: Target) -> str:
    return f"{target.partition}@{target.offset}"
