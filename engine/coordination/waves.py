"""One breaker: whose repairs wait, when the next go out, and how many."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from engine.backoff import jittered_ms
from engine.policy.model import Backoff, Storms

from . import Addressee

#: Pause before canaries: 2 s, 4 s .. 5 min, half of it fixed and half drawn from the breaker's id.
PAUSE = Backoff(base_ms=2_000, max_ms=300_000)
#: Time between two waves: with a wave's bound it bounds how many repairs go out in a second.
WAVE_GAP_US = 1_000_000
WAVE_MAX = 500
#: At first waves grow fast up to this share of what failed in a second when the storm began: that many calls were usual
#: for the target, and the others go on beside the wave.
LOAD_SHARE = 0.5
#: Good waves as large as allowed before a little more is allowed.
STEADY_WAVES = 20
#: A wave is good when this share of its members recovered.
GOOD_SHARE = 0.8
#: Time a wave is given. Without any failure one recovery is enough then: steps may take long.
WAVE_ANSWER_US = 60_000_000
#: 2^20 s is beyond every pause.
_EXPONENT_MAX = 20


@dataclass(slots=True)
class Waiting:
    """A repair that is held: whose, and which attempt."""

    to: Addressee
    attempt_id: str


@dataclass(slots=True)
class Breaker:
    """A breaker that is not closed. `phase`: pause (before canaries), wave (its members are out), gap (before the next
    wave), idle (nobody waits)."""

    key: str
    kind: str
    state: str
    sequence: int
    phase: str
    due_us: int
    #: Moments that have passed: no two of them have one id.
    moments: int = 0
    #: Times in a row that canaries failed.
    tries: int = 0
    wave: int = 0
    size: int = 0
    sent_us: int = 0
    released: int = 0
    recovered: int = 0
    failed: int = 0
    #: Size from which on waves grow slowly: what the target is thought to bear.
    ceiling: int = WAVE_MAX
    #: No wave is larger: less than the one that was too much. It is raised a little after `STEADY_WAVES` good ones.
    limit: int = WAVE_MAX
    steady: int = 0
    #: Whether the last wave was good.
    healthy: bool = False
    #: Errors whose repair was let go and has not ended, and when that was: `sent_us` tells the members of this wave.
    flying: dict[str, int] = field(default_factory=dict)
    #: Error to its repair, in the order in which they came.
    waiting: dict[str, Waiting] = field(default_factory=dict)

    def pause_us(self) -> int:
        """How long to wait before canaries; longer each time they fail."""
        half = Backoff(base_ms=PAUSE.base_ms // 2, max_ms=PAUSE.max_ms // 2)
        fixed_ms = min(half.max_ms, half.base_ms << min(self.tries, _EXPONENT_MAX))
        return (fixed_ms + jittered_ms(half, self.tries + 1, f"{self.key}|{self.sequence}")) * 1000

    def next_size(self, storms: Storms) -> int:
        """Larger by `growth` up to the ceiling, by as many as there are canaries beyond it; as it was when the last
        wave was not filled."""
        if self.released < self.size:
            return self.size
        if self.size >= self.ceiling:
            return min(self.size + storms.canaries, self.limit)
        return min(max(int(self.size * storms.growth), self.size + 1), self.ceiling, self.limit)

    def good(self, now_us: int) -> None:
        """The wave recovered: the next one may go, at its distance."""
        self.steady += self.size >= self.limit
        if self.steady >= STEADY_WAVES:
            self.limit, self.steady = min(WAVE_MAX, self.limit + max(1, self.limit // 5)), 0
        self.tries, self.healthy, self.phase = 0, True, "gap"
        self.due_us = max(now_us, self.sent_us + WAVE_GAP_US)

    def bad(self, now_us: int) -> None:
        """It did not: canaries first, after a pause, and smaller waves after them."""
        if self.wave:
            self.ceiling, self.limit, self.steady = max(1, self.size // 2), max(1, self.size * 3 // 4), 0
        self.tries += 1
        self.healthy, self.phase = False, "pause"
        self.due_us = now_us + self.pause_us()

    def dump(self) -> dict[str, Any]:
        """As plain values."""
        row = {name: getattr(self, name) for name in _PLAIN}
        row["waiting"] = [
            [error_id, w.attempt_id, w.to.workflow_id, w.to.workflow_type, w.to.external_id, w.to.correlation_id,
             w.to.partition]
            for error_id, w in self.waiting.items()
        ]  # fmt: skip
        return row

    @classmethod
    def load(cls, row: Any) -> Breaker:
        """Inverse of `dump`."""
        waiting = {error_id: Waiting(Addressee(*to), attempt_id) for error_id, attempt_id, *to in row["waiting"]}
        return cls(**{name: row[name] for name in _PLAIN}, waiting=waiting)


_PLAIN = tuple(f.name for f in fields(Breaker) if f.name != "waiting")
