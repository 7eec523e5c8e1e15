"""Digests and differences of two sets of tables on real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from engine.testing import World
from projections.catalog import TABLES
from projections.digest import Drift, by_bucket, differences, digest, row_digest, total
from projections.jsonb import jsonb_text
from projections.migrate import migrate
from projections.reader import snapshot
from projections.store import Store

FIRST, SECOND = "kintsugi", "kintsugi_second"


@pytest.fixture
def twice(database: str, world: World) -> Iterator[psycopg.Connection[Any]]:
    """Two sets of tables with the rows of one log, cut into different batches."""
    migrate(database, generation=SECOND)
    for generation, size in ((FIRST, len(world.log)), (SECOND, 7)):
        store = Store(database, generation=generation)
        store.claim(0)
        for start in range(0, len(world.log), size):
            part = world.log[start : start + size]
            store.apply(0, part, [], start=start, end=start + len(part))
        store.close()
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def alter(connection: psycopg.Connection[Any], text: str, *values: object) -> None:
    assert connection.execute(sql.SQL(text), values).rowcount == 1


def found(connection: psycopg.Connection[Any], **options: Any) -> list[Drift]:
    with connection.transaction():
        return differences(connection, FIRST, SECOND, TABLES, **options).shown


def test_postgres_and_this_program_come_to_one_digest(twice: psycopg.Connection[Any], database: str) -> None:
    in_sql = digest(twice, FIRST, TABLES)
    with snapshot(database) as tables:
        here = {table.name: total(row_digest(table, row) for row in tables.rows(table)) for table in TABLES}
    assert in_sql == here
    assert in_sql["workflow_errors"].rows == 3


def test_equal_tables_do_not_differ(twice: psycopg.Connection[Any]) -> None:
    assert digest(twice, FIRST, TABLES) == digest(twice, SECOND, TABLES)
    assert found(twice) == []
    rows = digest(twice, FIRST, TABLES)["workflow_checkpoints"].rows
    checkpoints = next(t for t in TABLES if t.name == "workflow_checkpoints")
    assert sum(part.rows for part in by_bucket(twice, FIRST, checkpoints).values()) == rows


def test_a_row_changed_by_hand_is_told_by_column(twice: psycopg.Connection[Any]) -> None:
    (key,) = twice.execute("SELECT id::text FROM kintsugi.workflow_errors ORDER BY id LIMIT 1").fetchone() or ("",)
    alter(twice, "UPDATE kintsugi_second.workflow_errors SET error_message = 'x', stack_trace = 'y' WHERE id = %s", key)
    told = found(twice)
    assert [(d.table, d.key, d.column, d.found) for d in told] == [
        ("workflow_errors", key, "error_message", "'x'"),
        ("workflow_errors", key, "stack_trace", "'y'"),
    ]


def test_rows_that_are_in_one_only_are_told(twice: psycopg.Connection[Any]) -> None:
    (key,) = twice.execute("SELECT id::text FROM kintsugi.workflow_state_history ORDER BY id LIMIT 1").fetchone() or (
        "",
    )
    alter(twice, "DELETE FROM kintsugi_second.workflow_state_history WHERE id = %s", key)
    missing = Drift(table="workflow_state_history", key=key, column="", expected="a row", found="no row")
    assert found(twice) == [missing]
    alter(twice, "DELETE FROM kintsugi.workflow_state_history WHERE id = %s", key)
    assert found(twice) == []
    alter(
        twice,
        "DELETE FROM kintsugi.workflow_state_history"
        " WHERE id = (SELECT min(id::text)::uuid FROM kintsugi.workflow_state_history)",
    )
    assert [(d.expected, d.found) for d in found(twice)] == [("no row", "a row")]


def test_an_empty_value_is_no_empty_text(twice: psycopg.Connection[Any]) -> None:
    (key,) = twice.execute("SELECT id::text FROM kintsugi.workflow_errors ORDER BY id LIMIT 1").fetchone() or ("",)
    alter(twice, "UPDATE kintsugi.workflow_errors SET reason = NULL, dependency = '' WHERE id = %s", key)
    alter(twice, "UPDATE kintsugi_second.workflow_errors SET reason = '', dependency = NULL WHERE id = %s", key)
    assert [(d.column, d.expected, d.found) for d in found(twice)] == [
        ("reason", "None", "''"),
        ("dependency", "''", "None"),
    ]


def test_a_reference_that_is_empty_in_one_is_counted_apart(twice: psycopg.Connection[Any]) -> None:
    changed = twice.execute(
        "UPDATE kintsugi_second.workflow_recovery_attempts SET error_id = NULL WHERE error_id IS NOT NULL"
    ).rowcount
    assert changed > 0
    with twice.transaction():
        both = differences(twice, FIRST, SECOND, TABLES)
    assert (both.equal, both.references, both.shown) == (True, {"workflow_recovery_attempts": changed}, [])


def test_workflows_that_are_left_out_are_not_compared(twice: psycopg.Connection[Any]) -> None:
    key, owner = twice.execute(
        "SELECT id::text, workflow_id::text FROM kintsugi.workflow_errors LIMIT 1"
    ).fetchone() or ("", "")
    alter(twice, "UPDATE kintsugi_second.workflow_errors SET status = 'x' WHERE id = %s", key)
    assert len(found(twice)) == 1
    assert found(twice, leaving_out=[owner]) == []


def test_all_rows_are_counted_and_few_told(twice: psycopg.Connection[Any]) -> None:
    twice.execute("UPDATE kintsugi_second.workflows SET reason = 'x'")
    with twice.transaction():
        told = differences(twice, FIRST, SECOND, TABLES, shown_max=2)
    assert told.rows == {"workflows": 6}
    assert len(told.shown) == 2


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda v: st.lists(v) | st.dictionaries(texts, v), max_leaves=20
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_jsonb_writes_what_is_expected_of_it(plain: psycopg.Connection[Any], value: object) -> None:
    text = orjson.dumps(value).decode()
    assert plain.execute("SELECT %s::jsonb::text", [text]).fetchone() == (jsonb_text(text),)


@pytest.fixture
def plain(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
