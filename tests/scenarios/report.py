"""What all scenarios together say: how much is recovered, and whom it disturbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from .model import Scenario
from .play import Played, judge, play

#: Largest share of errors that may end with a human although no human is needed, percent.
INTERVENTIONS_PERCENT_MAX = 5.0


@dataclass(slots=True)
class Report:
    """The figures.

    `recoverable`: failing scenarios that complete by their label without a person. `errors` and `interventions` are
    counted over the failing scenarios whose label needs no human.
    """

    failing: int = 0
    healthy: int = 0
    recoverable: int = 0
    recovered: int = 0
    wrong_type: int = 0
    false_alarms: int = 0
    errors: int = 0
    interventions: int = 0
    #: Scenarios per family.
    families: dict[str, int] = field(default_factory=dict)
    #: Scenario and where it differs from its label.
    disagreements: dict[str, list[str]] = field(default_factory=dict)

    @property
    def recovered_percent(self) -> float:
        """Recovered share of the recoverable."""
        return 100.0 * self.recovered / self.recoverable if self.recoverable else 100.0

    @property
    def interventions_percent(self) -> float:
        """Share of errors that went to a human although none was needed."""
        return 100.0 * self.interventions / self.errors if self.errors else 0.0

    def take(self, scenario: Scenario, played: Played) -> None:
        """Count a scenario that was played."""
        self.families[scenario.family] = self.families.get(scenario.family, 0) + 1
        if found := judge(scenario, played):
            self.disagreements[scenario.name] = found
        if scenario.healthy:
            self.healthy += 1
            self.false_alarms += played.disturbed
            return
        self.failing += 1
        self.wrong_type += played.first_type != scenario.expect.type
        if scenario.recoverable:
            self.recoverable += 1
            self.recovered += played.end == "completed"
        if not scenario.needs_human:
            self.errors += len(played.error_codes)
            self.interventions += len(played.interventions)

    def figures(self) -> dict[str, object]:
        """As plain values."""
        return {
            **asdict(self),
            "recovered_percent": round(self.recovered_percent, 2),
            "interventions_percent": round(self.interventions_percent, 2),
        }

    def lines(self) -> list[str]:
        """As a page of text."""
        rows = [
            ("failing scenarios", f"{self.failing}", ""),
            ("healthy traces that look suspicious", f"{self.healthy}", ""),
            ("recoverable, recovered", f"{self.recoverable}, {self.recovered}", f"{self.recovered_percent:.1f} %"),
            ("wrong type", f"{self.wrong_type}", ""),
            ("false alarms", f"{self.false_alarms}", ""),
            (
                "errors that need no human, sent to one",
                f"{self.errors}, {self.interventions}",
                f"{self.interventions_percent:.1f} %",
            ),
            ("scenarios that differ from their label", f"{len(self.disagreements)}", ""),
        ]
        made = [f"{what:<42} {number:>10}  {share}".rstrip() for what, number, share in rows]
        made += ["", *(f"{family:<42} {count:>10}" for family, count in sorted(self.families.items()))]
        for name, found in self.disagreements.items():
            made += ["", f"{name}:", *(f"  {line}" for line in found)]
        return made


def report_of(scenarios: Iterable[Scenario], player: Callable[[Scenario], Played] = play) -> Report:
    """Play all of them."""
    report = Report()
    for scenario in scenarios:
        report.take(scenario, player(scenario))
    return report
