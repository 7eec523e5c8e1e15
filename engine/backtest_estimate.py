"""What recorded tries say about a course of repairs that was not taken: shares, their range, and what is not known.

A try's odds are how often recorded tries of the same strategy ended so on errors with the same fingerprint; where
these are fewer than `SAMPLES_MIN`, on errors of the same type. First tries and later ones are counted apart: what
fails once fails again more often. Fewer than that of both are no odds: the share that comes there is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

#: Fewer recorded tries tell nothing: of 10 that all worked, the true share may still be 72 %.
SAMPLES_MIN = 10
#: Tries of one course that are looked at; what is left after them is a share that is unknown.
TRIES_MAX = 64
#: Of the normal distribution: 95 % lie within.
_Z = 1.959964


def wilson(succeeded: int, count: int) -> tuple[float, float]:
    """The range of a share that was seen `succeeded` times out of `count`: 95 %, Wilson's score interval."""
    if count <= 0:
        return 0.0, 1.0
    share, z2 = succeeded / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return (0.0 if succeeded == 0 else max(0.0, middle - half)), (
        1.0 if succeeded == count else min(1.0, middle + half)
    )


class Try(NamedTuple):
    """One try of a course: its strategy, whether it is the error's first of that strategy, its cost, its wait."""

    strategy: str
    first: bool
    cost: float
    wait_ms: int


class Course(NamedTuple):
    """The tries that a policy would make from a decision on, and what comes after the last: `human` or `gives_up`."""

    tries: tuple[Try, ...]
    end: str
    cut: bool = False


@dataclass(slots=True)
class Tally:
    """How recorded tries of one kind ended, and how long they took, without the waits before them."""

    count: int = 0
    succeeded: int = 0
    unknown: int = 0
    succeeded_ms: int = 0
    failed_ms: int = 0


class Odds(NamedTuple):
    """What recorded tries say of one: on which errors they were made, and how many there are."""

    basis: str
    tally: Tally

    @property
    def known(self) -> bool:
        """Whether there are enough."""
        return self.tally.count >= SAMPLES_MIN


class Evidence:
    """All recorded tries, by strategy, by first or later, and by fingerprint and error type."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str, str, bool], Tally] = {}

    def add(self, fingerprint: str, error_type: str, strategy: str, first: bool, outcome: str, work_ms: int) -> None:
        """A try that ended: succeeded, failed, or unknown, which counts as one that did not succeed."""
        for basis, value in (("fingerprint", fingerprint), ("error type", error_type)):
            tally = self._tallies.setdefault((basis, value, strategy, first), Tally())
            tally.count += 1
            if outcome == "succeeded":
                tally.succeeded += 1
                tally.succeeded_ms += work_ms
            else:
                tally.failed_ms += work_ms
                tally.unknown += outcome == "unknown"

    def odds(self, fingerprint: str, error_type: str, strategy: str, first: bool) -> Odds:
        """By fingerprint, else by error type."""
        found = Odds("fingerprint", self._tallies.get(("fingerprint", fingerprint, strategy, first), Tally()))
        if found.known:
            return found
        return Odds("error type", self._tallies.get(("error type", error_type, strategy, first), Tally()))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each kind of try that was recorded."""
        made: list[dict[str, Any]] = []
        for (basis, value, strategy, first), tally in sorted(self._tallies.items()):
            low, high = wilson(tally.succeeded, tally.count)
            made.append(
                {
                    "basis": basis,
                    "value": value,
                    "strategy": strategy,
                    "try": "first" if first else "later",
                    "n": tally.count,
                    "succeeded": tally.succeeded,
                    "unknown": tally.unknown,
                    "share": tally.succeeded / tally.count if tally.count >= SAMPLES_MIN else None,
                    "low": low,
                    "high": high,
                }
            )
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One error, divided into shares that add up to 1. `low` and `high` bound what is recovered.

    `time_ms`: from the decision to the recovery, on average where it recovers; None when nothing does. `cost` is that
    of the known part of the course, `cost_max` of all of it.
    """

    recovered: float
    human: float
    gives_up: float
    unknown: float
    low: float
    high: float
    time_ms: float | None
    cost: float
    cost_max: float
    basis: tuple[str, ...]


def estimate(course: Course, fingerprint: str, error_type: str, evidence: Evidence) -> Estimate:
    """What may be expected of a course, going try by try as long as something is known of the next."""
    reach = reach_low = reach_high = 1.0
    recovered = cost = elapsed_ms = weighted_ms = 0.0
    known, basis = not course.cut, []
    for made in course.tries:
        odds = evidence.odds(fingerprint, error_type, made.strategy, made.first)
        basis.append(f"{made.strategy}, {'first' if made.first else 'later'}: n {odds.tally.count}, {odds.basis}")
        if not odds.known:
            known = False
            break
        tally = odds.tally
        share = tally.succeeded / tally.count
        low, high = wilson(tally.succeeded, tally.count)
        cost += reach * made.cost
        if tally.succeeded:
            worked_ms = elapsed_ms + made.wait_ms + tally.succeeded_ms / tally.succeeded
            weighted_ms += reach * share * worked_ms
        if tally.count > tally.succeeded:
            elapsed_ms += made.wait_ms + tally.failed_ms / (tally.count - tally.succeeded)
        recovered += reach * share
        # The least is recovered where every try does as badly as it may: what is left is then the most.
        reach, reach_low, reach_high = reach * (1 - share), reach_low * (1 - high), reach_high * (1 - low)
        if reach == 0.0:
            break
    return Estimate(
        recovered=recovered,
        human=reach if known and course.end == "human" else 0.0,
        gives_up=reach if known and course.end != "human" else 0.0,
        unknown=0.0 if known else reach,
        low=1 - reach_high,
        high=1 - reach_low if known else 1.0,
        time_ms=weighted_ms / recovered if recovered else None,
        cost=cost,
        cost_max=sum(made.cost for made in course.tries),
        basis=tuple(dict.fromkeys(basis)),
    )
