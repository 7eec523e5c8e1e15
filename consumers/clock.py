"""The broker's time, as well as a client can know it.

Deadlines are broker times. The wall clock is read once, at start; from then on the monotonic clock carries it, so a
step of this machine's clock fires nothing. Acknowledgements of our own records carry the broker's time and correct a
machine that differs from the broker's.
"""

from __future__ import annotations

import time

#: An acknowledgement may be late by this much before it says that the broker's clock is behind ours.
_LATE_US_MAX = 5_000_000
#: How many acknowledgements in a row must say so.
_LATE_COUNT = 3


class BrokerClock:
    """Microseconds since the epoch by the broker's clock. Errs on the late side: a deadline is never taken early."""

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self._late = 0

    def now_us(self) -> int:
        """Broker time now."""
        return time.monotonic_ns() // 1000 + self._offset_us

    def acknowledged(self, timestamp_us: int) -> None:
        """The broker wrote a record of ours at `timestamp_us`, a moment ago."""
        sample_us = timestamp_us - time.monotonic_ns() // 1000
        if sample_us > self._offset_us:
            self._offset_us = sample_us
        elif self._offset_us - sample_us > _LATE_US_MAX:
            self._late += 1
            if self._late >= _LATE_COUNT:
                self._offset_us = sample_us
                self._late = 0
            return
        self._late = 0
