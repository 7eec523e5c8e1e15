"""docs/backtest.md names the figures and bounds that the code has."""

from __future__ import annotations

from importlib import import_module

import pytest

from engine.backtest_estimate import Evidence
from engine.backtest_report import Report
from ops.commands.policy_backtest import NAMES

from .pages import ROOT, bare, rows, sections, text_of

SECTIONS = sections(text_of(ROOT / "docs" / "backtest.md"))


def test_every_figure_is_described_and_has_rows() -> None:
    made = [figure.name for figure in Report([], Evidence()).figures()]
    assert made == list(NAMES) == [bare(row[0]) for row in rows(SECTIONS["Figures"])]


@pytest.mark.parametrize("row", list(rows(SECTIONS["Bounds, and what ends it"])), ids=lambda row: bare(row[2]))
def test_a_bound_is_what_the_code_says(row: list[str]) -> None:
    module, _, name = bare(row[2]).rpartition(".")
    number = row[1].split()[0].strip(",;").replace(",", "")
    assert getattr(import_module(module), name) == int(number)
