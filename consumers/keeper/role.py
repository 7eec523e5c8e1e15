"""The keeper role: scrub, retention and orphans, by one keeper at a time.

Several may run. The one that holds the lock works, the others stand by and take over when its session with Postgres
ends. A keeper that lost its lock without knowing does no harm: its facts have derived ids, and what it deletes it has
looked up itself.

All runs on one thread, in small steps, taken in turn: a collection of a million objects holds up no scrub.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field

from schemas.errors import RetriableError

from .. import telemetry
from .tables import Tables

ROLE = "keeper"
#: How soon the heartbeat moves and a stop is noticed.
HEARTBEAT_S = 0.25
#: How often the lock is asked for while standing by, and its session looked at while at work.
LOCK_INTERVAL_S = 2.0
RETENTION_INTERVAL_S = 600.0
ORPHANS_INTERVAL_S = 3600.0
#: After something was away, a job begins again this soon, then twice as long each time.
_RETRY_S, _RETRY_S_MAX = 1.0, 60.0

#: Each step yields the seconds to wait before the next.
Steps = Generator[float, None, None]


@dataclass(slots=True)
class Job:
    """Something done every so often, in steps. `rests_s`: how long after a start, or after something was away, before
    it is done."""

    name: str
    begin: Callable[[], Steps]
    interval_s: float
    rests_s: float = 0.0
    steps: Steps | None = field(default=None, init=False)
    began_s: float = field(default=0.0, init=False)
    due_s: float = field(default=0.0, init=False)
    failures: int = field(default=0, init=False)

    def rest(self, now_s: float) -> None:
        """Begin no sooner than after its rest."""
        self.drop()
        self.due_s = now_s + self.rests_s

    def drop(self) -> None:
        """Leave what is under way; the next time it begins anew."""
        steps, self.steps = self.steps, None
        if steps is not None:
            with suppress(RetriableError):  # to close what is away already needs no answer
                steps.close()

    def step(self, now_s: float) -> None:
        """Do one step. KintsugiError as it comes."""
        if self.steps is None:
            self.began_s = now_s
            self.steps = self.begin()
        try:
            self.due_s = now_s + next(self.steps)
        except StopIteration:
            self.steps = None
            self.failures = 0
            self.due_s = max(now_s, self.began_s + self.interval_s)

    def failed(self, now_s: float) -> float:
        """Something was away: wait, longer each time. Returns for how long."""
        self.drop()
        self.failures += 1
        wait_s: float = max(self.rests_s, min(_RETRY_S_MAX, _RETRY_S * 2 ** min(self.failures - 1, 10)))
        self.due_s = now_s + wait_s
        return wait_s


class Keeper:
    """Runs jobs while it holds the lock, until `stop`."""

    def __init__(self, tables: Tables, jobs: list[Job], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tables = tables
        self._jobs = jobs
        self._clock = clock
        self._stopping = threading.Event()
        self._working = False
        self._lock_due_s = 0.0
        self._log = telemetry.log()

    def stop(self) -> None:
        """Ask it to end after the step in hand. May be called from a signal handler or another thread."""
        self._stopping.set()

    def run(self) -> None:
        """Run until `stop`. FatalError when going on would do harm."""
        try:
            while not self._stopping.is_set():
                wait_s = self.round()
                self._stopping.wait(min(HEARTBEAT_S, wait_s))
        finally:
            self._let_go()
            self._tables.unlock()

    def round(self) -> float:
        """One turn: look after the lock, then one step of each job that is due. Returns when to come again."""
        telemetry.HEARTBEAT.labels(ROLE).set_to_current_time()
        now_s = self._clock()
        if now_s >= self._lock_due_s:
            self._lock_due_s = now_s + LOCK_INTERVAL_S
            self._look_after_lock(now_s)
        if not self._working:
            return self._lock_due_s - now_s
        for job in self._jobs:
            if self._stopping.is_set():
                return 0.0
            if self._clock() >= job.due_s:
                self._step(job)
        return max(0.0, min(job.due_s for job in self._jobs) - self._clock())

    def _step(self, job: Job) -> None:
        try:
            job.step(self._clock())
        except RetriableError as error:
            wait_s = job.failed(self._clock())
            telemetry.BACKOFFS.labels(ROLE).inc()
            self._log.warning("job waits", job=job.name, seconds=wait_s, error=error, hint=error.hint)
            # What is away for one job may have been away for long: what deletes begins anew with its rest.
            for other in self._jobs:
                if other is not job and other.rests_s:
                    other.rest(self._clock())

    def _look_after_lock(self, now_s: float) -> None:
        try:
            holds = self._tables.holds_lock() if self._working else self._tables.try_lock()
        except RetriableError as error:
            self._log.warning("lock", error=error)
            holds = False
        if holds == self._working:
            return
        if not holds:
            self._let_go()
            return
        self._working = True
        telemetry.KEEPER_ACTIVE.set(1)
        self._log.info("keeper at work")
        for job in self._jobs:
            job.rest(now_s)

    def _let_go(self) -> None:
        if self._working:
            self._working = False
            telemetry.KEEPER_ACTIVE.set(0)
            self._log.info("keeper stands by")
            for job in self._jobs:
                job.drop()
