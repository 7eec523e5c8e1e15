"""The threads: how many, in which order they take work, and what becomes of those that hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from kintsugi_client import ClosedError, KintsugiError, RetriableError
from kintsugi_client.run import Run
from kintsugi_client.runner import Job, Runner

from .kit import wait_for


class Pool:
    """A runner whose jobs note when they run and wait for their gates."""

    def __init__(self, threads: int) -> None:
        self.runner = Runner(threads)
        self.ran: list[str] = []
        self.dropped: list[tuple[str, str]] = []
        self.gates: dict[str, threading.Event] = {}

    def job(self, key: str, *, waits: bool = False, name: str = "") -> Job:
        name = name or key
        if waits:
            self.gates[name] = threading.Event()

        def work() -> None:
            self.ran.append(name)
            gate = self.gates.get(name)
            assert gate is None or gate.wait(20)

        return Job(key=key, run=Run(), work=work, dropped=lambda reason: self.dropped.append((name, reason)))

    def submit(self, key: str, *, waits: bool = False, urgent: bool = False, name: str = "") -> Run:
        job = self.job(key, waits=waits, name=name)
        self.runner.submit(job, urgent=urgent)
        return job.run

    def at_work(self, count: int) -> None:
        wait_for(f"{count} jobs at work", lambda: len(self.ran) == count)


@pytest.fixture
def make() -> Iterator[Callable[[int], Pool]]:
    pools: list[Pool] = []

    def pool(threads: int) -> Pool:
        pools.append(Pool(threads))
        return pools[-1]

    yield pool
    for found in pools:
        found.runner.close()
        for gate in found.gates.values():
            gate.set()


def test_no_more_threads_than_allowed_are_at_work(make: Callable[[int], Pool]) -> None:
    pool = make(3)
    for number in range(10):
        pool.submit(f"w{number}", waits=True)
    pool.at_work(3)
    assert pool.runner.queued == 7
    for number in range(10):
        pool.gates[f"w{number}"].set()
    pool.at_work(10)
    assert pool.ran[3:] == [f"w{n}" for n in range(3, 10)] or len(set(pool.ran)) == 10


def test_repairs_come_before_new_workflows(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    pool.submit("busy", waits=True)
    pool.at_work(1)
    pool.submit("new 1")
    pool.submit("new 2")
    pool.submit("repair", urgent=True)
    pool.gates["busy"].set()
    pool.at_work(4)
    assert pool.ran == ["busy", "repair", "new 1", "new 2"]


def test_a_newer_job_takes_the_place_of_the_older_one(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    pool.submit("busy", waits=True)
    pool.at_work(1)
    for key, name in (("a", "a1"), ("b", "b1"), ("a", "a2")):
        run = pool.submit(key, urgent=True, name=name)
    assert run.phase == "queued" and pool.runner.queued == 2
    assert pool.dropped == [("a1", "another command took over")]
    pool.gates["busy"].set()
    pool.at_work(3)
    assert pool.ran == ["busy", "a2", "b1"]


def test_a_repair_replaces_a_workflow_that_has_not_begun(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    pool.submit("busy", waits=True)
    pool.at_work(1)
    pool.submit("a", name="new")
    pool.submit("a", urgent=True, name="repair")
    pool.gates["busy"].set()
    wait_for("the end", lambda: pool.runner.queued == 0)
    assert pool.dropped == [("new", "another command took over")]
    assert pool.runner.wait(20) and pool.ran == ["busy", "repair"]


def test_the_queue_is_bounded_and_a_replacement_needs_no_room(
    make: Callable[[int], Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kintsugi_client.runner.QUEUE_MAX", 2)
    pool = make(1)
    pool.submit("busy", waits=True)
    pool.at_work(1)
    pool.submit("a")
    pool.submit("b")
    for attempt in (lambda: pool.submit("c"), lambda: pool.submit("c", urgent=True), pool.runner.check_room):
        with pytest.raises(RetriableError, match="2 workflows wait"):
            attempt()
    pool.submit("a", urgent=True)
    assert pool.runner.queued == 2


def test_a_job_that_waits_can_be_dropped(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    pool.submit("busy", waits=True)
    pool.at_work(1)
    run = pool.submit("a")
    pool.runner.drop("a", "cancelled")
    pool.runner.drop("a", "cancelled")
    pool.runner.drop("busy", "cancelled")
    assert (run.phase, pool.dropped, pool.runner.queued) == ("ended", [("a", "cancelled")], 0)


def test_a_thread_that_hangs_is_stood_in_for_and_ends_when_it_wakes_up(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    hung = pool.submit("hung", waits=True)
    pool.at_work(1)
    pool.submit("next", waits=True)
    pool.runner.abandon(hung)
    pool.runner.abandon(hung)
    pool.at_work(2)
    assert pool.runner.abandoned == 1
    pool.submit("third")
    pool.gates["hung"].set()
    wait_for("its end", lambda: pool.runner.abandoned == 0)
    assert pool.ran == ["hung", "next"]  # the thread that woke up did not take the next job: the pool has one thread
    pool.gates["next"].set()
    pool.at_work(3)
    assert pool.runner.wait(20)


def test_threads_left_behind_are_bounded(make: Callable[[int], Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.runner.ABANDONED_MAX", 2)
    pool = make(1)
    for number in range(2):
        run = pool.submit(f"w{number}", waits=True)
        pool.at_work(number + 1)
        pool.runner.abandon(run)
    last = pool.submit("w2", waits=True)
    pool.at_work(3)
    with pytest.raises(KintsugiError, match="2 threads hang in replaced steps"):
        pool.runner.abandon(last)
    assert not last.abandoned and pool.runner.abandoned == 2


def test_only_a_run_at_work_has_a_thread_to_give_up(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    ended = pool.submit("a")
    wait_for("its end", lambda: ended.phase == "ended")
    for run in (ended, Run()):
        pool.runner.abandon(run)
    assert pool.runner.abandoned == 0


def test_a_job_that_raises_costs_no_thread(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    for failure in (ValueError, SystemExit, KeyboardInterrupt):

        def work(failure: type[BaseException] = failure) -> None:
            raise failure

        pool.runner.submit(Job(key=failure.__name__, run=Run(), work=work, dropped=lambda reason: None))
    pool.submit("after")
    pool.at_work(1)


def test_a_close_drops_what_waits_and_waits_for_what_is_at_work(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    pool.submit("busy", waits=True)
    pool.at_work(1)
    pool.submit("a")
    pool.submit("b", urgent=True)
    pool.runner.close()
    reason = "the service stopped before it was begun"
    assert pool.dropped == [("b", reason), ("a", reason)]
    for urgent in (True, False):
        with pytest.raises(ClosedError):
            pool.submit("c", urgent=urgent)
    assert not pool.runner.wait(0.05)
    assert not pool.runner.wait(-1)
    pool.gates["busy"].set()
    assert pool.runner.wait(20)


def test_a_close_does_not_wait_for_threads_left_behind(make: Callable[[int], Pool]) -> None:
    pool = make(1)
    hung = pool.submit("hung", waits=True)
    pool.at_work(1)
    pool.runner.abandon(hung)
    pool.runner.close()
    assert pool.runner.wait(20)
