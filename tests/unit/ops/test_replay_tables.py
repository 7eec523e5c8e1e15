"""Tables under a replay have the rows that the tables have, and keep of those nobody reads again only that they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from engine.events import Delivered
from engine.testing import Service, World
from ops.replay_tables import Tables
from projections.catalog import TABLES
from projections.fold import Folded
from schemas.records.events import CheckpointCreated, CheckpointsExpired

from ..engine.test_ladders import saved
from ..engine.test_properties import POLICY, STEPS, moves, play


def checked(log: list[Delivered]) -> Tables:
    """Tables and plain folding side by side."""
    tables, folded = Tables(), Folded(TABLES)
    for event in log:
        tables.add(event, inside=True)
        folded.remove(event)
        folded.add(event)
    assert tables.refused == []
    for table in TABLES:
        rows, kept = folded.rows[table.name], tables.rows(table.name)
        if not table.written_once:
            assert kept == rows
        assert {key: row[table.owner] for key, row in kept.items()} == {k: r[table.owner] for k, r in rows.items()}
    return tables


@settings(max_examples=60, deadline=None)
@given(moves)
def test_every_row_is_there_and_what_is_read_again_is_whole(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    checked(world.log)


def with_checkpoints(count: int) -> World:
    world = World(POLICY)
    service = Service(world, STEPS)
    service.start("a")
    for _ in range(count):
        service.checkpoint("a", saved)
    return world


def test_rows_that_expire_are_gone_and_were_made_all_the_same() -> None:
    world = with_checkpoints(3)
    ids = [e.record.checkpoint_id for e in world.log if isinstance(e.record, CheckpointCreated)]
    service = Service(world)
    service.workflow_id = world.log[0].record.workflow_id
    service.emit(CheckpointsExpired, checkpoint_ids=tuple(ids[:2]), event_ids=(), reason="retention")
    tables = checked(world.log)
    assert set(tables.rows("workflow_checkpoints")) == {ids[2]}
    assert tables.counted["workflow_checkpoints"] == [3, 3]


def test_of_a_checkpoint_nothing_is_kept_but_that_it_is_there() -> None:
    world = with_checkpoints(1)
    tables = checked(world.log)
    [row] = tables.rows("workflow_checkpoints").values()
    assert [value for value in row if value is not None] == [world.log[0].record.workflow_id]


def test_what_a_fold_refuses_is_named_and_the_replay_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_checkpoints(2)
    first, plain = next(e for e in world.log if isinstance(e.record, CheckpointCreated)), Folded.add

    def add(self: Folded, event: Delivered) -> object:
        if event is first:
            raise ValueError("a row that cannot be")
        return plain(self, event)

    monkeypatch.setattr(Folded, "add", add)
    tables = Tables()
    for event in world.log:
        tables.add(event, inside=True)
    assert tables.refused == [{"place": f"0:{first.offset}", "error": "ValueError: a row that cannot be"}]
    assert tables.refused_count == 1 and tables.counted["workflow_checkpoints"] == [1, 1]
