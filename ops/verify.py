"""`kintsugi verify`: the log against itself, and the tables against the log.

The log reaches as far back as archive and Kafka together hold it without a gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from consumers.history import Bounds, History, ranges_of
from consumers.log_reader import LogReader, record_of
from consumers.policies import read_policies
from engine.events import Delivered
from engine.inspection import Inspector, deliver
from engine.invariants import Finding, LogCheck
from engine.policy import Policy
from projections.catalog import TABLES
from projections.reader import Snapshot, snapshot
from projections.verify import Drift, TableCheck
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.dead_letters import STAGE_APPLY
from schemas.errors import PoisonError
from schemas.keystore import keys_optional, open_keystore
from schemas.log_record import LogRecord
from schemas.records import Command
from schemas.registry import Registry
from schemas.topics import COMMANDS

from .archive import history_of
from .stack import Addresses

#: Differences kept to be shown; all are counted.
SHOWN_MAX = 100

#: Called with (what is being done, records done, records in all).
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Report:
    """What was compared, and every way in which it disagrees."""

    events: int = 0
    commands: int = 0
    unreadable: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    behind: int = 0
    unproven: int = 0
    findings: list[Finding] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether everything agrees."""
        return not self.counts

    def note(self, finding: Finding) -> None:
        """Count a finding about the log, and keep it while there is room."""
        self._count(f"log: {finding.rule}")
        if len(self.findings) < SHOWN_MAX:
            self.findings.append(finding)

    def drift(self, drift: Drift) -> None:
        """Count a difference in a table, and keep it while there is room."""
        self._count(f"table: {drift.table}")
        if len(self.drifts) < SHOWN_MAX:
            self.drifts.append(drift)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def verify(
    at: Addresses, policy: Policy, progress: Progress, *, only: str | None = None, archived: bool = True
) -> Report:
    """Check everything, or only "log" or "tables"; `archived` reads what retention removed from the archive.

    Checkpoints are inspected as the recovery role did: by the policy, and with KINTSUGI_KEYS where that is set.

    RetriableError when a server is away. Memory: about 5 KB for each workflow in the log, and 1 KB for each row.
    """
    report = Report()
    keystore = open_keystore(objects_url=at.objects)
    inspector = Inspector(
        None if keystore is None else keystore.get,
        keys_optional=keys_optional(),
        verify=policy.corruption.verify_on_arrival,
    )
    with Registry(at.registry) as registry, LogReader(at.kafka) as log, snapshot(at.postgres) as tables:
        history = history_of(at, log, archived=archived)
        _Verification(report, Codec(registry), log, history, tables, LogCheck(policy), inspector, only).run(progress)
    return report


class _Verification:
    def __init__(
        self,
        report: Report,
        codec: Codec,
        log: LogReader,
        history: History,
        tables: Snapshot,
        check: LogCheck,
        inspector: Inspector,
        only: str | None,
    ) -> None:
        self._inspector = inspector
        self._report = report
        self._codec = codec
        self._log = log
        self._history = history
        self._tables = tables
        self._check = check
        self._folded = TableCheck(beginnings=tables.beginnings(), redactions=tables.redactions())
        self._of_log, self._of_tables = only in (None, "log"), only in (None, "tables")
        # The database's moment comes first: what the log holds beyond these positions is not in the tables yet.
        self._positions = tables.positions()
        self._set_aside = tables.dead_letters()
        self._missing_letters: list[tuple[int, int, str]] = []

    def run(self, progress: Progress) -> None:
        now_us = time.time_ns() // 1000
        bounds, applied = self._history.bounds(), read_policies(self._log)
        for partition, found in bounds.items():
            if found.first == 0:
                self._check.begins_at_zero(partition)
            else:
                self._folded.begins_late(partition)
                before = applied.before(partition, found.first)
                if before is not None:
                    self._check.policy_before(partition, before.text, before.sequence)
            self._report.behind += max(0, found.end - max(found.first, self._positions.get(partition, found.first)))
        for event in self._events(bounds, progress):
            self._report.events += 1
            if self._of_log:
                self._check.event(event)
        if self._of_log:
            # After the events: a command in the log follows from an event that was there before it.
            for record in self._commands(now_us, progress):
                self._command(record)
            for finding in self._check.findings(now_us):
                self._report.note(finding)
        if self._of_tables:
            self._compare_tables(progress)

    def _events(self, bounds: dict[int, Bounds], progress: Progress) -> Iterator[Delivered]:
        ranges = ranges_of(bounds)
        for found in _counted("events", self._history.read(ranges), ranges, progress):
            partition, offset = found.partition, found.offset
            applied = offset < self._positions.get(partition, 0)
            stage = self._set_aside.pop((partition, offset), None)
            try:
                record = admit(self._codec, found.key, found.value)
                if isinstance(record, Command):
                    raise PoisonError("wrong_topic", "a command in the event topic")
            except PoisonError as error:
                self._report.unreadable += 1
                if applied and stage is None:
                    self._missing_letters.append((partition, offset, error.reason))
                continue
            if isinstance(record, Unknown):
                continue
            place = (partition, offset, found.timestamp_ms * 1000)
            if applied and self._of_tables and stage != STAGE_APPLY:
                self._folded.add(deliver(record, *place))  # rows are made without keys, whatever keys there are
            # The engine judged it with the keys and the policy of its role.
            yield self._inspector.deliver(record, *place)

    def _commands(self, now_us: int, progress: Progress) -> Iterator[LogRecord]:
        """Commands are not archived: those that retention has removed are not asked for."""
        ranges = self._log.bounds(COMMANDS)
        late = {partition for partition, (low, _) in ranges.items() if low > 0}
        for partition in late:
            if ranges[partition][0] == ranges[partition][1]:
                self._check.commands_begin(now_us)
        for record in _counted("commands", map(record_of, self._log.read(COMMANDS, ranges)), ranges, progress):
            if record.partition in late:
                late.discard(record.partition)
                self._check.commands_begin(record.timestamp_ms * 1000)
            yield record

    def _command(self, found: LogRecord) -> None:
        try:
            record = admit(self._codec, found.key, found.value)
        except PoisonError:
            self._report.unreadable += 1
            return
        if isinstance(record, Command):
            self._report.commands += 1
            self._check.command(record, found.timestamp_ms * 1000)

    def _compare_tables(self, progress: Progress) -> None:
        for number, table in enumerate(TABLES):
            progress("tables", number, len(TABLES))
            for drift in self._folded.compare(table.name, self._tables.rows(table)):
                self._report.drift(drift)
            self._report.rows[table.name] = self._folded.rows(table.name)
        self._report.unproven = self._folded.unproven
        for partition, offset, reason in self._missing_letters:
            self._report.drift(_letter(f"{partition}@{offset}", expected=f"a row ({reason})", found="no row"))
        progress("tables", len(TABLES), len(TABLES))


def _letter(key: str, *, expected: str, found: str) -> Drift:
    return Drift(table="dead_letters", key=key, column="", expected=expected, found=found)


def _counted(
    what: str, records: Iterator[LogRecord], ranges: Mapping[int, tuple[int, int]], progress: Progress
) -> Iterator[LogRecord]:
    total = sum(high - low for low, high in ranges.values())
    for done, record in enumerate(records):
        if done % 1_000 == 0:
            progress(what, done, total)
        yield record
    progress(what, total, total)
