"""`kintsugi verify`: the log against itself, and the tables against the log.

The log reaches as far back as archive and Kafka together hold it without a gap.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from consumers.history import Bounds, History, ranges_of
from consumers.log_reader import LogReader, record_of
from consumers.policies import read_policies
from engine.events import Delivered
from engine.inspection import Inspector
from engine.invariants import Finding, LogCheck
from engine.policy import Policy
from projections.choice import ALL, Choice
from projections.reader import snapshot
from schemas.admission import admit
from schemas.codec import Codec
from schemas.errors import PoisonError
from schemas.keystore import keys_optional, open_keystore
from schemas.log_record import LogRecord
from schemas.records import Command
from schemas.registry import Registry
from schemas.topics import COMMANDS

from .archive import history_of
from .stack import Addresses
from .tables_proof import MEMORY_MB, SHOWN_MAX, Pass, Progress, TablesProof, TablesReport, counted, event_of


@dataclass(slots=True)
class Report(TablesReport):
    """What was compared, and every way in which it disagrees."""

    commands: int = 0
    findings: list[Finding] = field(default_factory=list)

    def note(self, finding: Finding) -> None:
        """Count a finding about the log, and keep it while there is room."""
        self.count(f"log: {finding.rule}")
        if len(self.findings) < SHOWN_MAX:
            self.findings.append(finding)


def verify(
    at: Addresses, policy: Policy, progress: Progress, *, only: str | None = None, archived: bool = True
) -> Report:
    """Check everything, or only "log" or "tables"; `archived` reads what retention removed from the archive.

    Checkpoints are inspected as the recovery role did: by the policy, and with KINTSUGI_KEYS where that is set.

    RetriableError when a server is away. Memory: about 5 KB for each workflow in the log, and MEMORY_MB for rows.
    """
    report = Report()
    keystore = open_keystore(objects_url=at.objects)
    inspector = Inspector(
        None if keystore is None else keystore.get,
        keys_optional=keys_optional(),
        verify=policy.corruption.verify_on_arrival,
    )
    with Registry(at.registry) as registry, LogReader(at.kafka) as log:
        codec, history = Codec(registry), history_of(at, log, archived=archived)
        proof = TablesProof(at, codec, history)
        if only == "tables":
            proof.run(report, [ALL], progress)
        else:
            check = _Verification(at, report, codec, log, history, LogCheck(policy), inspector, only)
            proof.run(report, check.run(progress), progress)
    return report


class _Verification:
    """The log, and in the same reading of it as much of the tables as finds room."""

    def __init__(
        self,
        at: Addresses,
        report: Report,
        codec: Codec,
        log: LogReader,
        history: History,
        check: LogCheck,
        inspector: Inspector,
        only: str | None,
    ) -> None:
        self._at = at
        self._report = report
        self._codec = codec
        self._log = log
        self._history = history
        self._check = check
        self._inspector = inspector
        self._of_tables = only is None

    def run(self, progress: Progress) -> list[Choice]:
        """Check; the workflows whose rows are still to be compared."""
        now_us = time.time_ns() // 1000
        with snapshot(self._at.postgres) as tables:
            one = Pass(tables, ALL, MEMORY_MB * 1024 * 1024)
            bounds = self._history.bounds()
            one.begin(bounds)
            self._begin(bounds)
            self._report.behind = one.behind
            for event in self._events(bounds, one, progress):
                self._report.events += 1
                self._check.event(event)
            # After the events: a command in the log follows from an event that was there before it.
            for record in self._commands(now_us, progress):
                self._command(record)
            for finding in self._check.findings(now_us):
                self._report.note(finding)
            return one.compare(self._report, progress) if self._of_tables else []

    def _begin(self, bounds: dict[int, Bounds]) -> None:
        applied = read_policies(self._log)
        for partition, found in bounds.items():
            if found.first == 0:
                self._check.begins_at_zero(partition)
                continue
            before = applied.before(partition, found.first)
            if before is not None:
                self._check.policy_before(partition, before.text, before.sequence)

    def _events(self, bounds: dict[int, Bounds], one: Pass, progress: Progress) -> Iterator[Delivered]:
        ranges = ranges_of(bounds)
        for found in counted("events", self._history.read(ranges), ranges, progress):
            try:
                record = event_of(self._codec, found)
            except PoisonError as error:
                self._report.unreadable += 1
                one.refuse(found, error.reason)
                continue
            if record is None:
                continue
            if self._of_tables:
                one.take(found, record)
            # The engine judged it with the keys and the policy of its role.
            yield self._inspector.deliver(record, found.partition, found.offset, found.timestamp_ms * 1000)

    def _commands(self, now_us: int, progress: Progress) -> Iterator[LogRecord]:
        """Commands are not archived: those that retention has removed are not asked for."""
        ranges = self._log.bounds(COMMANDS)
        late = {partition for partition, (low, _) in ranges.items() if low > 0}
        for partition in late:
            if ranges[partition][0] == ranges[partition][1]:
                self._check.commands_begin(now_us)
        for record in counted("commands", map(record_of, self._log.read(COMMANDS, ranges)), ranges, progress):
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
