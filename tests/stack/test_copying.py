"""Batches large enough for COPY, on real Postgres: what is written is what a fold of the log says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from engine.events import Delivered
from engine.inspection import deliver
from engine.policy import default_policy
from engine.testing import Service, World
from ops.stack import Addresses
from projections.catalog import TABLES
from projections.copying import COPY_ROWS_MIN
from projections.reader import snapshot
from projections.store import Store
from projections.verify import Drift, TableCheck
from projections.wire import KINDS, Array, ArrayDumper, array
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.dead_letters import STAGE_APPLY
from schemas.records.events import CheckpointCreated, StateRestored, StepSpec

#: Texts that mean something to COPY, to JSON or to nobody.
TEXTS = ("\\N", "\\", "\\.", "a\tb", "c\nd", "e\rf", "\\t", '"quoted"', "", "é漢😀", "\\x41", "g\\\\h", "\x7f")


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    made.claim(0)
    yield made
    made.close()


def state(workflow_id: str, step_id: str, text: str) -> dict[str, Any]:
    data = canonical_bytes({"workflow_id": workflow_id, "step_id": step_id, "status": "running", "text": text})
    digest = digest_of(data)
    return {
        "codec": "identity",
        "size_bytes": len(data),
        "digest": digest,
        "chain_digest": chain_digest_of(None, digest),
        "state": data,
    }


def checkpoints(count: int) -> World:
    """A workflow with so many checkpoints, each with a text from TEXTS in its step, its metadata and its state."""
    world = World(default_policy())
    service = Service(world, (StepSpec(step_id="build"),))
    for number in range(count):
        text = TEXTS[number % len(TEXTS)]
        made = service.build(
            CheckpointCreated,
            checkpoint_id=world.new_id(),
            step_id=f"s{text}",
            checkpoint_type="manual",
            sequence=number + 1,
            state_version="1",
            status="running",
            metadata=text,
            **state(service.workflow_id, f"s{text}", text),
        )
        world.append(made)
    return world


def again(events: list[Delivered], offset: int, **changed: Any) -> list[Delivered]:
    """The same events further down the log."""
    return [
        deliver(replace(event.record, **changed), 0, offset + number, event.timestamp_us)
        for number, event in enumerate(events)
    ]


def drifts(url: str, log: list[Delivered]) -> list[Drift]:
    check = TableCheck()
    for event in log:
        check.add(event)
    with snapshot(url) as tables:
        return [drift for table in TABLES for drift in check.compare(table.name, tables.rows(table))]


def apply(store: Store, events: list[Delivered]) -> list[Any]:
    return list(store.apply(0, events, [], start=events[0].offset, end=events[-1].offset + 1))


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        return connection.execute(query.encode()).fetchall()


def test_every_text_comes_through(store: Store, database: str) -> None:
    log = checkpoints(3 * len(TEXTS)).log
    assert apply(store, log) == []
    assert drifts(database, log) == []


def test_an_event_that_comes_again_later_leaves_its_rows_as_they_are(store: Store, database: str) -> None:
    log = checkpoints(2 * COPY_ROWS_MIN).log
    apply(store, log)
    copies = again(log, len(log))
    assert apply(store, copies) == []
    assert drifts(database, log) == []
    assert store.claim(0) == 2 * len(log)
    assert rows(database, "SELECT max(log_offset) FROM workflow_checkpoints") == [(len(log) - 1,)]


def test_after_rows_that_were_there_new_ones_are_still_written(store: Store, database: str) -> None:
    log = checkpoints(4 * COPY_ROWS_MIN).log
    half = len(log) // 2
    apply(store, log[:half])
    apply(store, again(log[:half], half))
    later = again(log[half:], 2 * half)
    assert apply(store, later) == []
    assert drifts(database, [*log[:half], *later]) == []


def test_two_checkpoints_with_one_id_each_keep_their_own_version_of_the_state(store: Store, database: str) -> None:
    world = checkpoints(2 * COPY_ROWS_MIN)
    first = world.log[-1].record
    assert isinstance(first, CheckpointCreated)
    other = state(first.workflow_id, "other", "another state")
    world.append(replace(first, event_id=world.new_id(), sequence=first.sequence + 1, step_id="other", **other))
    assert apply(store, world.log) == []
    assert drifts(database, world.log) == []
    query = "SELECT state_data->>'text' FROM workflow_state_history ORDER BY version::int DESC LIMIT 2"
    assert rows(database, query) == [("another state",), (TEXTS[(2 * COPY_ROWS_MIN - 1) % len(TEXTS)],)]


def test_a_state_restored_from_a_checkpoint_that_is_not_there_refers_to_nothing(store: Store, database: str) -> None:
    world = checkpoints(2 * COPY_ROWS_MIN)
    known = world.log[1].record
    assert isinstance(known, CheckpointCreated)
    for checkpoint_id in (known.checkpoint_id, world.new_id()):
        kept = state(known.workflow_id, "build", "restored")
        del kept["chain_digest"]
        world.append(
            StateRestored(
                event_id=world.new_id(),
                workflow_id=known.workflow_id,
                workflow_type=known.workflow_type,
                occurred_at=known.occurred_at,
                producer="test",
                checkpoint_id=checkpoint_id,
                step_id="build",
                state_version="1",
                status="running",
                restored_at=known.occurred_at,
                restore_count=1,
                **kept,
            )
        )
    assert apply(store, world.log) == []
    assert drifts(database, world.log) == []
    found = rows(database, "SELECT restored_from::text FROM workflow_state_history WHERE source = 'restored'")
    assert sorted(found, key=str) == sorted([(known.checkpoint_id,), (None,)], key=str)


@pytest.mark.parametrize("changed", [{"size_bytes": 2**31}, {"step_id": "x" * 300}])
def test_a_row_that_postgres_refuses_is_found_and_those_behind_it_wait(
    store: Store, database: str, changed: dict[str, Any]
) -> None:
    log = checkpoints(2 * COPY_ROWS_MIN).log
    middle = len(log) // 2
    bad = replace(log[middle], record=replace(log[middle].record, **changed))
    refused = apply(store, [*log[:middle], bad, *log[middle + 1 :]])
    assert [(letter.offset, letter.stage) for letter in refused] == [(middle, STAGE_APPLY)]
    assert drifts(database, log[:middle]) == []
    assert store.parked(0).events == len(log) - middle


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", ["", "a", None, "é漢😀", '{"a",\\}']),
        ("uuid", ["6b696e74-7375-5769-8000-676f6c646a6f", None]),
        ("jsonb", ['{"a": [1, 2.5, null]}', None, '"\\u00e9"']),
        ("time", [0, 1_800_000_000_123_456, None, 253_402_300_799_000_000]),
        ("int", [-(2**31), 0, 2**31 - 1, None]),
        ("bigint", [-(2**63), 2**63 - 1, None]),
        ("bool", [True, False, None]),
        ("text", []),
    ],
)
def test_arrays_reach_postgres_as_they_are(addresses: Addresses, kind: str, values: list[Any]) -> None:
    shown = {
        "uuid": "x::text",
        "jsonb": "x::text",
        "time": "(extract(epoch FROM x) * 1000000)::bigint",
    }.get(kind, "x")
    with psycopg.connect(addresses.postgres) as connection:
        connection.adapters.register_dumper(Array, ArrayDumper)
        query = f"SELECT {shown} FROM unnest(%b::{KINDS[kind].type}[]) WITH ORDINALITY AS t(x, n) ORDER BY n"
        found = connection.execute(query.encode(), [array(KINDS[kind], values)]).fetchall()
    assert [row[0] for row in found] == [v.replace("\\u00e9", "é") if isinstance(v, str) else v for v in values]


def test_a_value_beyond_its_type_is_the_error_that_postgres_would_give() -> None:
    for kind, value in (("int", 2**31), ("bigint", 2**63), ("uuid", "no uuid"), ("text", "\ud800")):
        with pytest.raises(psycopg.DataError):
            array(KINDS[kind], [value])
