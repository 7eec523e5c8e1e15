"""The tables, as the keeper sees them. Implemented by `ops.keeper_tables`: consumers and projections do not know each
other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .places import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A checkpoint to be proven again. `plain`: its state stands in the table as the service wrote it."""

    checkpoint_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None
    step_id: str
    partition: int
    offset: int
    checksum: str
    size_bytes: int
    plain: bool

    @property
    def place(self) -> Place:
        """Where it stands in the log."""
        return self.partition, self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A checkpoint that has a row. `sound`: it may be restored from, as far as is known."""

    checkpoint_id: str
    partition: int
    offset: int
    created_us: int
    sound: bool
    evidence: bool = False

    @property
    def place(self) -> Place:
        """Where it stands in the log."""
        return self.partition, self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A workflow's newest checkpoints, newest first. `live`: it has not ended."""

    workflow_id: str
    live: bool
    checkpoints: Sequence[Kept]


class Tables(Protocol):
    """What the keeper asks. Every method raises RetriableError when Postgres is away."""

    def try_lock(self) -> bool:
        """Become the one keeper at work, until `unlock`, or until the session ends."""

    def holds_lock(self) -> bool:
        """Whether the session that holds the lock is still there."""

    def unlock(self) -> None:
        """Let another keeper work. Does not raise."""

    def live_count(self) -> int:
        """Number of workflows that have not ended."""

    def targets(self, *, per_workflow: int, after: Place) -> Iterator[Target]:
        """The newest sound checkpoints of every live workflow, in the order of the log: first what lies behind
        `after`, then the rest. All as of one moment; few are in memory at once."""

    def states(self, checkpoint_ids: Sequence[str]) -> dict[str, str]:
        """The states in the rows of checkpoints, as JSON text."""

    def histories(self, *, after: str, workflows: int, checkpoints_max: int) -> Sequence[History]:
        """The next workflows that have checkpoints, in the order of their ids, with at most so many of them each."""

    def claims(self) -> Iterator[str]:
        """Every claim_uri that a row names, ascending, as of one moment; few are in memory at once."""

    def has_checkpoints(self) -> bool:
        """Whether there is any checkpoint at all."""

    def positions(self) -> dict[int, int]:
        """Next offset to apply, by partition."""

    def refused(self) -> Sequence[Place]:
        """Places of records that the tables did not take. FatalError when there are too many to look at."""
