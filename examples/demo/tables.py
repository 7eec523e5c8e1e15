"""Reads what the demo needs: progress and rows from Postgres, runs of steps from the log."""

from __future__ import annotations

from typing import Any

from consumers.dead_letter import raw
from consumers.log_reader import LogReader
from ops.stack import Addresses
from projections.reader import snapshot
from projections.sql import blocks
from schemas.admission import admit
from schemas.codec import Codec
from schemas.errors import PoisonError
from schemas.records.events import StepStarted
from schemas.registry import Registry
from schemas.topics import EVENTS

from .report import StepRun

_QUERIES = blocks("examples.demo", "report.sql")


class Tables:
    """Questions about the workflows of one run. `ends` are the log's ends when the run began."""

    def __init__(self, at: Addresses, ids: list[str], ends: dict[int, int]) -> None:
        self._at = at
        self._ids = ids
        self._ends = ends

    def ask(self, name: str) -> list[dict[str, Any]]:
        """Rows of a named question."""
        with snapshot(self._at.postgres) as tables:
            return tables.query(_QUERIES[name], {"ids": self._ids})

    def progress(self) -> dict[str, int]:
        """Workflows by status."""
        return {row["status"]: row["workflows"] for row in self.ask("progress")}

    def in_flight(self) -> int:
        """Repairs that are neither ended nor waiting for a human."""
        return int(self.ask("repairs_in_flight")[0]["attempts"])

    def behind(self) -> int:
        """Records that the log holds and the tables do not have yet."""
        with snapshot(self._at.postgres) as tables:
            positions = tables.positions()
        return sum(max(0, end - positions.get(partition, 0)) for partition, end in ends_of(self._at).items())

    def step_runs(self) -> list[StepRun]:
        """Every start of a step of this run's workflows, from the log."""
        wanted, found = set(self._ids), []
        ranges = {p: (self._ends.get(p, 0), end) for p, end in ends_of(self._at).items()}
        with Registry(self._at.registry) as registry, LogReader(self._at.kafka) as log:
            codec = Codec(registry)
            for message in log.read(EVENTS, ranges):
                try:
                    record = admit(codec, raw(message.key()), raw(message.value()))
                except PoisonError:
                    continue  # `kintsugi verify` counts it
                if isinstance(record, StepStarted) and record.workflow_id in wanted:
                    found.append(
                        StepRun(
                            workflow_id=record.workflow_id,
                            command_id=record.command_id,
                            step_id=record.step_id,
                            step_run_id=record.step_run_id,
                            producer=record.producer,
                        )
                    )
        return found


def ends_of(at: Addresses) -> dict[int, int]:
    """The log's end in each partition."""
    with LogReader(at.kafka) as log:
        return {partition: high for partition, (_, high) in log.bounds(EVENTS).items()}
