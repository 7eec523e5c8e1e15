"""The keeper's turns: one at work, jobs in steps, what is away is waited for."""

from __future__ import annotations

from collections.abc import Generator

from consumers.keeper.role import LOCK_INTERVAL_S, Job, Keeper
from schemas.errors import RetriableError

from .kit import Rows


class Work:
    """A job of three steps that notes what it does; `away` makes it fail at its second."""

    def __init__(self, name: str, notes: list[str], *, wait_s: float = 0.0) -> None:
        self.name = name
        self.notes = notes
        self.wait_s = wait_s
        self.away = False

    def begin(self) -> Generator[float, None, None]:
        try:
            for number in (1, 2, 3):
                if self.away and number == 2:
                    raise RetriableError("away")
                self.notes.append(f"{self.name}{number}")
                yield self.wait_s
        finally:
            self.notes.append(f"{self.name} ends")


class World:
    def __init__(self, *jobs: Job) -> None:
        self.rows = Rows()
        self.now_s = 100.0
        self.keeper = Keeper(self.rows, list(jobs), clock=lambda: self.now_s)

    def turns(self, count: int, *, seconds: float = 0.0) -> None:
        for _ in range(count):
            self.keeper.round()
            self.now_s += seconds


def test_jobs_take_turns_step_by_step() -> None:
    notes: list[str] = []
    world = World(Job("a", Work("a", notes).begin, 60.0), Job("b", Work("b", notes).begin, 60.0))
    world.turns(6)
    assert notes == ["a1", "b1", "a2", "b2", "a3", "b3", "a ends", "b ends"]
    world.turns(1, seconds=59.0)
    assert len(notes) == 8, "not before its interval"
    world.now_s += 2.0
    world.turns(1)
    assert notes[8:] == ["a1", "b1"]


def test_a_step_says_when_the_next_one_is_due() -> None:
    notes: list[str] = []
    world = World(Job("a", Work("a", notes, wait_s=5.0).begin, 60.0))
    world.turns(5)
    assert notes == ["a1"]
    world.now_s += 5.0
    world.turns(3)
    assert notes == ["a1", "a2"]


def test_who_does_not_hold_the_lock_does_nothing_until_it_is_free() -> None:
    notes: list[str] = []
    world = World(Job("a", Work("a", notes).begin, 60.0))
    world.rows.free = False
    world.turns(5, seconds=LOCK_INTERVAL_S)
    assert not notes
    world.rows.free = True
    world.turns(1)
    assert notes == ["a1"]


def test_who_loses_its_session_leaves_its_work_where_it_is() -> None:
    notes: list[str] = []
    world = World(Job("a", Work("a", notes).begin, 60.0))
    world.turns(1)
    world.rows.held = world.rows.free = False
    world.now_s += LOCK_INTERVAL_S
    world.turns(3)
    assert notes == ["a1", "a ends"]
    world.rows.away = True
    world.turns(3, seconds=LOCK_INTERVAL_S)
    world.rows.away, world.rows.free = False, True
    world.turns(2, seconds=LOCK_INTERVAL_S)
    assert notes[2:4] == ["a1", "a2"], "from the beginning"


def test_what_is_away_is_tried_again_later_each_time_and_holds_up_no_other_job() -> None:
    notes: list[str] = []
    sick = Work("a", notes)
    sick.away = True
    job = Job("a", sick.begin, 60.0)
    world = World(job, Job("b", Work("b", notes).begin, 60.0))
    world.turns(4)
    assert notes.count("a1") == 1 and "b3" in notes
    waits = []
    for _ in range(4):
        waits.append(job.due_s - world.now_s)
        world.now_s = job.due_s
        world.turns(2)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    sick.away = False
    world.now_s = job.due_s
    world.turns(4)
    assert notes[-2:] == ["a3", "a ends"]
    assert job.failures == 0


def test_what_deletes_rests_after_a_start_and_after_anything_was_away() -> None:
    notes: list[str] = []
    sick = Work("a", notes)
    world = World(Job("a", sick.begin, 600.0), Job("b", Work("b", notes).begin, 3600.0, rests_s=3600.0))
    world.turns(5)
    assert "b1" not in notes
    world.now_s += 3599.0
    sick.away = True
    world.turns(2)
    world.now_s += 2.0
    world.turns(1)
    assert "b1" not in notes, "its rest began anew"
    sick.away = False
    world.now_s += 3600.0
    world.turns(2)
    assert "b1" in notes


def test_what_cannot_be_closed_because_it_is_away_is_left_all_the_same() -> None:
    def work() -> Generator[float, None, None]:
        try:
            yield 0.0
        finally:
            raise RetriableError("the cursor cannot be closed")

    job = Job("a", work, 60.0)
    world = World(job)
    world.turns(1)
    world.rows.held = world.rows.free = False
    world.now_s += LOCK_INTERVAL_S
    world.turns(1)
    assert job.steps is None


def test_a_stop_ends_what_is_under_way_and_lets_another_work() -> None:
    notes: list[str] = []
    world = World(Job("a", Work("a", notes).begin, 60.0))
    world.turns(1)
    world.keeper.stop()
    world.keeper.run()
    assert notes == ["a1", "a ends"]
    assert not world.rows.held
