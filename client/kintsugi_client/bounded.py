"""Calls that must end in time though what they call may not: object storage, key providers, a service's `__repr__`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ._schemas.errors import RetriableError

#: Threads that may hang at once. Each waits for something that gave no answer; more would not get one either.
HANGING_MAX = 32

T = TypeVar("T")


class Bounded:
    """Runs each call on a thread of its own, and leaves it behind when it takes too long. Safe to share."""

    def __init__(self, hanging_max: int = HANGING_MAX) -> None:
        self._room = threading.Semaphore(hanging_max)

    def call(self, what: str, call: Callable[[], T], timeout_s: float) -> T:
        """What `call` returns or raises; RetriableError when it has not ended in time."""
        if not self._room.acquire(blocking=False):
            raise RetriableError(f"{what}: too many calls before this one still wait for an answer")
        outcome: list[Any] = []
        failure: list[BaseException] = []
        ended = threading.Event()

        def run() -> None:
            try:
                outcome.append(call())
            except BaseException as error:  # it is raised where the outcome is waited for
                failure.append(error)
            finally:
                self._room.release()
                ended.set()

        threading.Thread(target=run, name="kintsugi-bounded", daemon=True).start()
        if not ended.wait(timeout_s):
            raise RetriableError(f"{what}: no answer within {timeout_s:g} s")
        if failure:
            raise failure[0]
        result: T = outcome[0]
        return result
