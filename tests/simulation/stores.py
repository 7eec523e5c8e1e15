"""Postgres and the object store in memory: tables with their positions, and snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from consumers.deadline import Deadline
from consumers.snapshots import Dumping, Found, _part
from engine.events import Delivered
from engine.inforce import InForce
from engine.snapshot import load
from engine.state import WorkflowState
from projections.catalog import TABLES
from projections.fold import Rows, fold, keys_of, touched
from projections.kit import Table, Touch, columns
from schemas.dead_letters import DeadLetter
from schemas.errors import FencedError, RetriableError
from schemas.ids import uuid_text
from schemas.log_record import LogRecord

from .cluster import Nature


class Applied(NamedTuple):
    """What was applied of a workflow."""

    id: str
    offsets: tuple[int, ...]


def _noted(row: Applied | None, event: Delivered) -> Applied:
    return Applied(event.record.workflow_id, (*(row.offsets if row else ()), event.offset))


_KINDS = {kind for table in TABLES for kind in table.touches}
#: A table of the test's own: an event applied twice, too late or never shows in it, whatever the other folds forgive.
LEDGER = Table(
    name="ledger",
    columns=columns(id="uuid"),
    touches={kind: Touch(lambda event: event.record.workflow_id, _noted) for kind in _KINDS},
)
PLAN = touched((*TABLES, LEDGER))


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing is parked: the records of this simulation can be applied or not even be read."""

    workflows: int = 0
    events: int = 0


class Database:
    """What is stored. `slips` are defects that are planted to see that they are found."""

    def __init__(self, nature: Nature, slips: frozenset[str]) -> None:
        self.nature = nature
        self.slips = slips
        self.away = False
        self.rows: Rows = {}
        #: Partition to next offset (None: nothing applied yet) and owner epoch.
        self.positions: dict[int, tuple[int | None, int]] = {}
        self.dead: set[tuple[int, int]] = set()
        self.rewinds: list[str] = []


class Connection:
    """One process's tables: the projector role's `Projection`."""

    def __init__(self, database: Database, member: Any) -> None:
        self._database, self._member, self._nature = database, member, database.nature
        self._epochs: dict[int, int] = {}

    def claim(self, partition: int) -> int | None:
        self._nature.touch(self._member)
        self._reach()
        found, epoch = self._database.positions.get(partition, (None, 0))
        self._database.positions[partition] = found, epoch + 1
        self._epochs[partition] = epoch + 1
        return found

    def apply(
        self,
        partition: int,
        events: Sequence[Delivered],
        dead: Sequence[DeadLetter],
        *,
        start: int,
        end: int,
        raw: Callable[[Delivered], LogRecord],
    ) -> Sequence[DeadLetter]:
        database = self._database
        if partition not in self._epochs:
            raise FencedError("not claimed")
        self._reach()
        stored = database.rows
        rows: Rows = {
            name: {key: stored[name][key] for key in keys if key in stored.get(name, {})}
            for name, keys in keys_of(events, PLAN).items()
        }
        changed = fold(rows, events, PLAN)
        self._nature.touch(self._member)  # frozen here, it comes back when another has gone on
        found, epoch = database.positions[partition]
        if epoch != self._epochs[partition] or (found is not None and found != start):
            self._nature.strikes("fenced", 1)
            if "no_compare_and_set" not in database.slips:
                raise FencedError(f"partition {partition} stands at {found}")
        if self._nature.strikes("rolled_back", 0.03):
            raise RetriableError("the connection broke")
        for name, some in changed.items():
            stored.setdefault(name, {}).update(some)
        database.dead |= {(partition, letter.offset) for letter in dead}
        if "position_apart" in database.slips:
            self._nature.touch(self._member)
        if found is not None and end <= found:
            database.rewinds.append(f"partition {partition} went from {found} to {end}")
        database.positions[partition] = end, epoch
        if self._nature.strikes("commit_unanswered", 0.03):
            raise RetriableError("COMMIT without an answer")
        return ()

    def parked(self, partition: int) -> Nothing:
        return Nothing()

    def release(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            self._epochs.pop(partition, None)

    def _reach(self) -> None:
        if self._database.away:
            raise RetriableError("Postgres is away")


class Shelf:
    """Snapshots of all members of a group; some are never written. Stands for `consumers.snapshots.Snapshots`."""

    busy = False

    def __init__(self, nature: Nature) -> None:
        self._nature = nature
        self._data: dict[int, list[tuple[int, bytes]]] = {}

    def newest(self, partition: int, *, low: int, high: int) -> Found | None:
        usable = [item for item in self._data.get(partition, ()) if low <= item[0] <= high]
        if not usable or self._nature.strikes("snapshot_gone", 0.2):
            return None
        offset, data = max(usable)
        gone, at = _part(data, 0)
        in_force, at = _part(data, at)
        ended = [uuid_text(gone[i : i + 16]) for i in range(0, len(gone), 16)]
        return Found(offset, load(data[at:]), ended, orjson.loads(in_force))

    def save(
        self, partition: int, offset: int, states: Iterable[WorkflowState], ended: Iterable[str], in_force: InForce
    ) -> None:
        made = Dumping(offset, _by_id(states), ended, in_force)
        made.take(None)
        self.write(partition, made)

    def write(self, partition: int, made: Dumping) -> None:
        assert made.failure is None, made.failure
        if not self._nature.strikes("snapshot_lost", 0.2):
            self._nature.strikes("snapshot_written", 1)
            self._data.setdefault(partition, []).append((made.offset, made.data()))

    def settle(self, deadline: Deadline) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing to close."""


def _by_id(states: Iterable[WorkflowState]) -> Mapping[str, WorkflowState]:
    return {state.workflow_id: state for state in states}
