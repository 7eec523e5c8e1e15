"""From the errors of a backtest to its figures, each with the errors behind it, and to what they do not say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import fsum
from typing import Any

from .backtest import ErrorRow
from .backtest_estimate import SAMPLES_MIN, Course, Estimate, Evidence, estimate
from .policy import Policy

#: Parts of a policy whose effect is at moments that history does not have, and in words what they are.
UNSEEN = {
    "timeouts": "deadlines (error_detection.timeouts, commands)",
    "detection": "what is looked for (error_detection)",
    "corruption": "how checkpoints are judged (error_detection.state_corruption)",
    "coordination": "branches, dependants and leases (coordination)",
    "storms": "breakers and waves (storms)",
    "critical_steps": "critical steps",
    "retention": "which checkpoints are kept (checkpoints.retention)",
    "compensation": "further tries of a compensation (compensation)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An error that is over and that the candidate decides differently, with what may be expected of either."""

    row: ErrorRow
    then: Estimate
    #: The same method, asked about the policy that was in force: how far it is to be trusted.
    now: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number. `low` and `high` bound `candidate`; `unknown` is the share of errors of which nothing is known.

    `method` is what the same method says of the policy in force, on those errors for which that can be asked.
    """

    name: str
    meaning: str
    happened: float | None
    candidate: float | None = None
    low: float | None = None
    high: float | None = None
    unknown: float | None = None
    method: float | None = None
    rows: tuple[ErrorRow, ...] = ()


class Report:
    """All figures of a backtest."""

    def __init__(self, rows: list[ErrorRow], evidence: Evidence) -> None:
        self.all = rows
        self.evidence = evidence
        self.apart = [row for row in rows if row.apart]
        compared = [row for row in rows if not row.apart]
        self.alike = [row for row in compared if row.difference is None]
        self.differently = [row for row in compared if row.difference is not None]
        self.judged = [self._judge(row) for row in self.differently if row.outcome != "open"]
        self.open = [row for row in compared if row.outcome == "open"]

    def figures(self) -> list[Figure]:
        """Counts of what was looked at, then the differently decided errors that are over, before and after."""
        over = [judged.row for judged in self.judged]
        return [
            _count("errors", "errors opened in that time", self.all),
            _count("set_apart", "not compared; each row says why", self.apart),
            _count("alike", "decided alike throughout: the same is expected of them", self.alike),
            _count("differently", "decided differently at one decision at least", self.differently),
            _count("still_open", "compared, and still open at the end: nothing is estimated of them", self.open),
            _count("compared", "decided differently and over: the figures below are of these", over),
            self._shares("recovered", "recovered without people", _by_itself, lambda e: e.recovered, ranged=True),
            self._shares("people", "a human is asked", lambda r: bool(r.asked), lambda e: e.human),
            self._shares(
                "gives_up", "ended with their workflow", lambda r: r.outcome == "closed", lambda e: e.gives_up
            ),
            self._cost(),
            self._time(),
        ]

    def _judge(self, row: ErrorRow) -> Judged:
        assert row.difference is not None
        before = row.difference.course_before
        return Judged(
            row=row,
            then=self._estimate(row.difference.course, row),
            now=None if before is None else self._estimate(before, row),
        )

    def _estimate(self, course: Course, row: ErrorRow) -> Estimate:
        return estimate(course, row.fingerprint, row.error_type, self.evidence)

    def _shares(
        self,
        name: str,
        meaning: str,
        was: Callable[[ErrorRow], bool],
        share: Callable[[Estimate], float],
        *,
        ranged: bool = False,
    ) -> Figure:
        """A share of each error, added up. The range takes all errors at their least, and all at their most."""
        unknown = fsum(j.then.unknown for j in self.judged)
        expected = fsum(share(j.then) for j in self.judged)
        wholly = all(j.then.unknown == 1.0 for j in self.judged)
        rows = tuple(j.row for j in self.judged)
        return Figure(
            name=name,
            meaning=meaning,
            happened=sum(map(was, rows)),
            candidate=None if wholly else expected,
            low=fsum(j.then.low for j in self.judged) if ranged else None,
            high=fsum(j.then.high for j in self.judged) if ranged else None,
            unknown=unknown,
            method=self._method(share),
            rows=rows,
        )

    def _method(self, share: Callable[[Estimate], float]) -> float | None:
        asked = [j.now for j in self.judged if j.now is not None]
        return fsum(map(share, asked)) if asked and len(asked) == len(self.judged) else None

    def _cost(self) -> Figure:
        spent = [(j.row.difference.spent, j) for j in self.judged if j.row.difference is not None]
        known = [(before, j) for before, j in spent if not j.then.unknown]
        return Figure(
            name="cost",
            meaning="cost of the attempts, of errors whose whole course is known",
            happened=fsum(j.row.cost for _, j in known),
            candidate=fsum(before + j.then.cost for before, j in known) if known else None,
            high=fsum(before + j.then.cost_max for before, j in known) if known else None,
            unknown=len(spent) - len(known),
            rows=tuple(j.row for _, j in known),
        )

    def _time(self) -> Figure:
        """Of errors that recovered, and of the shares that are expected to: unequal errors, so it says so."""
        was = [j.row for j in self.judged if _by_itself(j.row)]
        timed = [(j.then.recovered, _total_ms(j)) for j in self.judged if j.then.time_ms is not None]
        weight = fsum(share for share, _ in timed)
        return Figure(
            name="time_ms",
            meaning="mean time to recovery without people, of those that recover",
            happened=fsum(row.open_ms for row in was) / len(was) if was else None,
            candidate=fsum(share * ms for share, ms in timed) / weight if weight else None,
            unknown=len(self.judged) - len(timed),
            rows=tuple(j.row for j in self.judged),
        )


def _total_ms(judged: Judged) -> float:
    assert judged.row.difference is not None
    return judged.row.difference.open_ms + (judged.then.time_ms or 0.0)


def _by_itself(row: ErrorRow) -> bool:
    return row.outcome == "recovered" and row.by != "people"


def _count(name: str, meaning: str, rows: Iterable[ErrorRow]) -> Figure:
    found = tuple(rows)
    return Figure(name=name, meaning=meaning, happened=len(found), rows=found)


def changes(rows: list[ErrorRow]) -> list[dict[str, Any]]:
    """The differently decided errors, counted by what decided before and what decides now."""
    counts = Counter(
        (
            row.error_type,
            row.difference.before.ladder,
            row.difference.before.strategy,
            row.difference.after.ladder,
            row.difference.after.strategy,
            ", ".join(row.difference.fields),
        )
        for row in rows
        if row.difference is not None
    )
    names = ("error_type", "rule_before", "strategy_before", "rule_now", "strategy_now", "differs_in")
    return [
        {**dict(zip(names, key, strict=True)), "errors": count}
        for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def account(
    report: Report, candidate: Policy, in_force: Iterable[Policy], unknown_versions: dict[str, int]
) -> list[str]:
    """What the figures rest on, and what history cannot tell: in sentences."""
    found = [
        "Up to the first decision that differs everything is as it was; what follows it is an estimate.",
        "An estimate takes how often the same strategy worked on the same fingerprint, first and later tries apart; "
        f"where fewer than {SAMPLES_MIN} were recorded, on the same error type; fewer again are unknown.",
        "It supposes that a strategy works as often for these errors as where it was chosen, whatever was tried "
        "before and however long was waited. A strategy that came only after others failed met the harder errors.",
        "The range takes every try of every error at the lower, and at the upper end of its 95 % interval.",
        "Rungs are taken to be able to serve when their turn comes, and budgets of time not to end them.",
    ]
    for reason, count in sorted(Counter(row.apart for row in report.apart).items()):
        found.append(f"{count} errors are set apart: {reason}.")
    for version, count in sorted(unknown_versions.items()):
        found.append(
            f"{count} decisions were made by version {version}, which was not in force there by the log: they are "
            "compared as recorded, and not proven. --policy names the file that ran."
        )
    policies = list(in_force)
    for name, words in UNSEEN.items():
        if any(getattr(policy, name) != getattr(candidate, name) for policy in policies):
            found.append(f"The candidate differs in {words}: what that would have changed is not in these figures.")
    return found
