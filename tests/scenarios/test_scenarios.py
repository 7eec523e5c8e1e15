"""Every labelled scenario comes out as its label says, and all together as the product promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from .model import Scenario, ScenarioError, load_all, load_file
from .play import Played, judge, play
from .report import INTERVENTIONS_PERCENT_MAX, report_of

SCENARIOS = load_all()
FAILING_MIN = 200
HEALTHY_MIN = 150

_played: dict[str, Played] = {}


def _once(scenario: Scenario) -> Played:
    if scenario.name not in _played:
        _played[scenario.name] = play(scenario)
    return _played[scenario.name]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name.replace(" ", "-"))
def test_it_comes_out_as_labelled(scenario: Scenario) -> None:
    assert judge(scenario, _once(scenario)) == []


def test_all_together_keep_the_promise() -> None:
    report = report_of(SCENARIOS, _once)
    print("\n".join(report.lines()))
    assert report.failing >= FAILING_MIN and report.healthy >= HEALTHY_MIN
    assert report.recovered == report.recoverable
    assert (report.wrong_type, report.false_alarms) == (0, 0)
    assert report.interventions_percent < INTERVENTIONS_PERCENT_MAX


def test_a_label_that_is_wrong_is_found() -> None:
    failing = next(s for s in SCENARIOS if s.recoverable)
    label = failing.expect.model_copy(update={"end": "cancelled", "type": "deadlock", "first": "rollback"})
    found = judge(failing.model_copy(update={"expect": label}), _once(failing))
    assert [line.split(":")[0] for line in found] == ["end", "type", "first"]


def test_a_healthy_trace_that_is_disturbed_is_a_false_alarm() -> None:
    failing = next(s for s in SCENARIOS if s.recoverable)
    taken_for_healthy = failing.model_copy(update={"healthy": True})
    assert report_of([taken_for_healthy], lambda _: _once(failing)).false_alarms == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs: {build: explode}", "'explode' is no outcome; write ok"),
        ("runs: {biuld: hang}", "no step is called biuld; the graph has build"),
        ("answers: {RetryStep: shrug}", "'shrug' is no answer; write carry out"),
        ("answers: {RetrySteps: ignore}", "no command is called 'RetrySteps'"),
        ("happens: {soon: pause}", "'soon' is no duration"),
        ("people: [sleep]", "'sleep' is no answer of a person"),
        ("policy: {budgets: {workflow_max_attemts: 3}}", "unknown key"),
        ("colour: red", "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, given: str, said: str) -> None:
    path = tmp_path / "failing" / "wrong.yaml"
    path.parent.mkdir()
    path.write_text(
        "family: wrong\nscenarios:\n"
        "  - name: a step that nobody can play\n"
        "    graph: [build]\n"
        "    expect: {type: timeout, first: retry_step, end: completed}\n"
        f"    {given}\n"
    )
    with pytest.raises(ScenarioError, match="a step that nobody can play") as caught:
        list(load_file(path))
    assert said in str(caught.value)
