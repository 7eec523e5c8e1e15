"""Work that goes on behind, in a thread of its own, while the next piece is made: one piece at a time, in order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Done = TypeVar("Done")


class Behind(Generic[Done]):
    """Pieces of work that mostly wait for a server. What one of them raises is raised by the next call here.

    Leaving the block waits for the piece that is at work; its outcome counts only for who has asked for it with `end`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._at_work: Future[Done] | None = None
        self._done: list[Done] = []

    def __enter__(self) -> Behind[Done]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    def put(self, work: Callable[[], Done]) -> None:
        """Begin a piece as soon as the one before it is done."""
        self._settle()
        self._at_work = self._thread.submit(work)

    def end(self) -> list[Done]:
        """Wait for the last piece; what all of them came to."""
        self._settle()
        return self._done

    def _settle(self) -> None:
        if self._at_work is not None:
            found, self._at_work = self._at_work, None
            self._done.append(found.result())
