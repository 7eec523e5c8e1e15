"""Proof by digests: equal tables never differ, every planted change is found, and memory has a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.testing import Service, World
from projections.catalog import TABLES
from projections.choice import ALL, Choice
from projections.digest import BUCKETS, Drift, bucket_of, row_digest
from projections.fold import Folded
from projections.kit import Table
from projections.verify import TableCheck
from schemas.ids import derive_id
from schemas.records.events import StepSpec

from ..engine.test_properties import POLICY, moves, play
from .test_digest import value_of

Contents = dict[str, dict[str, tuple[Any, ...]]]
#: So few bytes that only some workflows find room at once.
SMALL = 6_000


def play_all(made: Iterable[list[tuple[object, ...]]]) -> World:
    world = World(POLICY)
    for moves_of_one in made:
        play(world, Service(world, (StepSpec(step_id="a"), StepSpec(step_id="b"), StepSpec(step_id="c"))), moves_of_one)
    return world


def tables_of(world: World) -> Contents:
    folded = Folded(TABLES)
    for event in world.log:
        folded.remove(event)
        folded.add(event)
    return {name: {key: tuple(row) for key, row in rows.items()} for name, rows in folded.rows.items()}


def prove(world: World, contents: Contents, choice: Choice = ALL, bytes_max: int | None = None) -> list[Drift]:
    """What passes over the log find, in each of which so much memory is used."""
    found, left = [], [choice]
    while left:
        check = TableCheck(choice=left.pop(), memory_bytes_max=bytes_max)
        for event in world.log:
            check.add(event)
        for table in TABLES:
            digests = (
                (key, row_digest(table, row))
                for key, row in contents[table.name].items()
                if check.choice.wants(row[table.owner])
            )
            found += check.prove(table, digests, reader(contents))
        left += check.put_off
    return found


def reader(contents: Contents) -> Callable[[Table, Sequence[str]], list[tuple[Any, ...]]]:
    return lambda table, keys: [contents[table.name][key] for key in keys if key in contents[table.name]]


@settings(max_examples=40, deadline=None)
@given(made=st.lists(moves, min_size=1, max_size=3), data=st.data())
def test_every_change_of_every_column_is_found(made: list[list[tuple[object, ...]]], data: st.DataObject) -> None:
    world = play_all(made)
    contents = tables_of(world)
    assert prove(world, contents) == []
    assert prove(world, contents, bytes_max=SMALL) == []
    table = data.draw(st.sampled_from([t for t in TABLES if contents[t.name]]))
    key = data.draw(st.sampled_from(sorted(contents[table.name])))
    places = [i for i, c in enumerate(table.columns) if i > 0 and i != table.owner and c.references is None]
    place = data.draw(st.sampled_from(places))
    row = [*contents[table.name][key]]
    empty = data.draw(st.booleans()) and row[place] is not None
    other = next(v for n in (0, 1) if (v := value_of(table.columns[place], n)) != row[place])
    row[place] = None if empty else other
    contents[table.name][key] = tuple(row)
    for bytes_max in (None, SMALL):
        (drift,) = prove(world, contents, bytes_max=bytes_max)
        assert (drift.table, drift.key, drift.column) == (table.name, key, table.columns[place].name)


@settings(max_examples=40, deadline=None)
@given(made=st.lists(moves, min_size=1, max_size=3), data=st.data())
def test_rows_too_many_or_too_few_are_found(made: list[list[tuple[object, ...]]], data: st.DataObject) -> None:
    world = play_all(made)
    contents = tables_of(world)
    table = data.draw(st.sampled_from([t for t in TABLES if contents[t.name]]))
    key = data.draw(st.sampled_from(sorted(contents[table.name])))
    row = contents[table.name].pop(key)
    for bytes_max in (None, SMALL):
        assert prove(world, contents, bytes_max=bytes_max) == [
            Drift(table=table.name, key=key, column="", expected="a row", found="no row")
        ]
    extra = derive_id("extra", key)
    contents[table.name] |= {key: row, extra: (extra, *row[1:])}
    for bytes_max in (None, SMALL):
        assert prove(world, contents, bytes_max=bytes_max) == [
            Drift(table=table.name, key=extra, column="", expected="no row", found="a row")
        ]


@pytest.fixture
def world() -> World:
    world = World(POLICY)
    for _ in range(40):
        service = Service(world, (StepSpec(step_id="a"),))
        service.start("a")
        service.fail("a", "TIMEOUT")
    return world


def test_what_finds_no_room_is_put_off_and_nothing_is_left_out_or_done_twice(world: World) -> None:
    left, events, rows, passes = [ALL], 0, 0, 0
    seen: list[range] = []
    while left:
        check = TableCheck(choice=left.pop(), memory_bytes_max=20_000)
        for event in world.log:
            check.add(event)
        seen.append(range(check.choice.first, check.choice.end))
        events, rows, passes = events + check.events, rows + check.rows("workflow_errors"), passes + 1
        left += check.put_off
    assert events == len(world.log)
    assert rows == 40
    assert 1 < passes < 40
    assert sorted(bucket for part in seen for bucket in part) == list(range(BUCKETS))


def test_one_workflow_larger_than_memory_is_proven_all_the_same(world: World) -> None:
    one = next(iter(tables_of(world)["workflows"]))
    assert prove(world, tables_of(world), Choice(ids=frozenset((one,))), bytes_max=1) == []


def test_only_chosen_workflows_are_looked_at(world: World) -> None:
    contents = tables_of(world)
    first, second, *_ = contents["workflows"]
    contents["workflows"].pop(first)
    assert prove(world, contents, Choice(ids=frozenset((second,)))) == []
    assert [d.key for d in prove(world, contents, Choice(ids=frozenset((first,))))] == [first]
    bucket = bucket_of(first)
    assert [d.key for d in prove(world, contents, replace(ALL, first=bucket, end=bucket + 1))] == [first]
    assert prove(world, contents, replace(ALL, first=bucket + 1)) == []
