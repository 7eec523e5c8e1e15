"""The keeper's surroundings in memory: a log, tables, a desk that keeps what is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from consumers.keeper.desk import Desk
from consumers.keeper.places import Place, Places, Problem
from consumers.keeper.tables import History, Target
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.codec import Codec
from schemas.errors import RetriableError
from schemas.ids import derive_id
from schemas.log_record import LogRecord
from schemas.records import Record
from schemas.records.events import CheckpointCreated

NOW_US = 1_764_000_000_000_000
CODEC = Codec()


def id_of(*parts: object) -> str:
    return derive_id("tests", "|".join(map(str, parts)))


def checkpoint(name: str, **changed: Any) -> CheckpointCreated:
    """A sound checkpoint of a workflow called `name`."""
    workflow_id = id_of("workflow", name)
    data = canonical_bytes({"workflow_id": workflow_id, "step_id": "build", "status": "running", "data": {"n": name}})
    digest = digest_of(data)
    fields: dict[str, Any] = {
        "event_id": id_of("event", name),
        "workflow_id": workflow_id,
        "workflow_type": "development",
        "occurred_at": NOW_US,
        "producer": "tests",
        "checkpoint_id": id_of("checkpoint", name),
        "step_id": "build",
        "checkpoint_type": "manual",
        "sequence": 1,
        "state_version": "1",
        "codec": "identity",
        "size_bytes": len(data),
        "digest": digest,
        "chain_digest": chain_digest_of(None, digest),
        "status": "running",
        "state": data,
        **changed,
    }
    return CheckpointCreated(**fields)


class Log(Places):
    """Records at places, each of them in log or archive, or a problem."""

    def __init__(self) -> None:
        self.lies: dict[Place, LogRecord | Problem] = {}
        self.copies: dict[Place, LogRecord] = {}
        self.ends: dict[int, tuple[int, int]] = {0: (0, 1_000)}
        self.away = False
        self.asked: list[Place] = []

    def put(self, place: Place, record: Record | Problem) -> None:
        self.lies[place] = record if isinstance(record, Problem) else written(place, record)

    def bounds(self) -> dict[int, tuple[int, int]]:
        self._answer()
        return self.ends

    def read(self, places: Sequence[Place]) -> Iterator[tuple[Place, LogRecord | Problem]]:
        for place in places:
            self._answer()
            self.asked.append(place)
            yield place, self.lies.get(place, Problem.GONE)

    def archived(self, partition: int, offsets: Sequence[int]) -> Iterator[tuple[Place, LogRecord | Problem]]:
        for offset in offsets:
            yield (partition, offset), self.copies.get((partition, offset), Problem.GONE)

    def rest(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            raise RetriableError("Kafka is away")


def written(place: Place, record: Record) -> LogRecord:
    return LogRecord(*place, NOW_US // 1000, 2, record.workflow_id.encode(), CODEC.encode(record), ())


class Rows:
    """The tables: targets and histories as they are put there."""

    def __init__(self) -> None:
        self.found: list[Target] = []
        self.all: list[History] = []
        self.uris: list[str] = []
        self.texts: dict[str, str] = {}
        self.at: dict[int, int] = {}
        self.set_aside: list[Place] = []
        self.live = 0
        self.any = True
        self.per_workflow: list[int] = []
        self.free = True
        self.held = False
        self.away = False

    def add(self, place: Place, record: CheckpointCreated, **changed: Any) -> Target:
        fields: dict[str, Any] = {
            "checkpoint_id": record.checkpoint_id,
            "workflow_id": record.workflow_id,
            "workflow_type": record.workflow_type,
            "external_id": record.external_id,
            "step_id": record.step_id,
            "partition": place[0],
            "offset": place[1],
            "checksum": record.digest,
            "size_bytes": record.size_bytes,
            "plain": False,
            **changed,
        }
        self.found.append(Target(**fields))
        return self.found[-1]

    def try_lock(self) -> bool:
        self._answer()
        self.held = self.free
        return self.free

    def holds_lock(self) -> bool:
        self._answer()
        return self.held

    def unlock(self) -> None:
        self.held = False

    def live_count(self) -> int:
        self._answer()
        return self.live or len(self.found)

    def targets(self, *, per_workflow: int, after: Place) -> Iterator[Target]:
        self._answer()
        self.per_workflow.append(per_workflow)
        yield from sorted(self.found, key=lambda t: (t.place <= after, t.place))

    def states(self, checkpoint_ids: Sequence[str]) -> dict[str, str]:
        return {i: self.texts[i] for i in checkpoint_ids if i in self.texts}

    def histories(self, *, after: str, workflows: int, checkpoints_max: int) -> Sequence[History]:
        self._answer()
        behind = sorted((h for h in self.all if h.workflow_id > after), key=lambda h: h.workflow_id)
        return behind[:workflows]

    def claims(self) -> Iterator[str]:
        return iter(sorted(self.uris))

    def has_checkpoints(self) -> bool:
        return self.any

    def positions(self) -> dict[int, int]:
        self._answer()
        return self.at

    def refused(self) -> Sequence[Place]:
        return self.set_aside

    def _answer(self) -> None:
        if self.away:
            raise RetriableError("Postgres is away")


class Written(Desk):
    """Keeps what is appended; `lost`: the log does not confirm it. Its clock moves with each look."""

    def __init__(self) -> None:
        self.facts: list[tuple[Record, int]] = []
        self.lost = False
        self.asked = 0
        self._waiting: list[tuple[Record, int]] = []

    def now_us(self) -> int:
        self.asked += 1
        return NOW_US + self.asked

    def append(self, record: Record, partition: int) -> None:
        self._waiting.append((record, partition))

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self.lost:
            raise RetriableError("not delivered")
        self.facts += waiting

    def of(self, kind: type) -> list[Any]:
        return [record for record, _ in self.facts if isinstance(record, kind)]
