"""How far partitions are behind, as metrics."""

from __future__ import annotations

import time

from .slots import Slot
from .telemetry import LAG_RECORDS, LAG_SECONDS


def show_lag(role: str, topic: str, slot: Slot) -> None:
    """Records not durably handled, and while there are some, the age of the newest one that is."""
    labels = (role, topic, str(slot.partition))
    LAG_RECORDS.labels(*labels).set(slot.lag)
    behind_s = time.time() - slot.timestamp_ms / 1000 if slot.lag and slot.timestamp_ms else 0.0
    LAG_SECONDS.labels(*labels).set(max(0.0, behind_s))


def forget_lag(role: str, topic: str, partition: int) -> None:
    """The partition is another process's now."""
    for gauge in (LAG_RECORDS, LAG_SECONDS):
        gauge.remove_by_labels({"role": role, "topic": topic, "partition": str(partition)})
