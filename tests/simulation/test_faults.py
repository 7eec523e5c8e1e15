"""Thousands of seeds of the projector and recovery under faults: nothing is lost, done twice, or waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest

from . import __main__ as soak
from .run import Simulation
from .slips import ALL, planted

SEEDS = 2_000
CHUNK = 250
#: Seeds within which each planted defect is to be found.
PLANTED_SEEDS_MAX = 150
#: Every kind of fault; a chunk in which one of them never happened would prove nothing of it.
FAULTS = {
    "answer_lost", "broker_away", "commit_lost", "commit_refused", "commit_unanswered", "database_away",
    "event_repeated", "fenced", "frozen", "killed", "lookup_failed", "rebalance", "record_lost", "rolled_back",
    "snapshot_gone", "snapshot_lost", "snapshot_written", "written_twice",
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_whatever_happens_all_comes_to_rest_as_it_must(first: int) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        simulation = Simulation(seed)
        findings = simulation.run()
        assert not findings, f"{findings[: soak.SHOWN_MAX]}; again: {soak.again(seed)}"
        happened += simulation.happened
    assert happened.keys() == FAULTS


@pytest.mark.parametrize("name", ALL)
def test_a_planted_defect_is_found(name: str) -> None:
    with planted(name) as slips:
        assert any(Simulation(seed, slips).run() for seed in range(PLANTED_SEEDS_MAX))


def test_a_seed_runs_alike_each_time() -> None:
    runs = []
    for _ in range(2):
        simulation = Simulation(17)
        assert not simulation.run()
        runs.append((simulation.now_us, simulation.happened, simulation.database.rows))
    assert runs[0] == runs[1]


def test_the_command_runs_some_seeds_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--seed", "5", "--count", "2"]) == 0
    assert "2 seeds from 5 on, 0 failed" in capsys.readouterr().out


def test_a_failing_seed_is_told_with_the_command_that_runs_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--seed", "0", "--count", "1", "--plant", "committed_before_arrival"]) == 1
    told = capsys.readouterr().out
    assert "seed 0 failed; again: .venv/bin/python -m tests.simulation --seed 0 --count 1 --plant" in told
    assert "came after the position" in told


def test_stopped_it_says_where_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Simulation) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "run", stop)
    assert soak.main(["--seed", "7"]) == 0
    assert "to go on: make soak SEED=7" in capsys.readouterr().out
