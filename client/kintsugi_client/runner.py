"""The threads that run steps and handlers: a bounded number, with a bounded queue, repairs before new workflows.

Python cannot end a thread. When a command replaces a run whose step does not end, its thread is left behind and another
takes its place; how many may be left behind is bounded too. Threads are daemons, so a step that hangs for ever does
not keep the process from ending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ._schemas.errors import KintsugiError, RetriableError
from .errors import ClosedError
from .run import Run

#: Workflows and repairs that may wait for a thread.
QUEUE_MAX = 10_000
#: Threads left behind by steps that hang; beyond this commands that would add one fail.
ABANDONED_MAX = 64

log = logging.getLogger("kintsugi_client")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work for a thread. `key`: a waiting job is replaced by a newer one with the same key, and keeps its place.

    `dropped` is called with the reason when the work is never begun.
    """

    key: str
    run: Run
    work: Callable[[], None]
    dropped: Callable[[str], None]


class Runner:
    """A pool of threads."""

    def __init__(self, threads: int) -> None:
        self._threads_max = threads
        self._changed = threading.Condition()
        self._urgent: dict[str, Job] = {}
        self._normal: dict[str, Job] = {}
        self._threads = 0
        self._idle = 0
        self._running = 0
        self._abandoned = 0
        self._closed = False

    @property
    def queued(self) -> int:
        """Jobs that wait for a thread."""
        with self._changed:
            return len(self._urgent) + len(self._normal)

    @property
    def abandoned(self) -> int:
        """Threads left behind."""
        with self._changed:
            return self._abandoned

    def check_room(self) -> None:
        """ClosedError or RetriableError when nothing more is taken."""
        with self._changed:
            self._check_room()

    def _check_room(self) -> None:
        if self._closed:
            raise ClosedError("the client is closed")
        if len(self._urgent) + len(self._normal) >= QUEUE_MAX:
            raise RetriableError(f"{QUEUE_MAX} workflows wait for a thread", hint="start fewer, or add processes")

    def submit(self, job: Job, *, urgent: bool = False) -> None:
        """Queue a job."""
        with self._changed:
            replaced = self._urgent.get(job.key) or self._normal.get(job.key)
            if replaced is None or self._closed:
                self._check_room()
            if urgent:
                self._normal.pop(job.key, None)
            (self._urgent if urgent or job.key in self._urgent else self._normal)[job.key] = job
            job.run.phase = "queued"
            if replaced is not None:
                replaced.run.phase = "ended"
            self._provide()
            self._changed.notify_all()  # one may wake a thread that waits for something else
        if replaced is not None:
            replaced.dropped("another command took over")

    def drop(self, key: str, reason: str) -> None:
        """Take a waiting job out of the queue."""
        with self._changed:
            job = self._urgent.pop(key, None) or self._normal.pop(key, None)
            if job is not None:
                job.run.phase = "ended"
        if job is not None:
            job.dropped(reason)

    def abandon(self, run: Run) -> None:
        """A run was replaced: if it is at work, give its thread up. KintsugiError when too many were."""
        with self._changed:
            if run.phase != "running" or run.abandoned:
                return
            if self._abandoned >= ABANDONED_MAX:
                raise KintsugiError(f"{ABANDONED_MAX} threads hang in replaced steps", hint="restart the service")
            run.abandoned = True
            self._abandoned += 1
            self._provide()

    def close(self) -> None:
        """Begin nothing more; what waits is dropped."""
        with self._changed:
            self._closed = True
            left = [*self._urgent.values(), *self._normal.values()]
            self._urgent.clear()
            self._normal.clear()
            for job in left:
                job.run.phase = "ended"
            self._changed.notify_all()
        for job in left:
            job.dropped("the service stopped before it was begun")

    def wait(self, timeout_s: float) -> bool:
        """Until no job is at work, but for those left behind. Whether that came about in time."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            return self._changed.wait_for(
                lambda: self._running <= self._abandoned, max(0.0, deadline_s - time.monotonic())
            )

    def _provide(self) -> None:
        """Another thread, if there is work for it and the bound allows it."""
        waiting = len(self._urgent) + len(self._normal)
        if waiting > self._idle and self._threads - self._abandoned < self._threads_max:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"kintsugi-run-{self._threads}", daemon=True).start()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.work()
            except BaseException:  # a step may raise what it likes; the thread goes on to the next
                log.exception("a run ended unexpectedly")
            if self._ended(job.run):
                return

    def _next(self) -> Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._urgent or self._normal or self._closed)
            self._idle -= 1
            queue = self._urgent or self._normal
            if not queue:
                self._threads -= 1
                return None
            job = queue.pop(next(iter(queue)))
            job.run.phase = "running"
            self._running += 1
            return job

    def _ended(self, run: Run) -> bool:
        """Whether the thread is to end, because another has taken its place."""
        with self._changed:
            run.phase = "ended"
            self._running -= 1
            if run.abandoned:
                self._abandoned -= 1
                self._threads -= 1
            self._changed.notify_all()
            return run.abandoned
