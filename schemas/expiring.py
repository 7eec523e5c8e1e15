"""A bounded cache whose entries end: what is remembered of a store that others change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """Values that are forgotten after their time, and the longest unused ones when there are too many. Thread-safe."""

    def __init__(self, entries_max: int, clock: Callable[[], float]) -> None:
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._entries_max = entries_max
        self._clock = clock
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, if its time is not over."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            if found[0] <= self._clock():
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return found[1]

    def put(self, key: K, value: V, seconds: float) -> None:
        """Remember for so long."""
        with self._lock:
            self._entries[key] = (self._clock() + seconds, value)
            self._entries.move_to_end(key)
            if len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget one."""
        with self._lock:
            self._entries.pop(key, None)

    def drop_all(self, chosen: Callable[[K], bool]) -> None:
        """Forget all that are chosen by their key."""
        with self._lock:
            for key in [key for key in self._entries if chosen(key)]:
                del self._entries[key]
