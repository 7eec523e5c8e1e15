"""The recovery role takes records in, and folds them lane by lane: fair, and as the log's own order says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message

from consumers import intake, recovery
from consumers.handler import LogRange
from consumers.outbox import Outbox
from consumers.recovery import Recovery
from consumers.snapshots import Snapshots
from engine.policy import default_policy
from engine.testing import START_US, Service, World
from schemas.codec import Codec
from schemas.errors import RetriableError
from schemas.headers import headers_for
from schemas.records import Record
from schemas.records.events import BreakerChanged, ErrorClassified, RecoveryDecided, RepairHeld, StepSpec

from .test_dumping import Record as Raw

CODEC = Codec()


class Box:
    """Takes what the role sends, and notes how far each batch reached."""

    def __init__(self) -> None:
        self.sent: list[Record] = []
        self.ends: list[int] = []
        self.refuses = self.crowded = False

    @property
    def taken(self) -> int:
        return len(self.sent)

    def send(self, _topic: str, _key: Any, value: bytes, *_: Any, **__: Any) -> None:
        if self.refuses:
            raise RetriableError("the producer's queue stays full")
        self.sent.append(cast(Record, CODEC.decode(value)))

    def end_batch(self, _cause: int, next_offset: int) -> None:
        self.ends.append(next_offset)

    def forget(self, *_: int) -> None:
        """Nothing is on its way."""

    def close(self) -> None:
        """Nothing is open."""


class Line(Raw):
    """A record in the log, with or without the headers of our client."""

    def __init__(self, record: Record, offset: int, named: bool = True) -> None:
        super().__init__(record.workflow_id.encode(), CODEC.encode(record), offset, START_US + offset)
        self._headers: Any = headers_for(record) if named else None

    def headers(self) -> Any:
        return self._headers


class Log:
    """Partition 0: what services wrote, and the role that reads it."""

    def __init__(self, folder: Path) -> None:
        self.world = World(default_policy())
        self.box = Box()
        self.snapshots = Snapshots(folder.as_uri(), cluster="c", group="g", topic="t")
        self.role = Recovery(default_policy(), CODEC, cast(Outbox, self.box), self.snapshots)
        self.role.assigned(LogRange(partition=0, low=0, high=0, committed=0))
        self.offset = 0

    def put(self, *records: Record, named: bool = True) -> None:
        """The role reads these."""
        lines = [Line(record, self.offset + number, named) for number, record in enumerate(records)]
        self.offset += len(lines)
        self.role.handle(0, [cast(Message, line) for line in lines])

    def work(self) -> None:
        """The role does all there is."""
        while self.role.backlog:
            assert not self.role.work()

    def failing(self, code: str) -> list[Record]:
        """A workflow that starts, and fails."""
        before = len(self.world.log)
        service = Service(self.world, (StepSpec(step_id="build"),))
        service.start("build")
        service.fail("build", code)
        made = [event.record for event in self.world.log[before:]]
        return [r for r in made if type(r).__name__ in ("WorkflowStarted", "StepStarted", "WorkflowErrorOccurred")]

    def told(self, kind: type[Record]) -> list[str]:
        """Workflows of which the role wrote such facts, in order."""
        return [r.workflow_id for r in self.box.sent if type(r) is kind]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.role.close()


def stand(log: Log, count: int, named: bool = True) -> str:
    """A storm is taken in, and one error behind it that has nothing to do with it; whose that is."""
    storm = [log.failing("TIMEOUT") for _ in range(count)]
    lone = log.failing("OUT_OF_MEMORY")
    for records in (*storm, lone):
        log.put(*records[:-1])
    log.work()
    log.put(*(records[-1] for records in (*storm, lone)), named=named)
    return lone[0].workflow_id


@pytest.mark.parametrize("named", [True, False], ids=["by header", "without a header"])
def test_an_error_behind_a_storm_is_decided_in_the_first_round(log: Log, named: bool) -> None:
    lone = stand(log, 100, named)
    log.role.work()
    assert lone in log.told(ErrorClassified)
    assert log.role.backlog > 50
    log.work()
    assert len(log.told(ErrorClassified)) == 101


def test_the_position_waits_for_the_oldest_record_of_the_storm(log: Log) -> None:
    stand(log, 100)
    begin = log.offset - 101
    log.role.work()
    assert begin < log.box.ends[-1] < log.offset, "the lone error is done, and the position has not passed the storm"
    log.work()
    assert log.box.ends[-1] == log.offset


def test_what_is_in_force_at_a_records_place_decides_and_not_what_came_since(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "WORK_RECORDS_MAX", 1)
    records = log.failing("TIMEOUT")
    log.put(*records)
    log.work()
    decided = next(r for r in log.box.sent if isinstance(r, RecoveryDecided))
    classified = next(r for r in log.box.sent if isinstance(r, ErrorClassified))
    opened = Service(log.world).build(
        BreakerChanged,
        breaker=f"fingerprint:{classified.fingerprint}",
        kind="fingerprint",
        state="open",
        sequence=1,
        reason="many fail",
    )
    # Both come before any work is done: the breaker opens behind the decision, and before the same one of another.
    later = log.failing("TIMEOUT")
    log.put(classified, decided, opened)
    log.put(*later)
    log.work()
    assert not log.told(RepairHeld)
    log.put(*(r for r in log.box.sent if r.workflow_id == later[0].workflow_id))
    log.work()
    assert log.told(RepairHeld) == [later[0].workflow_id]


def test_with_too_much_on_its_way_nothing_is_folded_and_records_are_still_taken_in(log: Log) -> None:
    log.box.crowded = True
    stand_of = log.failing("TIMEOUT")
    log.put(*stand_of)
    assert not log.role.work()
    assert (log.role.backlog, log.box.sent) == (len(stand_of), [])
    log.box.crowded = False
    log.work()
    assert log.told(ErrorClassified) == [stand_of[0].workflow_id]


def test_no_more_is_taken_in_than_the_bounds_allow(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    stand(log, 20)
    assert not log.role.full
    monkeypatch.setattr(intake, "QUEUED_RECORDS_MAX", 21)
    assert log.role.full
    monkeypatch.undo()
    monkeypatch.setattr(intake, "QUEUED_BYTES_MAX", 1_000)
    assert log.role.full


def test_a_snapshot_that_is_late_gets_its_moment(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "SNAPSHOT_RECORDS_MAX", 10)
    stand(log, 20)
    log.role.work()
    assert log.role.backlog
    log.role.committed(0, log.box.ends[-1])
    assert log.role.full, "nothing more comes in"
    log.work()
    log.role.committed(0, log.offset)
    assert not log.role.full


def test_a_partition_that_cannot_go_on_is_begun_anew_and_nothing_of_it_is_left(log: Log) -> None:
    stand(log, 20)
    ends = len(log.box.ends)
    log.box.refuses = True
    assert list(log.role.work()) == [0]
    assert (log.role.backlog, len(log.box.ends)) == (0, ends)
    log.box.refuses = False
    assert log.role.assigned(LogRange(partition=0, low=0, high=log.offset, committed=ends)) == 0


def test_without_memory_no_record_is_set_aside(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends, and who takes over may have room. FAULTS.md row 23."""

    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(recovery, "evolve", no_memory)
    records = log.failing("TIMEOUT")
    log.put(*records)
    with pytest.raises(MemoryError):
        log.work()
    assert not log.box.sent
