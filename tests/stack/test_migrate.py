"""Databases of earlier releases are brought forward with the rows in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from engine.events import Delivered
from engine.policy import default_policy
from engine.testing import Service, World
from ops.stack import Addresses
from projections import migrate as module
from projections import statements
from projections.catalog import TABLES
from projections.fold import fold, touched
from projections.migrate import migrate
from projections.reader import snapshot
from projections.store import Store
from projections.verify import Drift, TableCheck
from projections.wire import Array, ArrayDumper
from schemas.errors import FatalError
from schemas.ids import derive_id
from schemas.records.events import StepSpec, WorkflowCompleted
from schemas.topics import EVENTS

from ..unit.engine.test_ladders import damaged, saved
from .database import own_database

#: What release 0.1.0 wrote down when it had made its tables.
STEPS_0_1 = {
    "0001_own": "f7f9cd6cf67d191b8908628a24d5e9917dc955bab9a612b2a1fb1359986af52c",
    "0001_workflow_checkpoints": "0cb553e2122c32458320b1253a0ad0a104197cba6bb00e297501f02f3c8edf31",
    "0001_workflow_debug_sessions": "ca0f98cf379897ee8368b6a8f6d2542e31db9bbc25257c0c3eba1d5ed3b756fa",
    "0001_workflow_errors": "a6f5d90e5ce82b6fb6463cf2211c8f02f46b80ddd094fc93d41ff8854b0aa00c",
    "0001_workflow_interventions": "6e81e7497dd5024ad84193514ead915fdda77bb0847131268154f08f306709cb",
    "0001_workflow_recovery_attempts": "5e2c6f98ade121f67144b1221b8b2873979aefabbc9602ae5de9727a6d43871d",
    "0001_workflow_state_history": "9f7e188bd5f797c5e6fe0675b85749b5f81f33812ee64acc786e7893a89731bc",
    "0001_workflows": "28e5c39b9c79776bf5b452e7e87dadf483f061895432c0e0a834613f1fedaf35",
}
STEPS = (StepSpec(step_id="build"), StepSpec(step_id="test"))


@pytest.fixture
def database(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database as release 0.1.0 made it."""
    real = module._steps
    monkeypatch.setattr(module, "_steps", lambda: [step for step in real() if step[0].startswith("0001")])
    with own_database(addresses.postgres) as url:
        monkeypatch.setattr(module, "_steps", real)
        yield url


def log_of(workflows: int) -> World:
    """Workflows with good and damaged checkpoints, an error and its repair."""
    world = World(default_policy())
    for number in range(workflows):
        service = Service(world, STEPS)
        service.start("build")
        service.checkpoint("build", damaged if number % 2 else saved)
        service.fail("build", "TIMEOUT")
        service.acknowledge(world.commands[-1])
        service.start("build", world.commands[-1])
        service.complete("build", world.commands[-1])
        if number % 3:
            service.emit(WorkflowCompleted)
    return world


def fill(url: str, log: list[Delivered]) -> None:
    """What the projector of release 0.1.0 leaves of a log: the rows in the columns it had, and its position."""
    old = [replace(t, columns=tuple(c for c in t.columns if c.since == 1)) for t in TABLES if t.since == 1]
    rows = fold({}, log, touched(old))
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        connection.adapters.register_dumper(Array, ArrayDumper)
        for table in old:
            made = [tuple(row)[: len(table.columns)] for row in rows.get(table.name, {}).values()]
            if made:
                connection.execute(statements.write(table), statements.parameters(table, made))
        connection.execute(
            "INSERT INTO positions VALUES ('kintsugi', %s, 0, %s, 3, now())", [EVENTS, log[-1].offset + 1]
        )


def drifts(url: str, log: list[Delivered]) -> list[Drift]:
    with snapshot(url) as tables:
        check = TableCheck(beginnings=tables.beginnings())
        for event in log:
            if event.offset < tables.positions()[0]:
                check.add(event)
        return [drift for table in TABLES for drift in check.compare(table.name, tables.rows(table))]


def test_the_first_steps_are_those_of_the_first_release(database: str) -> None:
    with psycopg.connect(database, options="-c search_path=kintsugi") as connection:
        applied = dict(connection.execute("SELECT name, checksum FROM migrations").fetchall())
    assert applied == STEPS_0_1


def test_rows_of_the_release_before_stay_and_agree_with_the_log(database: str) -> None:
    log = log_of(8).log
    half = len(log) // 2
    fill(database, log[:half])
    assert {s.name for s in migrate(database) if s.state == "applied now"} == {
        name for name, _ in module._steps() if name not in STEPS_0_1
    }
    assert {s.state for s in migrate(database)} == {"applied"}
    assert drifts(database, log) == [], "no projector of this release has come yet"
    store = Store(database)
    assert store.claim(0) == half
    store.apply(0, log[half:], [], start=half, end=len(log))
    store.close()
    assert drifts(database, log) == []


def test_rows_of_this_release_are_compared_in_every_column(database: str) -> None:
    log = log_of(8).log
    half = len(log) // 2
    fill(database, log[:half])
    migrate(database)
    store = Store(database)
    store.claim(0)
    store.apply(0, log[half:], [], start=half, end=len(log))
    store.close()
    with psycopg.connect(database, options="-c search_path=kintsugi") as connection:
        connection.execute("UPDATE workflow_checkpoints SET codec = 'other'")
    assert {(d.table, d.column) for d in drifts(database, log)} == {("workflow_checkpoints", "codec")}
    changed = {d.key for d in drifts(database, log)}
    made = {e.record.checkpoint_id for e in log[half:] if hasattr(e.record, "chain_digest")}
    assert changed == made


def test_the_projector_of_the_release_before_goes_on_until_it_is_restarted(database: str) -> None:
    log = log_of(6).log
    migrate(database)
    fill(database, log)
    assert drifts(database, log) == []


def test_a_step_that_was_changed_after_it_was_applied_is_refused(database: str) -> None:
    migrate(database)
    with psycopg.connect(database, options="-c search_path=kintsugi") as connection:
        connection.execute("UPDATE migrations SET checksum = %s WHERE name = '0002_states'", [derive_id("x", "y")])
    with pytest.raises(FatalError, match="0002_states was changed"):
        migrate(database)
