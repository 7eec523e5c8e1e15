"""What a run consists of: its workflows, and what the fault plan has in store for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.development.faults import Fault, fault_of
from examples.development.service import workflow_id_of

HEALTHY = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run: `faults` by workflow id, None for a healthy one."""

    run: str
    seed: int
    faults: dict[str, Fault | None]

    @property
    def ids(self) -> list[str]:
        """Ids of all workflows of the run."""
        return list(self.faults)

    def recoverable(self, workflow_id: str) -> bool:
        """Whether the workflow can be completed without a human."""
        fault = self.faults[workflow_id]
        return fault is None or fault.recoverable

    def kind(self, workflow_id: str) -> str:
        """Name of the planned fault."""
        fault = self.faults[workflow_id]
        return HEALTHY if fault is None else fault.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user asked for."""

    workflows: int
    seed: int
    scratch: Path


def plan_of(run: str, settings: Settings) -> Plan:
    """The plan of a run."""
    numbers = range(settings.workflows)
    return Plan(
        run=run,
        seed=settings.seed,
        faults={workflow_id_of(run, index): fault_of(index, settings.seed) for index in numbers},
    )
