"""The tables on real Postgres: whole batches, one owner, nothing lost when the database is in trouble."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.events import Delivered
from engine.inspection import deliver
from engine.policy import default_policy
from engine.testing import Service, World
from ops.stack import Addresses
from projections import store as limits
from projections.catalog import TABLES
from projections.migrate import migrate
from projections.reader import snapshot
from projections.store import Store
from projections.verify import Drift, TableCheck
from schemas.codec import Codec
from schemas.dead_letters import STAGE_APPLY, STAGE_DECODE, DeadLetter
from schemas.errors import FatalError, FencedError, RetriableError
from schemas.records.events import CheckpointCreated, StepSpec

from ..unit.engine.test_ladders import saved
from ..unit.engine.test_properties import POLICY, moves, play
from .database import own_database


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    yield made
    made.close()


def letter(offset: int, **changed: Any) -> DeadLetter:
    made = DeadLetter(
        topic="workflow.events",
        partition=0,
        offset=offset,
        timestamp_us=1,
        key=b"k",
        value=b"\x00junk",
        headers=[("h", b"\xff\x00")],
        stage=STAGE_DECODE,
        reason="malformed",
        detail="no \x00 here",
    )
    return replace(made, **changed)


def drifts(url: str, log: list[Delivered]) -> list[Drift]:
    """Differences between the tables and a fold of the log up to their position, less what was set aside."""
    with snapshot(url) as tables:
        position = tables.positions().get(0, 0)
        aside = {offset for (_, offset), stage in tables.dead_letters().items() if stage == STAGE_APPLY}
        check = TableCheck()
        for event in log:
            if event.offset < position and event.offset not in aside:
                check.add(event)
        return [drift for table in TABLES for drift in check.compare(table.name, tables.rows(table))]


def count(url: str, table: str) -> int:
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_a_batch_and_its_position_are_written_together(store: Store, database: str, world: World) -> None:
    assert store.claim(0) is None
    store.apply(0, world.log, [letter(len(world.log))], start=0, end=len(world.log) + 1)
    assert store.claim(0) == len(world.log) + 1
    assert drifts(database, world.log) == []
    assert count(database, "workflows") == 6
    assert count(database, "dead_letters") == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=moves, cuts=st.lists(st.integers(0, 400), max_size=12), restarts=st.sets(st.integers(0, 12)))
def test_rows_do_not_depend_on_how_the_log_was_cut_into_batches(
    database: str, made: list[tuple[object, ...]], cuts: list[int], restarts: set[int]
) -> None:
    world = World(POLICY)
    play(world, Service(world, (StepSpec(step_id="a"), StepSpec(step_id="b"), StepSpec(step_id="c"))), made)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA kintsugi CASCADE")
    migrate(database)
    store = Store(database)
    store.claim(0)
    edges = sorted({0, len(world.log), *(c for c in cuts if c < len(world.log))})
    for number, (start, end) in enumerate(pairwise(edges)):
        if number in restarts:  # rows are read back instead of remembered
            store.close()
            store = Store(database)
            assert store.claim(0) in (start, None)
        store.apply(0, world.log[start:end], [], start=start, end=end)
    store.close()
    assert drifts(database, world.log) == []


def test_a_batch_that_was_applied_is_not_applied_again(store: Store, database: str, world: World) -> None:
    store.claim(0)
    store.apply(0, world.log[:10], [], start=0, end=10)
    with pytest.raises(FencedError):
        store.apply(0, world.log[:10], [], start=0, end=10)
    store.claim(0)
    store.apply(0, world.log[10:], [], start=10, end=len(world.log))
    assert drifts(database, world.log) == []


def test_who_lost_the_partition_writes_nothing(database: str, world: World) -> None:
    zombie, owner = Store(database), Store(database)
    zombie.claim(0)
    zombie.apply(0, world.log[:10], [], start=0, end=10)
    assert owner.claim(0) == 10
    before = count(database, "workflow_checkpoints")
    with pytest.raises(FencedError):
        zombie.apply(0, world.log[10:], [letter(99)], start=10, end=len(world.log))
    assert count(database, "workflow_checkpoints") == before
    assert count(database, "dead_letters") == 0
    owner.apply(0, world.log[10:], [], start=10, end=len(world.log))
    assert drifts(database, world.log) == []
    zombie.close()
    owner.close()


def test_a_partition_that_was_not_claimed_cannot_be_written(store: Store, world: World) -> None:
    with pytest.raises(FencedError):
        store.apply(3, world.log, [], start=0, end=9)


@pytest.mark.parametrize("places", [(0,), (7,), (3, 4, 5), (0, 20)])
def test_records_that_postgres_refuses_park_their_workflow_and_the_others_are_written(
    store: Store, database: str, world: World, places: tuple[int, ...]
) -> None:
    service = Service(world, (StepSpec(step_id="build"),))
    log = list(world.log)
    refused = []
    for place in places:
        kept = {**saved(service.workflow_id, "build"), "size_bytes": 2**40, "chain_digest": "0" * 64}
        record = service.build(
            CheckpointCreated,
            checkpoint_id=world.new_id(),
            step_id="build",
            checkpoint_type="manual",
            sequence=1,
            state_version="1",
            status="running",
            **kept,
        )
        refused.append(record)
        log.insert(place, deliver(record, 0, 0, world.now_us))
    log = [replace(event, offset=number) for number, event in enumerate(log)]
    store.claim(0)
    aside = store.apply(0, log, [letter(len(log))], start=0, end=len(log) + 1)
    assert [(a.reason, a.offset) for a in aside] == [("refused_by_postgres", places[0])]
    assert Codec().decode(aside[0].value) == log[places[0]].record
    assert count(database, "dead_letters") == 1
    own = [event for event in log[places[0] :] if event.record.workflow_id == service.workflow_id]
    assert count(database, "parked_events") == len(own) >= len(places)
    assert drifts(database, log) == []


def test_a_record_set_aside_twice_is_one_row(store: Store, database: str) -> None:
    store.claim(0)
    store.apply(0, [], [letter(0)], start=0, end=1)
    store.apply(0, [], [letter(0), letter(1, value=None, key=None)], start=1, end=2)
    assert count(database, "dead_letters") == 2


@pytest.mark.parametrize("end", ["pg_terminate_backend(pid)", "pg_cancel_backend(pid)"])
def test_a_lost_connection_is_retriable_and_loses_nothing(
    store: Store, database: str, world: World, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim(0)
    store.apply(0, world.log[:10], [], start=0, end=10)
    fold = limits.fold

    def interrupted(*arguments: Any) -> Any:
        with psycopg.connect(database, autocommit=True) as other:
            query = f"SELECT {end} FROM pg_stat_activity WHERE application_name = 'kintsugi-projector'"
            other.execute(query.encode() + b" AND datname = current_database()")
        return fold(*arguments)

    monkeypatch.setattr(limits, "fold", interrupted)
    try:
        store.apply(0, world.log[10:20], [], start=10, end=20)
        applied = True  # a cancelled backend that was idle at that moment has nothing to cancel
    except RetriableError:
        applied = False
    monkeypatch.setattr(limits, "fold", fold)
    start = 20 if applied else 10
    assert store.claim(0) == start
    assert applied == ("cancel" in end)
    store.apply(0, world.log[start:], [], start=start, end=len(world.log))
    assert drifts(database, world.log) == []


class Proxy:
    """A TCP proxy to Postgres that can swallow the answer to what it passed on."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.swallow = threading.Event()
        self.passed_commit = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        while data := _receive(client):
            if b"COMMIT" in data and self.swallow.is_set():
                self.passed_commit.set()
            server.sendall(data)
        _end(server)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        while data := _receive(server):
            if self.passed_commit.is_set():
                break  # Postgres has committed; nobody will hear of it
            client.sendall(data)
        _end(client)

    def close(self) -> None:
        self._server.close()


def _end(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
    peer.close()


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


def test_a_commit_without_an_answer_is_neither_lost_nor_done_twice(
    addresses: Addresses, database: str, world: World
) -> None:
    """FAULTS.md row 4."""
    host, port = database.split("@")[1].split("/")[0].split(":")
    proxy = Proxy(host, int(port))
    store = Store(database.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}"))
    store.claim(0)
    store.apply(0, world.log[:10], [], start=0, end=10)
    proxy.swallow.set()
    with pytest.raises(RetriableError):
        store.apply(0, world.log[10:20], [], start=10, end=20)
    assert proxy.passed_commit.is_set()
    store.close()
    proxy.close()
    again = Store(database)
    assert again.claim(0) == 20, "it was committed, and the tables know"
    again.apply(0, world.log[20:], [], start=20, end=len(world.log))
    again.close()
    assert drifts(database, world.log) == []


@pytest.mark.parametrize(
    ("break_it", "hint"),
    [
        ("DROP SCHEMA kintsugi CASCADE", "kintsugi db migrate"),
        ("DROP TABLE kintsugi.workflow_errors CASCADE", "kintsugi db migrate"),
        ("ALTER TABLE kintsugi.workflows DROP COLUMN status", "kintsugi db migrate"),
    ],
)
def test_tables_that_somebody_changed_stop_the_process(database: str, world: World, break_it: str, hint: str) -> None:
    store = Store(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(break_it.encode())

    def write() -> None:
        store.claim(0)
        store.apply(0, world.log, [], start=0, end=len(world.log))

    with pytest.raises(FatalError) as caught:
        write()
    assert hint in str(caught.value.hint)
    store.close()


def test_a_role_without_rights_stops_the_process_and_says_what_is_missing(database: str, world: World) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader_only LOGIN")
        try:
            connection.execute("GRANT USAGE ON SCHEMA kintsugi TO reader_only")
            store = Store(database.replace("kintsugi@", "reader_only@"))
            with pytest.raises(FatalError, match="permission denied"):
                store.claim(0)
            store.close()
        finally:
            connection.execute("DROP OWNED BY reader_only")
            connection.execute("DROP ROLE reader_only")


def test_rows_in_memory_are_bounded(store: Store, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHE_ROWS_MAX", 2)
    store.claim(0)
    store.apply(0, world.log, [], start=0, end=len(world.log))
    assert all(len(cache) <= 2 for cache in store._cache.values())


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("UPDATE kintsugi.workflow_errors SET status = 'recovered'", "workflow_errors"),
        ("DELETE FROM kintsugi.workflow_state_history", "workflow_state_history"),
        ("UPDATE kintsugi.workflow_checkpoints SET state_data = '{}'", "workflow_checkpoints"),
    ],
)
def test_what_somebody_changed_by_hand_is_found(
    store: Store, database: str, world: World, change: str, where: str
) -> None:
    world = World(default_policy())
    service = Service(world, (StepSpec(step_id="build"),))
    service.start("build")
    service.checkpoint("build", saved)
    service.fail("build", "TIMEOUT")
    store.claim(0)
    store.apply(0, world.log, [], start=0, end=len(world.log))
    assert drifts(database, world.log) == []
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(change.encode())
    assert {drift.table for drift in drifts(database, world.log)} == {where}


def test_migrations_run_once_and_a_changed_one_is_refused(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {step.state for step in migrate(database)} == {"applied"}
    from projections import migrate as module

    real: Callable[[], Any] = module._steps
    monkeypatch.setattr(module, "_steps", lambda: [(n, t + "\n-- changed") for n, t in real()])
    with pytest.raises(FatalError, match="was changed after it was applied"):
        migrate(database)


def test_a_dry_run_of_migrations_changes_nothing(addresses: Addresses) -> None:
    with own_database(addresses.postgres) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA kintsugi CASCADE")
        assert {step.state for step in migrate(url, dry_run=True)} == {"pending"}
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regnamespace('kintsugi')").fetchone() == (None,)
