"""What expired leaves the tables, on real Postgres exactly as in the fold that `kintsugi verify` compares them with."""

from __future__ import annotations

from collections.abc import Iterator
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
from projections.catalog import TABLES
from projections.copying import COPY_ROWS_MIN, parts
from projections.reader import snapshot
from projections.store import Store
from projections.verify import Drift, TableCheck
from schemas.canonical import chain_digest_of
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.events import (
    CheckpointCreated,
    CheckpointsExpired,
    ErrorClassified,
    StatePersisted,
    StateRestored,
    WorkflowErrorOccurred,
)

from ..unit.engine.test_ladders import saved

#: So few ids that the same ones expire, come again and are referred to all the time.
CHECKPOINTS, WORKFLOWS = 3, 2
OWNERS = [derive_id("expiry", "workflow", number) for number in range(WORKFLOWS)]


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    made.claim(0)
    yield made
    made.close()


def build(kind: type[Record], owner: int, name: str, number: int, **fields: Any) -> Record:
    return kind(
        event_id=derive_id(name, "event", number),
        workflow_id=OWNERS[owner],
        workflow_type="development",
        occurred_at=1_800_000_000_000_000,
        producer="test",
        **fields,
    )


def checkpoint_id(number: int) -> str:
    return derive_id("expiry", "checkpoint", number)


def created(number: int, owner: int) -> Record:
    """The same number by another workflow is another event with the same checkpoint id."""
    made = saved(OWNERS[owner], "build")
    return build(
        CheckpointCreated,
        owner,
        f"created{owner}",
        number,
        checkpoint_id=checkpoint_id(number),
        step_id="build",
        checkpoint_type="manual",
        sequence=number + 1,
        state_version="1",
        status="running",
        chain_digest=chain_digest_of(None, str(made["digest"])),
        **made,
    )


def state_of(owner: int) -> dict[str, Any]:
    return {**saved(OWNERS[owner], "build"), "step_id": "build", "state_version": "1", "status": "running"}


def persisted(number: int, owner: int) -> Record:
    return build(StatePersisted, owner, "persisted", number, version=str(number), **state_of(owner))


def restored(number: int, owner: int) -> Record:
    return build(
        StateRestored,
        owner,
        f"restored{owner}",
        number,
        checkpoint_id=checkpoint_id(number),
        restored_at=1,
        restore_count=1,
        **state_of(owner),
    )


def failed(number: int, owner: int) -> Record:
    return build(
        WorkflowErrorOccurred,
        owner,
        f"failed{owner}",
        number,
        error_id=derive_id(f"error{owner}", "error", number),
        step_id="build",
        error_code="Boom",
        error_message="no",
        checkpoint_id=checkpoint_id(number),
        detected_by="service",
    )


def classified(number: int, owner: int) -> Record:
    """Changes the row of an error that may refer to a checkpoint."""
    return build(
        ErrorClassified,
        owner,
        f"classified{owner}",
        number,
        error_id=derive_id(f"error{owner}", "error", number),
        root_error_id=derive_id(f"error{owner}", "error", number),
        error_type="unknown_error",
        severity="medium",
        retryable=True,
        fingerprint="f",
        rule="r",
    )


def expired(numbers: set[int], owner: int) -> Record:
    events = [*(created(n, owner).event_id for n in sorted(numbers)), *(persisted(n, owner).event_id for n in numbers)]
    events += [restored(n, owner).event_id for n in numbers]
    ids = [checkpoint_id(n) for n in sorted(numbers)]
    return build(
        CheckpointsExpired,
        owner,
        "expired",
        sum(1 << n for n in numbers),
        checkpoint_ids=tuple(ids + [derive_id("nobody", "has", n) for n in range(len(events) - len(ids))]),
        event_ids=tuple(events),
        reason="max_checkpoints",
    )


def log_of(records: list[Record]) -> list[Delivered]:
    return [deliver(r, 0, offset, 1_800_000_000_000_000 + offset * 1000) for offset, r in enumerate(records)]


def apply(store: Store, log: list[Delivered]) -> None:
    assert store.apply(0, log, [], start=log[0].offset, end=log[-1].offset + 1) == []


def drifts(url: str, log: list[Delivered]) -> list[Drift]:
    check = TableCheck()
    for event in log:
        check.add(event)
    with snapshot(url) as tables:
        return [drift for table in TABLES for drift in check.compare(table.name, tables.rows(table))]


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        return connection.execute(query.encode()).fetchall()


numbers = st.integers(0, CHECKPOINTS - 1)
owners = st.integers(0, WORKFLOWS - 1)
records = st.one_of(
    st.builds(created, numbers, st.just(0)),
    st.builds(created, numbers, owners),
    st.builds(persisted, numbers, owners),
    st.builds(restored, numbers, owners),
    st.builds(failed, numbers, owners),
    st.builds(classified, numbers, owners),
    st.builds(expired, st.sets(numbers, min_size=1), owners),
    st.builds(expired, st.sets(numbers, min_size=1), st.just(0)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=st.lists(records, min_size=12, max_size=60),
    cuts=st.lists(st.integers(1, 60), max_size=6),
    copies=st.booleans(),
)
def test_whatever_expires_and_comes_again_the_tables_are_the_fold_of_the_log(
    database: str, made: list[Record], cuts: list[int], copies: bool
) -> None:
    with psycopg.connect(database, autocommit=True, options="-c search_path=kintsugi") as connection:
        names = ", ".join(table.name for table in TABLES)
        connection.execute(f"TRUNCATE positions, {names} CASCADE".encode())
    if copies:  # enough of them that the batch goes by COPY
        made = [*(created(CHECKPOINTS + n, 1) for n in range(COPY_ROWS_MIN)), *made]
    log = log_of(made)
    store = Store(database)
    store.claim(0)
    edges = sorted({0, *(c for c in cuts if c < len(log)), len(log)})
    for first, end in pairwise(edges):
        apply(store, log[first:end])
    store.close()
    assert drifts(database, log) == []


def test_what_expired_is_gone_and_nothing_refers_to_it(store: Store, database: str) -> None:
    log = log_of([created(0, 0), created(1, 0), failed(0, 0), failed(1, 0), restored(0, 0), expired({0}, 0)])
    apply(store, log)
    assert drifts(database, log) == []
    assert rows(database, "SELECT id::text FROM workflow_checkpoints") == [(checkpoint_id(1),)]
    assert rows(database, "SELECT id::text FROM workflow_state_history") == [(created(1, 0).event_id,)]
    found = rows(database, "SELECT checkpoint_id::text FROM workflow_errors")
    assert sorted(found, key=str) == sorted([(None,), (checkpoint_id(1),)], key=str)


def test_a_workflow_deletes_no_row_of_another(store: Store, database: str) -> None:
    log = log_of([created(0, 0), replace(expired({0}, 0), workflow_id=OWNERS[1])])
    apply(store, log)
    assert drifts(database, log) == []
    assert rows(database, "SELECT id::text FROM workflow_checkpoints") == [(checkpoint_id(0),)]


def test_one_that_comes_again_after_it_expired_has_its_row_again(store: Store, database: str) -> None:
    log = log_of([created(0, 0), expired({0}, 0), created(0, 0), created(0, 0)])
    assert [len(part) for part in parts(log)] == [2, 2]
    apply(store, log)
    assert drifts(database, log) == []
    assert rows(database, "SELECT log_offset FROM workflow_checkpoints") == [(2,)]
    assert store.claim(0) == len(log)


def test_a_batch_is_cut_only_where_something_comes_again() -> None:
    plain = log_of([created(0, 0), created(1, 0), failed(0, 0)])
    assert parts(plain) == [plain]
    expiring = log_of([created(0, 0), expired({0}, 0), expired({0}, 0), created(1, 0), persisted(2, 0)])
    assert parts(expiring) == [expiring]
    twice = log_of([expired({0}, 0), created(0, 0), expired({0}, 0), created(0, 0)])
    assert [len(part) for part in parts(twice)] == [1, 2, 1]


def test_a_row_in_memory_forgets_what_expired(store: Store, database: str) -> None:
    """The error's row is kept in memory between batches, with its reference; the checkpoint comes again meanwhile."""
    log = log_of([created(0, 0), failed(0, 0), expired({0}, 0), created(0, 0), classified(0, 0)])
    for event in log:
        apply(store, [event])
    assert drifts(database, log) == []
    assert rows(database, "SELECT checkpoint_id FROM workflow_errors") == [(None,)]


def test_the_engine_with_checkpoints_that_expire_leaves_tables_that_agree(store: Store, database: str) -> None:
    world = World(default_policy())
    service = Service(world)
    service.start("build")
    made = [service.checkpoint("build", saved) for _ in range(3)]
    service.fail("build", "TIMEOUT")
    service.emit(
        CheckpointsExpired,
        checkpoint_ids=(made[0].checkpoint_id,),
        event_ids=(made[0].event_id,),
        reason="max_checkpoints",
    )
    apply(store, world.log)
    assert drifts(database, world.log) == []
    assert len(rows(database, "SELECT id FROM workflow_checkpoints")) == 2
