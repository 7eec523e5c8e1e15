"""Proves tables against the log, for `kintsugi verify` and `kintsugi projections verify`.

A pass looks at the database at one moment and folds the log up to the positions of that moment. What finds no room in
memory is put off to a pass of its own, with a moment of its own: what it compares always belongs together. Projectors
go on writing meanwhile; Postgres keeps old row versions for as long as a pass takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from consumers.history import Bounds, History, ranges_of
from consumers.log_reader import LogReader
from engine.inspection import Inspector
from projections.catalog import with_references
from projections.choice import ALL, Choice, rank
from projections.digest import Drift
from projections.reader import Snapshot, snapshot
from projections.store import GENERATION
from projections.verify import TableCheck
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import PoisonError
from schemas.ids import check_uuid
from schemas.log_record import LogRecord
from schemas.records import Command, Record
from schemas.registry import Registry

from .archive import history_of
from .stack import Addresses

#: Differences kept to be shown; all are counted.
SHOWN_MAX = 100
#: Memory for the rows of one pass, if nobody says otherwise: a quarter of a small machine, some 500,000 rows.
MEMORY_MB = 512
#: Workflows in a sample: few enough for a check between two others; for more, check all.
SAMPLE_MAX = 10_000

#: Called with (what is being done, records done, records in all).
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class TablesReport:
    """What was compared, and every way in which it disagrees. `passes`: how often the log was read for it."""

    events: int = 0
    unreadable: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    behind: int = 0
    unproven: int = 0
    passes: int = 0
    drifts: list[Drift] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether everything agrees."""
        return not self.counts

    def drift(self, drift: Drift) -> None:
        """Count a difference in a table, and keep it while there is room."""
        self.count(f"table: {drift.table}")
        if len(self.drifts) < SHOWN_MAX:
            self.drifts.append(drift)

    def count(self, what: str) -> None:
        """Count one way in which something disagrees."""
        self.counts[what] = self.counts.get(what, 0) + 1


class Pass:
    """One moment of the database, and the log up to it. Records come in the order of their partitions."""

    def __init__(self, tables: Snapshot, choice: Choice, memory_bytes_max: int) -> None:
        self._tables = tables
        # The database's moment is that of the first question. It comes before the bounds of the log, which then holds
        # all that is in the tables.
        self.positions = tables.positions()
        self._not_applied = tables.not_applied()
        self._letters = tables.dead_letters()
        self._inspector = Inspector(keep_states=False)  # rows are made without keys, whatever keys there are
        self._missing: list[tuple[LogRecord, str]] = []
        self._held = tables.tables()
        self.check = TableCheck(
            with_references(self._held),
            beginnings=tables.beginnings(),
            redactions=tables.redactions(),
            choice=choice,
            memory_bytes_max=memory_bytes_max,
        )
        self.behind = 0

    def begin(self, bounds: Mapping[int, Bounds]) -> None:
        """What there is of the log, looked up after this moment."""
        for partition, found in bounds.items():
            if found.first > 0:
                self.check.begins_late(partition)
            self.behind += max(0, found.end - max(found.first, self.positions.get(partition, found.first)))

    def wants(self, found: LogRecord) -> bool:
        """Whether the tables have come to this record, and it is of a chosen workflow."""
        return found.offset < self.positions.get(found.partition, 0) and self.check.choice.wants(key_of(found))

    def take(self, found: LogRecord, record: Record) -> None:
        """Fold an event, unless it waits or was discarded."""
        place = (found.partition, found.offset)
        if self.wants(found) and place not in self._not_applied:
            self.check.add(self._inspector.deliver(record, *place, found.timestamp_ms * 1000))

    def refuse(self, found: LogRecord, reason: str) -> None:
        """A record that nobody can read: the tables must have set it aside."""
        if self.wants(found) and (found.partition, found.offset) not in self._letters:
            self._missing.append((found, reason))

    def compare(self, report: TablesReport, progress: Progress) -> list[Choice]:
        """Compare all tables; the workflows that are left for further passes."""
        report.passes += 1
        for number, table in enumerate(self._held):
            progress("tables", number, len(self._held))
            digests = self._tables.digests(table, self.check.choice)
            for drift in self.check.prove(table, digests, self._tables.read):
                report.drift(drift)
            report.rows[table.name] = report.rows.get(table.name, 0) + self.check.rows(table.name)
        progress("tables", len(self._held), len(self._held))
        report.unproven += self.check.unproven
        for found, reason in self._missing:
            if self.check.choice.wants(key_of(found)):
                key = f"{found.partition}@{found.offset}"
                report.drift(
                    Drift(table="dead_letters", key=key, column="", expected=f"a row ({reason})", found="no row")
                )
        return self.check.put_off


class TablesProof:
    """Passes over the log, until all chosen workflows are compared."""

    def __init__(
        self,
        at: Addresses,
        codec: Codec,
        history: History,
        *,
        generation: str = GENERATION,
        memory_bytes_max: int = MEMORY_MB * 1024 * 1024,
    ) -> None:
        self._at = at
        self._codec = codec
        self._history = history
        self._generation = generation
        self._memory_bytes_max = memory_bytes_max

    def run(self, report: TablesReport, choices: list[Choice], progress: Progress) -> None:
        """Compare these workflows. RetriableError when a server is away."""
        left = list(choices)
        while left:
            left += self._pass(report, left.pop(0), progress)

    def sampled(self, size: int, seed: int, progress: Progress) -> Choice:
        """The first `size` workflows of log and tables in the order that the seed gives."""
        with snapshot(self._at.postgres, generation=self._generation) as tables:
            known, positions = tables.sample(size, seed), tables.positions()
        first = {workflow_id: rank(seed, workflow_id) for workflow_id in known}
        last = max(first.values()) if len(first) >= size else None
        for found in self._read(_up_to(self._history.bounds(), positions), "sample", progress):
            key = key_of(found)
            if not _names_a_workflow(key):
                continue  # a record that was set aside may have any key
            place = rank(seed, key)
            if key in first or (last is not None and place > last):
                continue
            first[key] = place
            if len(first) > size:
                del first[max(first, key=first.__getitem__)]
                last = max(first.values())
        return replace(ALL, ids=frozenset(first))

    def _pass(self, report: TablesReport, choice: Choice, progress: Progress) -> list[Choice]:
        with snapshot(self._at.postgres, generation=self._generation) as tables:
            one = Pass(tables, choice, self._memory_bytes_max)
            bounds = self._history.bounds()
            one.begin(bounds)
            unreadable: list[LogRecord] = []
            for found in self._read(_up_to(bounds, one.positions), "events", progress):
                if not one.wants(found):
                    continue
                try:
                    record = event_of(self._codec, found)
                except PoisonError as error:
                    unreadable.append(found)
                    one.refuse(found, error.reason)
                    continue
                if record is not None:
                    one.take(found, record)
            left = one.compare(report, progress)
            report.events += one.check.events
            report.unreadable += sum(one.wants(found) for found in unreadable)
            report.behind = one.behind
            return left

    def _read(self, ranges: Mapping[int, tuple[int, int]], what: str, progress: Progress) -> Iterator[LogRecord]:
        return counted(what, self._history.read(ranges), ranges, progress)


def prove(
    at: Addresses,
    progress: Progress,
    *,
    workflow_id: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    generation: str = GENERATION,
    archived: bool = True,
    memory_mb: int = MEMORY_MB,
) -> TablesReport:
    """Prove the tables of a generation, for all workflows, for one, or for a sample.

    RetriableError when a server is away. Memory: `memory_mb` for rows, and 200 bytes for each record set aside.
    """
    report = TablesReport()
    with Registry(at.registry) as registry, LogReader(at.kafka) as log:
        history = history_of(at, log, archived=archived)
        proof = TablesProof(
            at, Codec(registry), history, generation=generation, memory_bytes_max=memory_mb * 1024 * 1024
        )
        if workflow_id is not None:
            choice = replace(ALL, ids=frozenset((workflow_id,)))
        else:
            choice = ALL if sample is None else proof.sampled(sample, seed, progress)
        proof.run(report, [choice], progress)
    return report


def event_of(codec: Codec, found: LogRecord) -> Record | None:
    """The event; None when its type is not known here. PoisonError when nobody can read it."""
    record = admit(codec, found.key, found.value)
    if isinstance(record, Command):
        raise PoisonError("wrong_topic", "a command in the event topic")
    return None if isinstance(record, Unknown) else record


def counted(
    what: str, records: Iterator[LogRecord], ranges: Mapping[int, tuple[int, int]], progress: Progress
) -> Iterator[LogRecord]:
    """The records, while progress is told."""
    total = sum(high - low for low, high in ranges.values())
    for done, record in enumerate(records):
        if done % 1_000 == 0:
            progress(what, done, total)
        yield record
    progress(what, total, total)


def _up_to(bounds: Mapping[int, Bounds], positions: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """What the tables have applied of what there is."""
    return {
        partition: (first, min(end, positions.get(partition, 0)))
        for partition, (first, end) in ranges_of(bounds).items()
        if first < positions.get(partition, 0)
    }


def key_of(found: LogRecord) -> str:
    """The workflow of a record; of one that nobody can read whatever its key is."""
    return (found.key or b"").decode("utf-8", "replace")


def _names_a_workflow(key: str) -> bool:
    try:
        check_uuid(key)
    except ValueError:
        return False
    return True
