"""`kintsugi checkpoints verify`: every checkpoint against its real bytes, its chain, and its row in the tables.

The events are folded by the engine's own fold, so the chain is judged as the engine judges it; the bytes come from the
log, the archive and object storage, and are unsealed. Memory: one batch of rows, and what the engine keeps of each
workflow (a few KB), one partition after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.events import Delivered
from engine.fold import evolve
from engine.inspection import Inspector, deliver
from engine.state import WorkflowState
from projections.kit import TABLES_VERSION, redacted
from projections.reader import Snapshot, snapshot
from projections.sql import blocks
from projections.verify import json_digest
from projections.workflow_checkpoints.fold import TABLE
from schemas.admission import admit
from schemas.archive_format import Gap
from schemas.codec import Unknown
from schemas.errors import PoisonError, StateError
from schemas.records import Command
from schemas.records.events import CheckpointCreated, CheckpointsExpired

from .checkpoint_log import CheckpointLog, checkpoint_log
from .hidden import Hidden
from .stack import Addresses

#: Rows read at once, by count and by the size of their states.
_BATCH_ROWS = 200
_BATCH_BYTES = 16 * 1024 * 1024
#: Failures kept to be shown; all are counted.
SHOWN_MAX = 1_000
#: Cannot be read, and is not wrong: erased on purpose.
_ERASED = "key_erased"
_UNPROVEN = ("claim", "key_missing", "no_keys", _ERASED)
#: Behind every offset.
_BEYOND = 2**63
_QUERIES = blocks("ops", "checkpoints.sql")
_PLACES = {name: number for number, name in enumerate(column.name for column in TABLE.columns)}
_ROW_OF = TABLE.touches[CheckpointCreated].fold

#: Called with (what is being done, records done, records in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A checkpoint that is not what it must be, and exactly why."""

    checkpoint_id: str
    workflow_id: str
    place: str
    reason: str
    detail: str


@dataclass(slots=True)
class Report:
    """What was proven, what could not be looked into, and what failed."""

    checkpoints: int = 0
    proven: int = 0
    bytes: int = 0
    evidence: int = 0
    stale: int = 0
    #: By reason: states without a key to look into them. `key_erased` is so on purpose.
    unreadable: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    #: Findings in all, and checkpoints that have one.
    found: int = 0
    failed: int = 0
    seconds: float = 0.0
    gaps: list[Gap] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing failed."""
        return not self.counts

    @property
    def complete(self) -> bool:
        """Whether every state could be looked into, apart from those erased on purpose."""
        return not self.gaps and not any(reason != _ERASED for reason in self.unreadable)

    def fail(self, failure: Failure) -> None:
        """Count a failure, and keep it while there is room."""
        self.found += 1
        self.counts[failure.reason] = self.counts.get(failure.reason, 0) + 1
        if len(self.failures) < SHOWN_MAX:
            self.failures.append(failure)


def verify(
    at: Addresses,
    progress: Progress,
    *,
    workflow_id: str | None = None,
    checkpoint_id: str | None = None,
) -> Report:
    """Prove all checkpoints, those of a workflow, or one of them. RetriableError when a server is away."""
    report = Report()
    began_s = time.monotonic()
    with checkpoint_log(at) as log, snapshot(at.postgres) as tables:
        proof = _Proof(report, log, tables, workflow_id, checkpoint_id)
        for part in tables.query(_QUERIES["parts"], {"workflow_id": workflow_id}):
            proof.run(part["log_partition"], part["first_offset"], progress)
    report.seconds = round(time.monotonic() - began_s, 3)
    return report


@dataclass(frozen=True, slots=True)
class _Row:
    """A checkpoint's row: its place, what the log said against it later, and all its columns."""

    checkpoint_id: str
    offset: int
    told: str | None
    values: tuple[Any, ...]


def _rows(tables: Snapshot, partition: int, workflow_id: str | None) -> Iterator[_Row]:
    """Rows of a partition in the order of the log, a batch at a time."""
    batch: list[tuple[str, int, int, str | None]] = []
    size_bytes = 0
    for place in tables.stream(_QUERIES["places"], {"partition": partition, "workflow_id": workflow_id}):
        batch.append((place[0], place[1], place[2], place[3]))
        size_bytes += place[2]
        if len(batch) >= _BATCH_ROWS or size_bytes >= _BATCH_BYTES:
            yield from _read(tables, batch)
            batch, size_bytes = [], 0
    yield from _read(tables, batch)


def _read(tables: Snapshot, batch: list[tuple[str, int, int, str | None]]) -> Iterator[_Row]:
    found = {row[0]: row for row in tables.read(TABLE, [place[0] for place in batch])} if batch else {}
    for checkpoint_id, offset, _, told in batch:
        yield _Row(checkpoint_id, offset, told, found[checkpoint_id])


class _Proof:
    def __init__(
        self,
        report: Report,
        log: CheckpointLog,
        tables: Snapshot,
        workflow_id: str | None,
        checkpoint_id: str | None,
    ) -> None:
        self._report = report
        self._log = log
        self._tables = tables
        self._workflow_id = workflow_id
        self._only = checkpoint_id
        self._hidden = Hidden(tables.redactions())
        self._links_only = Inspector(verify=False)
        self._positions = tables.positions()
        self._beginnings = tables.beginnings()
        #: Of the partition at hand.
        self._states: dict[str, WorkflowState] = {}
        self._rowless: dict[str, Failure] = {}
        self._rows: Iterator[_Row] = iter(())
        self._next: _Row | None = None

    def run(self, partition: int, first_offset: int, progress: Progress) -> None:
        """Prove the checkpoints of one partition."""
        self._states, self._rowless = {}, {}
        self._rows = _rows(self._tables, partition, self._workflow_id)
        self._next = next(self._rows, None)
        end = min(self._log.bounds()[partition].end, self._positions.get(partition, 0))
        key = None if self._workflow_id is None else self._workflow_id.encode()
        what = f"partition {partition}"
        records = self._log.history.read({partition: (first_offset, end)}, on_gap=self._report.gaps.append)
        for done, found in enumerate(records):
            if done % 500 == 0:
                progress(what, found.offset - first_offset, end - first_offset)
            if key is not None and found.key != key:
                continue
            self._passed(partition, found.offset)
            try:
                record = admit(self._log.codec, found.key, found.value)
            except PoisonError:
                continue
            if not isinstance(record, Unknown | Command):
                self._event(self._links_only.deliver(record, partition, found.offset, found.timestamp_ms * 1000))
        self._passed(partition, _BEYOND)
        for failure in self._rowless.values():
            self._report.fail(failure)
        progress(what, 1, 1)

    def _passed(self, partition: int, offset: int) -> None:
        """Rows whose place in the log was passed without their checkpoint."""
        while self._next is not None and self._next.offset < offset:
            row = self._next
            if self._only in (None, row.checkpoint_id):
                gone = any(
                    gap.partition == partition and gap.first <= row.offset < gap.next for gap in self._report.gaps
                )
                self._report.checkpoints += 1
                if gone:
                    self._unreadable("gone")
                else:
                    self._fail(row, partition, "log", "its place in the log holds no such checkpoint")
            self._next = next(self._rows, None)

    def _event(self, event: Delivered) -> None:
        record = event.record
        row: _Row | None = None
        if isinstance(record, CheckpointCreated):
            if self._next is not None and (self._next.checkpoint_id, self._next.offset) == (
                record.checkpoint_id,
                event.offset,
            ):
                row, self._next = self._next, next(self._rows, None)
            elif self._only in (None, record.checkpoint_id):
                self._without_row(record, event)
        elif isinstance(record, CheckpointsExpired):
            for checkpoint_id in record.checkpoint_ids:
                self._rowless.pop(checkpoint_id, None)
        if row is None or self._only not in (None, row.checkpoint_id):
            self._fold(event)
            return
        self._checkpoint(row, event)

    def _fold(self, event: Delivered) -> WorkflowState:
        workflow_id = event.record.workflow_id
        state = self._states[workflow_id] = evolve(self._states.get(workflow_id), event)
        return state

    def _without_row(self, record: CheckpointCreated, event: Delivered) -> None:
        known = self._states.get(record.workflow_id)
        if known is not None and known.find_checkpoint(record.checkpoint_id) is not None:
            return  # the same event again, or another one with its id: the chain tells
        self._rowless.setdefault(
            record.checkpoint_id,
            Failure(
                checkpoint_id=record.checkpoint_id,
                workflow_id=record.workflow_id,
                place=f"{event.partition}@{event.offset}",
                reason="table",
                detail="it is in the log, has not expired, and has no row",
            ),
        )

    def _checkpoint(self, row: _Row, event: Delivered) -> None:
        record = event.record
        assert isinstance(record, CheckpointCreated)
        report = self._report
        report.checkpoints += 1
        failures = report.found
        proven, unreadable = self._proven(record, event)
        before = self._states.get(record.workflow_id)
        stale = before is not None and record.epoch < before.epoch
        state = self._fold(proven)
        rejection = proven.rejection
        for transition in state.transitions:
            if transition.kind == "rejected":
                rejection = (transition.outcome, transition.detail)
        if rejection is not None:
            self._fail(row, event.partition, *rejection)
        elif row.told is not None:
            self._fail(row, event.partition, "rejected", row.told)
        for detail in self._row_differs(row, proven):
            self._fail(row, event.partition, "table", detail)
        if report.found > failures:
            report.failed += 1
        elif record.evidence:
            report.evidence += 1
        elif stale:
            report.stale += 1
        elif unreadable is not None:
            self._unreadable(unreadable)
        else:
            report.proven += 1
            report.bytes += record.size_bytes

    def _proven(self, record: CheckpointCreated, event: Delivered) -> tuple[Delivered, str | None]:
        """The event with its state proven from its real bytes, or with what is against it; and why it is neither."""
        place = (event.partition, event.offset, event.timestamp_us)
        if record.evidence:
            return Delivered(record, *place), None
        try:
            return Delivered(record, *place, state=self._log.state(record)), None
        except StateError as error:
            if error.reason in _UNPROVEN and error.reason != "claim":
                return Delivered(record, *place, unreadable=error.reason), error.reason
            return Delivered(record, *place, rejection=(error.reason, str(error)[:500])), None

    def _row_differs(self, row: _Row, event: Delivered) -> Iterator[str]:
        """Columns in which the row is not what the fold of this event makes, which knows no keys and no claims."""
        record = event.record
        assert isinstance(record, CheckpointCreated)
        arrived = event
        if event.rejection is not None or record.protection != "none" or record.claim_uri is not None:
            arrived = deliver(record, event.partition, event.offset, event.timestamp_us)
        (shown,) = redacted((arrived,), self._hidden.in_row(event.partition, event.offset))
        wanted = _ROW_OF(None, shown)
        beginning = self._beginnings.get((event.partition, TABLES_VERSION))
        earlier = beginning is None or event.offset < beginning
        for column, want, have in zip(TABLE.columns, wanted, row.values, strict=True):
            if earlier and column.since > 1:
                continue
            if want != have and not (column.kind == "jsonb" and _same_json(want, have)):
                yield f"column {column.name} is not what the log says: {_short(have)}, should be {_short(want)}"

    def _unreadable(self, reason: str) -> None:
        self._report.unreadable[reason] = self._report.unreadable.get(reason, 0) + 1

    def _fail(self, row: _Row, partition: int, reason: str, detail: str) -> None:
        self._report.fail(
            Failure(
                checkpoint_id=row.checkpoint_id,
                workflow_id=str(row.values[_PLACES["workflow_id"]]),
                place=f"{partition}@{row.offset}",
                reason=reason,
                detail=detail,
            )
        )


def _same_json(want: str | None, have: str | None) -> bool:
    """Whether two JSON texts have one value. Most are equal but for the order of their keys, which is soon seen."""
    if want is None or have is None:
        return False
    first, second = (orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS) for text in (want, have))
    return first == second or json_digest(want) == json_digest(have)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
