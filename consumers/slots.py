"""Where the loop stands in one partition."""

from __future__ import annotations

import random
import time

#: Delay before a partition in trouble is taken up again: doubled each time, with jitter, up to the largest.
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 15.0


class Slot:
    """A partition of ours: running (`active`) or waiting to be taken up again."""

    __slots__ = (
        "active",
        "committed",
        "delay_s",
        "dirty",
        "failures",
        "high",
        "next_offset",
        "partition",
        "processed",
        "resume_at_s",
        "stopped",
        "timestamp_ms",
    )

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.active = False
        #: Next offset to hand to the handler.
        self.next_offset = 0
        #: Everything before it is durable.
        self.processed = 0
        #: The group's position as far as we know; never moved back.
        self.committed = 0
        #: End of the log, when it was last looked at.
        self.high = 0
        self.dirty = False
        #: The client has stopped fetching it for good: it has to be assigned anew, a seek is refused.
        self.stopped = False
        self.failures = 0
        self.delay_s = 0.0
        self.resume_at_s = 0.0
        self.timestamp_ms = 0

    def begin(self, start: int, committed: int | None) -> None:
        """The handler starts at `start`."""
        self.next_offset = self.processed = start
        self.committed = -1 if committed is None else committed
        self.dirty = self.processed > self.committed
        self.timestamp_ms = 0

    def look(self, low: int, high: int, committed: int | None) -> None:
        """What the log and the group say, before the handler was asked where to start."""
        self.high = high
        if self.processed == 0:
            self.processed = self.committed = low if committed is None else committed

    @property
    def lag(self) -> int:
        """Records in the log that are not durably handled, also while the partition waits."""
        return max(0, self.high - self.processed)

    def done(self, next_offset: int) -> None:
        """All before `next_offset` is durable."""
        self.processed = next_offset
        self.dirty = self.processed > self.committed
        self.failures = 0

    def saved(self) -> None:
        """`processed` is on its way to the group's coordinator."""
        self.committed = max(self.committed, self.processed)
        self.dirty = False

    def unsaved(self, offset: int) -> None:
        """The group's coordinator did not take this position. It is sent again, unless a later one is on its way."""
        if self.committed == offset:
            self.committed = offset - 1
        self.dirty = self.processed > self.committed

    def wait(self, failures: int) -> None:
        """Stand aside for a while, the longer the more often it failed in a row."""
        self.failures = failures
        self.delay_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        self.resume_at_s = time.monotonic() + self.delay_s
        self.active = False
