"""When a simulated service does what it does."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from engine.testing import World


class Clock:
    """What is to happen, and when; in order of time, then of being asked for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._heap: list[tuple[int, int, bool, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, ms: int, action: Callable[[], None], *, idle: bool = False) -> None:
        """Ask for an action. An `idle` one (a heartbeat) is nothing to wait for."""
        heapq.heappush(self._heap, (self._world.now_us + ms * 1_000, next(self._count), idle, action))

    @property
    def next_us(self) -> int | None:
        """The next moment at which something happens."""
        return self._heap[0][0] if self._heap else None

    @property
    def busy(self) -> bool:
        """Whether anything but idle actions is to come."""
        return any(not idle for _, _, idle, _ in self._heap)

    def take(self) -> Callable[[], None] | None:
        """The next action that is due."""
        if self._heap and self._heap[0][0] <= self._world.now_us:
            return heapq.heappop(self._heap)[3]
        return None
