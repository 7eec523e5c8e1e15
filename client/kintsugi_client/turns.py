"""First come, first served: states are written in the order in which they were taken, however long one takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Numbers are drawn under `taking`, one for each state; each must be used once."""

    def __init__(self) -> None:
        self.taking = threading.Lock()
        self._drawn = 0
        self._now = 0
        self._changed = threading.Condition()

    def draw(self) -> int:
        """The next number. The caller holds `taking`."""
        number = self._drawn
        self._drawn += 1
        return number

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until all before have had their turn; the next one's comes at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._now == number)
        try:
            yield
        finally:
            with self._changed:
                self._now += 1
                self._changed.notify_all()
