"""Which workflows failed lately on what: counted per key, with bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.policy.model import Storms
from schemas.records.coordination import FailureSeen

#: Keys whose failures are counted; the one that failed longest ago is forgotten first.
KEYS_MAX = 4_096
#: Workflows remembered for all keys together (36 bytes each): room for a threshold of 50 on every key.
OBSERVED_MAX = 250_000


@dataclass(slots=True)
class Window:
    """The workflows that failed lately on one key. No more than the threshold's number of them matter or are kept."""

    kind: str
    first_us: int
    failures: int = 0
    #: Workflow to the time of its last failure, the oldest first.
    workflows: dict[str, int] = field(default_factory=dict)


class Windows:
    """A sliding window for each key."""

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._observed = 0
        #: Since the process began: keys whose count was given up for others.
        self.forgotten = 0

    def observe(self, key: str, record: FailureSeen, now_us: int, storms: Storms) -> Window:
        """Count a failure; a workflow that fails again counts as one."""
        window = self._windows.pop(key, None)
        if window is None:
            window = Window(kind="dependency" if record.dependency else "fingerprint", first_us=now_us)
        self._windows[key] = window  # the last to be forgotten
        seen = window.workflows
        before = len(seen)
        seen.pop(record.workflow_id, None)
        since_us = now_us - storms.window_ms * 1000
        while seen and seen[oldest := next(iter(seen))] <= since_us:
            del seen[oldest]
        if not seen:
            window.first_us, window.failures = now_us, 0
        while len(seen) >= storms.threshold:
            del seen[next(iter(seen))]
        seen[record.workflow_id] = now_us
        window.failures += 1
        self._observed += len(seen) - before
        while len(self._windows) > KEYS_MAX or (self._observed > OBSERVED_MAX and len(self._windows) > 1):
            forgotten = self._windows.pop(next(iter(self._windows)))
            self._observed -= len(forgotten.workflows)
            self.forgotten += 1
        return window

    def storming(self, key: str, now_us: int, storms: Storms) -> bool:
        """Whether enough workflows failed on the key within the window that ends now."""
        window = self._windows.get(key)
        if window is None:
            return False
        since_us = now_us - storms.window_ms * 1000
        return sum(at_us > since_us for at_us in window.workflows.values()) >= storms.threshold

    def dump(self) -> list[Any]:
        """As plain values."""
        return [[key, w.kind, w.first_us, w.failures, w.workflows] for key, w in self._windows.items()]

    def load(self, rows: Any) -> None:
        """Inverse of `dump`."""
        self._windows = {
            key: Window(kind, first_us, failures, dict(workflows)) for key, kind, first_us, failures, workflows in rows
        }
        self._observed = sum(len(window.workflows) for window in self._windows.values())
