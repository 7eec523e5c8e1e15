"""Scratch schemas: how they may be called, what is written to them, and what is left out with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import psycopg
import pytest

from engine.testing import Service, World
from ops import replay_scratch
from ops.replay_range import ReplayError
from ops.replay_scratch import NAME_CHARS_MAX, PREFIX, Scratch, schema_of
from ops.replay_tables import Tables
from projections import filling
from projections.catalog import TABLES
from projections.fold import Folded
from projections.generations import Connection
from projections.kit import Table
from schemas.records.events import CheckpointCreated, CheckpointsExpired

from ..engine.test_ladders import saved
from ..engine.test_properties import POLICY, STEPS
from .replay_kit import repaired


def test_a_name_is_within_its_own_space_or_refused() -> None:
    assert schema_of("night") == schema_of(f"{PREFIX}night") == f"{PREFIX}night"
    assert len(schema_of("x" * NAME_CHARS_MAX)) <= 63
    for name in ("", PREFIX, "Night", "a-b", 'a"; DROP SCHEMA kintsugi', "x" * (NAME_CHARS_MAX + 1), "é", "a\n"):
        with pytest.raises(ReplayError) as refused:
            schema_of(name)
        assert refused.value.reason == "spec"


class Database:
    """Takes rows as Postgres does, and refuses some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refused: Sequence[str] = ()) -> None:
        self.rows: dict[str, dict[str, Any]] = {table.name: {} for table in TABLES}
        self.statements: list[str] = []
        self.copies = 0
        self._refused = refused
        monkeypatch.setattr(filling, "copy_rows", self._copy)

    def _copy(self, connection: Any, schema: str, table: Table, rows: list[Any]) -> None:
        assert schema == f"{PREFIX}x"
        self.copies += 1
        if any(row[0] in self._refused for row in rows):
            raise psycopg.DataError("value too long for type character varying(20)")
        assert not any(row[0] in self.rows[table.name] for row in rows), "a row is written once"
        self.rows[table.name].update((row[0], row) for row in rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def execute(self, statement: Any, place: dict[str, Any] | None = None) -> Any:
        text = statement if isinstance(statement, str) else statement.as_string(None)
        self.statements.append(text)
        if place is not None and text.startswith("DELETE"):
            name = text.split('"')[3]
            for key in place["keys"]:
                self.rows[name].pop(key, None)
        return type("Done", (), {"rowcount": len((place or {}).get("keys", ()))})


def filled(world: World, database: Database, start: int = 0) -> Scratch:
    scratch = Scratch(cast(Connection, database), "x")
    tables = Tables(scratch)
    for event in world.log:
        tables.add(event, inside=event.offset >= start)
    tables.close()
    return scratch


def test_the_rows_are_those_that_a_fold_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    world, folded = repaired(2), Folded(TABLES)
    for event in world.log:
        folded.add(event)
    database = Database(monkeypatch)
    scratch = filled(world, database)
    assert database.rows == folded.rows
    assert scratch.document()["rows"] == sum(map(len, folded.rows.values())) and scratch.refused == []


def test_rows_that_the_range_does_not_touch_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    world = repaired(2)
    second = next(e for e in world.log if e.record.workflow_id != world.log[0].record.workflow_id)
    database = Database(monkeypatch)
    filled(world, database, second.offset)
    assert set(database.rows["workflows"]) == {second.record.workflow_id}


def test_what_expires_is_deleted_also_when_it_was_written_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_scratch, "_ROWS_MAX", 2)
    world = World(POLICY)
    service = Service(world, STEPS)
    service.start("a")
    for _ in range(3):
        service.checkpoint("a", saved)
    ids = [e.record.checkpoint_id for e in world.log if isinstance(e.record, CheckpointCreated)]
    service.emit(CheckpointsExpired, checkpoint_ids=tuple(ids[:2]), event_ids=(), reason="retention")
    database = Database(monkeypatch)
    filled(world, database)
    assert set(database.rows["workflow_checkpoints"]) == {ids[2]}
    emptied = [text for text in database.statements if text.startswith("UPDATE")]
    assert any('"restored_from" = NULL' in text for text in emptied), "what refers to them refers to nothing"
    assert all(f'"{PREFIX}x".' in text for text in database.statements if "set_config" not in text)


def test_a_row_that_postgres_refuses_is_named_and_the_others_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    world = repaired(5)
    bad = world.log[0].record.workflow_id
    database = Database(monkeypatch, refused=[bad])
    scratch = filled(world, database)
    assert len(database.rows["workflows"]) == 4 and bad not in database.rows["workflows"]
    [(place, error)] = scratch.refused
    assert place.startswith("0:") and error.startswith("workflows: value too long")


def test_what_is_wrong_with_the_server_is_no_rows_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(monkeypatch)

    def away(*_: Any) -> None:
        raise psycopg.OperationalError("the connection is closed")

    monkeypatch.setattr(filling, "copy_rows", away)
    with pytest.raises(psycopg.OperationalError):
        filled(repaired(), database)
