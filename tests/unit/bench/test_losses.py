"""The page says where we lose, as the results have it."""

from __future__ import annotations

from typing import Any

from bench.__main__ import RESULTS
from bench.losses import BEGIN, END, PAGE, losses, stored, table, with_losses


def _document(benchmark: str, *figures: tuple[str, float, bool | None]) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "figures": [
            {"figure": name, "measured": measured, "unit": "times", "goal": "g", "met": met}
            for name, measured, met in figures
        ],
    }


def test_goals_that_are_missed_and_peers_that_are_faster_are_losses() -> None:
    documents = [
        _document("latency", ("p50", 12.834, False), ("p99", 1.0, True), ("max", 1234.0, None)),
        _document("peers", ("live projection against A", 0.9, None), ("live projection against B", 1.1, None)),
    ]
    assert list(losses(documents)) == [
        ("latency", "p50", "12.83 times", "g"),
        ("peers", "live projection against A", "0.90 times", "as fast as the peer"),
    ]


def test_without_losses_the_page_says_so() -> None:
    assert "|" not in table([_document("latency", ("p50", 1.0, True))])


def test_the_page_has_the_losses_of_the_results() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert with_losses(page, stored(RESULTS)) == page
