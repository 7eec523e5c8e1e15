"""The coordinator role as a process, on the real stack: leases and deadlocks across partitions."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from schemas.dead_letters import STAGE_DECODE
from schemas.headers import headers_for
from schemas.records import Record
from schemas.records.coordination import LeaseAsked, LeaseReturned, WaitSeen
from schemas.records.events import ResourceGranted, ResourceReleased, WorkflowErrorOccurred
from schemas.topics import COORDINATION, EVENTS

from .kit import Role, Topics, build, wait_for

Start = Callable[..., Role]
R = TypeVar("R", bound=Record)


class Board:
    """Writes what the recovery role writes for the coordinator, and sees what it answers."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        #: Names of this test's own: the topic has the records of all.
        self.prefix = uuid.uuid4().hex[:8]
        self.ids = [str(uuid.uuid4()) for _ in range(8)]

    def put(self, *records: Record) -> None:
        """Write records to `workflow.coordination`."""
        for record in records:
            value = self.topics.codec.encode(record)
            self.topics.producer.produce(
                COORDINATION,
                key=record.workflow_id.encode(),
                value=value,
                headers=headers_for(record),  # type: ignore[arg-type]
            )
        assert self.topics.producer.flush(20) == 0

    def asked(self, who: int, what: str, **fields: Any) -> LeaseAsked:
        """Workflow `who`, in partition `who`, wants a resource."""
        names = {"resource_id": f"{self.prefix}-{what}", "lease_id": f"{what} of {who}"}
        values = {"step_id": "work", "work": who, "began_at": who, **names, **fields}
        return build(LeaseAsked, self.ids[who], partition=who, **values)

    def returned(self, who: int, what: str) -> LeaseReturned:
        """Workflow `who` gives it back."""
        names = {"resource_id": f"{self.prefix}-{what}", "lease_id": f"{what} of {who}"}
        return build(LeaseReturned, self.ids[who], partition=who, **names)

    def told(self, kind: type[R], *who: int) -> list[R]:
        """What these workflows were told in their own partitions, each thing once."""
        found: dict[str, R] = {}
        for message in self.topics.read(EVENTS, {self.ids[w] for w in who}):
            record = self.topics.codec.decode(message.value())
            if isinstance(record, kind):
                assert message.partition() == self.ids.index(record.workflow_id)
                found[record.event_id] = record
        return list(found.values())

    def granted(self, who: int, what: str) -> ResourceGranted:
        """Wait until it is granted."""

        def found() -> ResourceGranted | None:
            return next((g for g in self.told(ResourceGranted, who) if g.lease_id == f"{what} of {who}"), None)

        grant: ResourceGranted = wait_for(f"{what} for {who}", found)
        return grant


@pytest.fixture
def board(topics: Topics) -> Board:
    """A board of this test's own."""
    return Board(topics)


def test_the_second_gets_the_resource_when_the_first_returns_it(board: Board, start: Start) -> None:
    role = start("coordinator")
    board.put(board.asked(0, "printer"), board.asked(1, "printer"), board.asked(2, "other"))

    board.granted(0, "printer")
    board.granted(2, "other")
    assert board.told(ResourceGranted, 1) == []
    board.put(board.returned(1, "other"), board.returned(0, "printer"))

    assert board.granted(1, "printer").producer == "kintsugi-coordinator"
    assert role.metric("kintsugi_lease_returns_ignored_total") == 1
    wait_for("the gauge", lambda: role.metric("kintsugi_leases_held") >= 2)
    assert role.stop() == 0


def test_a_wish_ends_when_its_time_is_over(board: Board, start: Start) -> None:
    start("coordinator")
    board.put(board.asked(0, "printer"), board.asked(1, "printer", wait_ms=100))

    (released,) = wait_for("the end of the wish", lambda: board.told(ResourceReleased, 1))

    assert released.reason == "timed_out"


def test_a_deadlock_across_partitions_is_found_and_the_others_go_on(board: Board, start: Start) -> None:
    role = start("coordinator")
    count = 5
    board.put(*(board.asked(n, f"r{n}", work=10 + n) for n in range(count)))
    board.put(*(board.asked(n, f"r{n + 1}", work=10 + n) for n in range(count - 2)))
    awaiting = board.ids[count - 2], board.ids[count - 1]
    board.put(
        build(
            WaitSeen,
            awaiting[0],
            partition=count - 2,
            wait_id=str(uuid.uuid4()),
            step_id="join",
            awaited_id=awaiting[1],
            work=3,
            began_at=0,
        )
    )
    board.put(board.asked(count - 1, "r0", work=10 + count))

    (error,) = wait_for("the deadlock", lambda: board.told(WorkflowErrorOccurred, *range(count)))

    assert (error.workflow_id, error.error_code, error.step_id) == (awaiting[0], "DEADLOCK", "join")
    assert json.loads(error.context or "")["length"] == count
    # The victim's lease goes to the one before it; who has all that it wants gives it back, and so on.
    board.granted(count - 3, f"r{count - 2}")
    for who in range(count - 3, 0, -1):
        board.put(board.returned(who, f"r{who}"))
        board.granted(who - 1, f"r{who}")
    assert len(board.told(WorkflowErrorOccurred, *range(count))) == 1
    assert role.metric("kintsugi_deadlocks_total") >= 1


@pytest.mark.parametrize("point", ["after_poll", "after_fold", "after_append", "after_flush", "after_commit"])
def test_killed_at_any_point_the_successor_goes_on_and_grants_nothing_twice(
    board: Board, start: Start, point: str
) -> None:
    first = start("coordinator", crash_at=f"{point}:2")
    first.wait_log("partitions assigned")
    for who in range(3):
        board.put(board.asked(who, "printer"))
        time.sleep(0.02)

    def died() -> bool:
        board.put(board.returned(0, "scanner"))  # nothing comes of it, but a batch
        return first.process.poll() is not None

    wait_for("its death", died)
    assert first.process.wait(40) == -signal.SIGKILL

    second = start("coordinator")
    board.granted(0, "printer")
    board.put(board.returned(0, "printer"))
    board.granted(1, "printer")
    assert board.told(ResourceGranted, 2) == []
    board.put(board.returned(1, "printer"))
    board.granted(2, "printer")

    assert len(board.told(ResourceGranted, 0, 1, 2)) == 3
    assert board.told(ResourceReleased, 0, 1, 2) == []
    assert second.stop() == 0


def test_the_next_owner_goes_on_from_the_snapshot(board: Board, start: Start) -> None:
    first = start("coordinator")
    board.put(board.asked(0, "printer"), board.asked(1, "printer"))
    board.granted(0, "printer")
    assert first.stop() == 0

    second = start("coordinator")
    taken = second.wait_log("partition taken")
    assert second.metric("kintsugi_snapshots_total", outcome="loaded") == 1
    assert taken["start"] > 0
    board.put(board.returned(0, "printer"))
    board.granted(1, "printer")


def test_what_cannot_be_read_is_set_aside(board: Board, start: Start) -> None:
    start("coordinator")
    key = str(uuid.uuid4()).encode()
    board.topics.producer.produce(COORDINATION, key=key, value=b"junk")
    nowhere = board.asked(3, "printer")
    board.put(replace(nowhere, partition=8))
    board.put(board.asked(1, "printer"))

    board.granted(1, "printer")
    (letter,) = wait_for("a dead letter", lambda: board.topics.dead_letters(key))
    headers = dict(letter.headers() or [])
    assert headers["__connect.errors.topic"] == COORDINATION.encode()
    assert headers["__connect.errors.stage"] == STAGE_DECODE.encode()
    (letter,) = wait_for("another", lambda: board.topics.dead_letters(nowhere.workflow_id.encode()))
    assert b"wrong_partition" in dict(letter.headers() or [])["__connect.errors.exception.message"]
