"""First come, first served: states are written in the order in which they were taken, however long one takes."""

from __future__ import annotations

import threading


class Turns:
    """Turns are drawn under `taking`, one for each state. One that is thrown away unused is passed over."""

    def __init__(self) -> None:
        self.taking = threading.Lock()
        self._drawn = 0
        self._now = 0
        self._over: set[int] = set()
        self._changed = threading.Condition()

    def draw(self) -> Turn:
        """The next turn. The caller holds `taking`."""
        turn = Turn(self, self._drawn)
        self._drawn += 1
        return turn

    def wait(self, number: int) -> None:
        """Until all before are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._now == number)

    def end(self, number: int) -> None:
        """A turn is over, whether it was used or not."""
        with self._changed:
            self._over.add(number)
            while self._now in self._over:
                self._over.remove(self._now)
                self._now += 1
            self._changed.notify_all()


class Turn:
    """A context manager, entered once."""

    __slots__ = ("_number", "_over", "_turns")

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns = turns
        self._number = number
        self._over = False

    def __enter__(self) -> None:
        self._turns.wait(self._number)

    def __exit__(self, *_: object) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Let the next one come."""
        if not self._over:
            self._over = True
            self._turns.end(self._number)

    def __del__(self) -> None:
        # An interrupt may come anywhere, also between drawing and entering; all states after it would wait for ever.
        self.give_up()
