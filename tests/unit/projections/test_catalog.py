"""Tables are found by their folders and put in the order of their references."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

import projections
from projections.catalog import TABLES, ordered
from projections.kit import TABLES_VERSION, Table, columns


def table(name: str, *references: str, twin: str | None = None, since: int = 1) -> Table:
    kinds = {f"r{number}": f"uuid->{target}" for number, target in enumerate(references)}
    return Table(name=name, columns=columns(id="uuid", **kinds), touches={}, twin=twin, since=since)


def test_every_folder_is_a_table() -> None:
    folders = {path.parent.name for path in Path(projections.__file__).parent.glob("*/table.sql")}
    assert {found.name for found in TABLES} == folders
    assert "workflows" in folders


def test_references_and_twins_point_backwards_however_the_folders_are_listed() -> None:
    dice = Random(7)
    for _ in range(20):
        shuffled = dice.sample(TABLES, len(TABLES))
        assert ordered(shuffled) == TABLES
    for place, found in enumerate(TABLES):
        before = {earlier.name for earlier in TABLES[: place + 1]}
        assert {c.references for c in found.columns} - {None} <= before
        assert found.twin is None or found.twin in before


def test_a_table_comes_behind_a_younger_one_that_it_refers_to() -> None:
    found = ordered([table("a", "z"), table("b", "b"), table("z", since=3)])
    assert [t.name for t in found] == ["b", "z", "a"]


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="no table nowhere"):
        ordered([table("a", "nowhere")])


def test_tables_that_refer_to_each_other_are_named() -> None:
    with pytest.raises(ValueError, match=r"refer to each other: .*'a'.*'b'"):
        ordered([table("a", "b"), table("b", twin="a")])


def test_no_column_is_newer_than_the_tables() -> None:
    assert max(column.since for t in TABLES for column in t.columns) <= TABLES_VERSION
    assert max(t.since for t in TABLES) <= TABLES_VERSION
