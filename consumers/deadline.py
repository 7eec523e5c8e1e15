"""One time budget shared by several waits."""

from __future__ import annotations

import time


class Deadline:
    """A moment on the monotonic clock. Every wait of one operation takes what is left of the same deadline."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left_s(self, *, floor_s: float = 0.0) -> float:
        """Seconds left, never less than `floor_s`."""
        return max(floor_s, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end
