"""What was tried on the errors of an incident: each strategy with how often it succeeded and failed.

Attempts come before there is an incident: they are remembered by error until it ends, or until its incident takes them
over. So nothing is counted twice, and an incident tells of its own errors alone.
"""

from __future__ import annotations

import json
from typing import Any

from schemas.records.coordination import FailureEnded, FailureSeen

#: Open errors whose failed attempts are remembered while they belong to no incident (200 bytes each); the oldest goes.
ERRORS_MAX = 50_000
#: Strategies counted by name for one incident or error, more than there are; others of a later release are `OTHER`.
STRATEGIES_MAX = 20
OTHER = "other"

#: Strategy to how often it succeeded and failed.
Counts = dict[str, list[int]]


def count(counts: Counts, strategy: str, *, succeeded: int = 0, failed: int = 0) -> None:
    """Add attempts."""
    name = strategy if strategy in counts or len(counts) < STRATEGIES_MAX else OTHER
    found = counts.setdefault(name, [0, 0])
    found[0] += succeeded
    found[1] += failed


def text_of(counts: Counts) -> str:
    """As JSON, what was tried most often first."""
    rows = sorted(counts.items(), key=lambda row: (-sum(row[1]), row[0]))
    return json.dumps([{"strategy": name, "succeeded": good, "failed": bad} for name, (good, bad) in rows])


class Attempts:
    """Failed attempts of open errors that belong to no incident yet."""

    def __init__(self) -> None:
        #: Error to the key of what it has in common with others, and its attempts.
        self._of: dict[str, tuple[str, Counts]] = {}

    def failed(self, record: FailureSeen, key: str, incident: Counts | None) -> None:
        """An error of this key opened, or an attempt failed; `incident` is what is counted of its incident."""
        if incident is not None:
            self.give(record.error_id, incident)
            if record.strategy:
                count(incident, record.strategy, failed=1)
        elif record.strategy:
            _, counts = self._of.pop(record.error_id, (key, {}))
            count(counts, record.strategy, failed=1)
            self._of[record.error_id] = (key, counts)  # the last to be forgotten
            if len(self._of) > ERRORS_MAX:
                del self._of[next(iter(self._of))]

    def ended(self, record: FailureEnded, incident: Counts | None) -> None:
        """An error is over."""
        if incident is None:
            self._of.pop(record.error_id, None)
            return
        self.give(record.error_id, incident)
        if record.strategy:
            count(incident, record.strategy, succeeded=1)

    def give(self, error_id: str, to: Counts) -> None:
        """The error's attempts are counted there from now on; nothing of an unknown one."""
        _, counts = self._of.pop(error_id, ("", {}))
        for strategy, (good, bad) in counts.items():
            count(to, strategy, succeeded=good, failed=bad)

    def give_all(self, key: str, to: Counts) -> None:
        """Those of all errors of this key."""
        for error_id in [e for e, (of, _) in self._of.items() if of == key]:
            self.give(error_id, to)

    def dump(self) -> dict[str, Any]:
        """As plain values."""
        return {error_id: [key, counts] for error_id, (key, counts) in self._of.items()}

    def load(self, value: Any) -> None:
        """Inverse of `dump`."""
        self._of = {error_id: (key, counts) for error_id, (key, counts) in value.items()}
