"""docs/faults.md names tests that exist, for every row, or says what is not covered."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.simulation.test_faults import CHUNK, PLANTED_SEEDS_MAX, SEEDS

from .pages import ROOT, code_spans, rows, sections, text_of

PAGE = text_of(ROOT / "docs" / "faults.md")
ROWS = list(rows(sections(PAGE)["Rows"]))
ROWS_COUNT = 33


@cache
def names_in(path: str) -> set[str]:
    """Names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_every_fault_has_its_row() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, ROWS_COUNT + 1)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row {row[0]}")
def test_a_row_names_tests_or_says_that_there_are_none(row: list[str]) -> None:
    _, _, tests, missing = row
    assert tests or missing == "all of it"
    assert not tests or missing != "all of it"


@pytest.mark.parametrize("named", [s for s in code_spans(PAGE) if s.startswith("tests/") and ".py" in s])
def test_the_tests_that_are_named_exist(named: str) -> None:
    path, _, name = named.partition("::")
    found = names_in(path)
    assert name in found if name else found


def test_the_numbers_of_the_simulation_are_those_of_the_page() -> None:
    assert f"{SEEDS:,} seeds are part of `make test`, and each {CHUNK} of them" in PAGE
    assert f"found within {PLANTED_SEEDS_MAX} seeds" in PAGE
