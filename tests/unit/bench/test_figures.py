"""The arithmetic of the benchmarks, and what a result says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Benchmark, Figure, Latencies, document_of, median, percentile

finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1, exclude_min=True)


def test_percentiles_are_samples_by_nearest_rank() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert [percentile(samples, share) for share in (0.001, 0.01, 0.5, 0.505, 0.99, 1.0)] == [1, 1, 50, 51, 99, 100]
    assert percentile([7.0], 0.01) == 7.0
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.0


@given(st.lists(finite, min_size=1, max_size=200), shares)
def test_at_least_the_share_of_the_samples_is_within_the_percentile(samples: list[float], share: float) -> None:
    found = percentile(samples, share)
    assert found in samples
    assert sum(s <= found for s in samples) >= share * len(samples)
    assert sum(s < found for s in samples) < share * len(samples)


def test_no_samples_have_no_percentile_and_meet_no_goal() -> None:
    assert math.isnan(percentile([], 0.5))
    assert [f.met for f in Latencies().figures("x", p50_ms_max=5.0, p99_ms_max=25.0)] == [False, False, None]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        percentile([1.0], share)


def test_latencies_are_shown_in_milliseconds() -> None:
    figures = Latencies([0.001, 0.002, 0.004]).figures("hop", p50_ms_max=1.5, p99_ms_max=25.0)
    assert [(f.name, f.measured, f.unit, f.met) for f in figures] == [
        ("hop p50", 2.0, "ms", False),
        ("hop p99", 4.0, "ms", True),
        ("hop max", 4.0, "ms", None),
    ]


def test_a_goal_is_met_at_its_limit() -> None:
    most = {"name": "x", "unit": "s", "at_most": 3.0}
    least = {"name": "x", "unit": "%", "at_least": 80.0}
    assert [Figure(measured=v, **most).met for v in (2.9, 3.0, 3.1, math.inf)] == [True, True, False, False]  # type: ignore[arg-type]
    assert [Figure(measured=v, **least).met for v in (79.9, 80.0, 80.1)] == [False, True, True]  # type: ignore[arg-type]
    assert Figure(name="x", measured=1.0, unit="s").met is None
    assert (Figure(measured=1.0, **most).goal, Figure(measured=1.0, **least).goal) == ("<= 3 s", ">= 80 %")  # type: ignore[arg-type]


def test_a_result_says_what_was_measured_where_and_whether_it_met_its_goal() -> None:
    benchmark = Benchmark(name="b", measures="m", compared_to="c", run=lambda _: [])
    figures = [
        Figure(name="f", measured=1.23456, unit="ms", at_most=2.0, note="n"),
        Figure(name="g", measured=7, unit="s"),
    ]
    assert document_of(benchmark, figures, {"cores": 2}, quick=True) == {
        "benchmark": "b",
        "measures": "m",
        "compared_to": "c",
        "quick": True,
        "machine": {"cores": 2},
        "figures": [
            {"figure": "f", "measured": 1.235, "unit": "ms", "goal": "<= 2 ms", "met": True, "note": "n"},
            {"figure": "g", "measured": 7, "unit": "s", "goal": None, "met": None, "note": None},
        ],
    }
