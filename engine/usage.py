"""What a workflow's steps say they use: the last reports of each step, and the calls of the last hour. Bounded.

Only what was reported is kept; whether it is too much, a policy says.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from schemas.ids import uuid_bytes

MEMORY, CPU, API_CALLS = "memory", "cpu", "api_calls"

#: Reports kept of one resource of one step. A trend is a line through all but one of them; the one more shows what was
#: known before the newest came.
SAMPLES_MAX = 17
#: Resources of steps remembered per workflow, the least recently reported forgotten first. Those of a step that ended
#: are forgotten anyway: this many is for steps that run side by side.
SERIES_MAX = 64
HOUR_US = 3_600_000_000
#: Calls are counted by minute; the last hour is this minute and the 59 before it, so never more than an hour.
_BUCKET_US = 60_000_000
_BUCKETS_MAX = HOUR_US // _BUCKET_US
_COUNT_MAX = 2**63 - 1
#: Reports remembered by 8 bytes of their ids, so that a repeated one is not counted twice.
_KNOWN_MAX = 64

#: Broker time, value.
_SAMPLE = struct.Struct(">Qd")
#: Minute, calls in it.
_BUCKET = struct.Struct(">QQ")

#: Resource, and the step that uses it: "" for calls, which are counted for the whole workflow.
Key = tuple[str, str]


def is_use(value: float) -> bool:
    """Whether a resource can be used so much; any other value says nothing."""
    return math.isfinite(value) and value >= 0


@dataclass(slots=True)
class Usage:
    """`series`: packed reports by resource and step, newest last. `calls`: packed counts of the last hour's minutes.

    `known`: ids of the last reports.
    """

    series: dict[Key, bytes] = field(default_factory=dict)
    calls: bytes = b""
    known: bytes = b""

    def first_sight(self, event_id: str) -> bool:
        """Whether a report is new. Reports are many: in the state's own list they would push out all other ids."""
        raw = uuid_bytes(event_id)[:8]
        if any(self.known[at : at + 8] == raw for at in range(0, len(self.known), 8)):
            return False
        self.known = (self.known + raw)[-_KNOWN_MAX * 8 :]
        return True

    def report(self, resource: str, step_id: str, value: float, at_us: int) -> None:
        """A step uses so much."""
        if is_use(value):
            self._add((resource, step_id), value, at_us)

    def count(self, calls: int, at_us: int) -> None:
        """So many calls since the report before. A number below zero is that of a counter that went back: what was
        counted once was made, and is never taken back."""
        minute = at_us // _BUCKET_US
        kept = [(m, n) for m, n in _BUCKET.iter_unpack(self.calls) if m > minute - _BUCKETS_MAX]
        calls = max(0, calls)
        if kept and kept[-1][0] >= minute:  # a broker's clock may go back: the calls are of now all the same
            last, number = kept.pop()
            kept.append((last, min(_COUNT_MAX, number + calls)))
        else:
            kept.append((minute, calls))
        self.calls = b"".join(_BUCKET.pack(*bucket) for bucket in kept[-_BUCKETS_MAX:])
        self._add((API_CALLS, ""), float(sum(n for _, n in kept)), at_us)

    def samples(self, resource: str, step_id: str) -> list[tuple[int, float]]:
        """What was reported: (broker time, value), oldest first."""
        return list(_SAMPLE.iter_unpack(self.series.get((resource, step_id), b"")))

    def forget(self, step_id: str) -> None:
        """A run of a step began or ended: what was used until then says nothing of what is."""
        for resource in (MEMORY, CPU):
            self.series.pop((resource, step_id), None)

    def forget_calls(self) -> None:
        """A repair's run begins: that there were too many calls before it is to be said again. They still count."""
        self.series.pop((API_CALLS, ""), None)

    def _add(self, key: Key, value: float, at_us: int) -> None:
        before = self.series.pop(key, b"")
        self.series[key] = (before + _SAMPLE.pack(max(0, at_us), value))[-SAMPLES_MAX * _SAMPLE.size :]
        while len(self.series) > SERIES_MAX:
            del self.series[next(iter(self.series))]
