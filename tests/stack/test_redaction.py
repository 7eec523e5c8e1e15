"""Fields that the policy names are in no table, on real Postgres, and the tables still are the fold of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from engine.events import Delivered
from engine.policy import default_policy
from engine.testing import Service, World
from ops.stack import Addresses
from projections.catalog import TABLES
from projections.copying import COPY_ROWS_MIN
from projections.reader import snapshot
from projections.release import Releasing
from projections.store import Store
from projections.verify import Drift, TableCheck
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.records.events import CheckpointCreated, StatePersisted, WorkflowErrorOccurred
from schemas.redaction import REDACTED, Redaction

from .database import own_database
from .test_parking import read

CANARY = "canary-4711"
PATHS = ("data.customer.email", "data.cards[*].number", "**.password")


@pytest.fixture
def database(addresses: Addresses) -> Iterator[str]:
    with own_database(addresses.postgres) as url:
        yield url


def secret(workflow_id: str, step_id: str) -> dict[str, object]:
    data = {
        "customer": {"email": CANARY, "name": "Ann"},
        "cards": [{"number": CANARY, "kind": "visa"}],
        "deep": [{"password": {"was": CANARY}}],
    }
    kept = canonical_bytes({"workflow_id": workflow_id, "step_id": step_id, "status": "running", "data": data})
    digest = digest_of(kept)
    return {
        "codec": "identity",
        "size_bytes": len(kept),
        "digest": digest,
        "chain_digest": chain_digest_of(None, digest),
        "state": kept,
    }


def log_of(checkpoints: int) -> list[Delivered]:
    world = World(default_policy())
    service = Service(world)
    service.start("build")
    for _ in range(checkpoints):
        service.checkpoint("build", secret)
    kept = {k: v for k, v in secret(service.workflow_id, "build").items() if k != "chain_digest"}
    service.emit(StatePersisted, step_id="build", version="7", state_version="1", status="running", **kept)
    service.emit(
        WorkflowErrorOccurred,
        error_id=world.new_id(),
        step_id="build",
        error_code="Boom",
        error_message="it failed",
        context=f'{{"user": {{"password": "{CANARY}"}}, "n": 1}}',
        detected_by="service",
    )
    return world.log


def write(url: str, log: Sequence[Delivered], *paths: str) -> None:
    store = Store(url, redaction=Redaction(paths))
    start = store.claim(0) or 0
    part = log[start:]
    store.apply(0, part, [], start=start, end=log[-1].offset + 1)
    store.close()


def change(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def everything(url: str) -> str:
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        return "".join(str(connection.execute(f"SELECT * FROM {table.name}".encode()).fetchall()) for table in TABLES)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        return connection.execute(query.encode()).fetchall()


def drifts(url: str, log: Sequence[Delivered]) -> list[Drift]:
    with snapshot(url) as tables:
        check = TableCheck(beginnings=tables.beginnings(), redactions=tables.redactions())
        position, waiting = tables.positions()[0], tables.not_applied()
        for event in log:
            if event.offset < position and (0, event.offset) not in waiting:
                check.add(event)
        return [drift for table in TABLES for drift in check.compare(table.name, tables.rows(table))]


@pytest.mark.parametrize("checkpoints", [2, 2 * COPY_ROWS_MIN], ids=["by one statement", "by COPY"])
def test_what_the_policy_names_is_in_no_table(database: str, checkpoints: int) -> None:
    log = log_of(checkpoints)
    write(database, log, *PATHS)
    assert CANARY not in everything(database)
    assert drifts(database, log) == []
    shown = rows(database, "SELECT DISTINCT state_data->'data', redacted FROM workflow_checkpoints")
    hidden = {
        "customer": {"email": REDACTED, "name": "Ann"},
        "cards": [{"number": REDACTED, "kind": "visa"}],
        "deep": [{"password": REDACTED}],
    }
    assert shown == [(hidden, True)]
    assert rows(database, "SELECT DISTINCT state_data->'data', redacted FROM workflow_state_history") == shown
    context = rows(database, "SELECT context FROM workflow_errors WHERE error_code = 'Boom'")
    assert context == [({"user": {"password": REDACTED}, "n": 1},)]


def test_without_paths_nothing_is_hidden_and_no_row_says_so(database: str) -> None:
    log = log_of(2)
    write(database, log)
    assert CANARY in everything(database)
    assert rows(database, "SELECT DISTINCT redacted FROM workflow_checkpoints") == [(False,)]
    assert rows(database, "SELECT count(*) FROM redactions") == [(0,)]
    assert drifts(database, log) == []


def test_a_list_that_changes_holds_from_then_on(database: str) -> None:
    log = log_of(9)
    for end, paths in ((3, ()), (5, PATHS), (7, ("data.customer",)), (len(log), ())):
        write(database, log[:end], *paths)
        assert drifts(database, log) == []
    found = rows(database, "SELECT first_offset, paths FROM redactions ORDER BY first_offset")
    assert found == [(3, list(PATHS)), (5, ["data.customer"]), (7, [])]


def test_a_retry_hides_what_was_hidden_when_the_event_was_read(database: str) -> None:
    """Its neighbours' rows do, and so do a proof and a rebuild; the policy of the day of the retry is another one."""
    log = log_of(3)
    broken = next(event for event in log if isinstance(event.record, CheckpointCreated))
    change(database, "ALTER TABLE kintsugi.workflow_checkpoints ADD CONSTRAINT none CHECK (id IS NULL) NOT VALID")
    cut = broken.offset + 1
    for end, paths in ((cut, PATHS), (cut + 1, ()), (len(log), PATHS[1:])):
        write(database, log[:end], *paths)
    assert rows(database, "SELECT count(*) FROM parked_events") == [(len(log) - broken.offset,)]
    assert drifts(database, log) == []
    change(database, "ALTER TABLE kintsugi.workflow_checkpoints DROP CONSTRAINT none")
    releasing = Releasing(database)
    done = releasing.release_workflow(0, broken.record.workflow_id, read)
    releasing.close()
    assert done is not None and done.waiting == 0
    assert drifts(database, log) == []
    shown = rows(database, "SELECT state_data #>> '{data,customer,email}' FROM workflow_checkpoints ORDER BY sequence")
    assert shown == [(REDACTED,), (CANARY,), (CANARY,)]


def test_a_list_that_changes_before_anything_was_written_counts_once(database: str) -> None:
    log = log_of(1)
    for paths in (PATHS, ("data.customer",), PATHS[:1]):
        store = Store(database, redaction=Redaction(paths))
        assert store.claim(0) is None
        store.close()
    write(database, log, *PATHS[:1])
    assert rows(database, "SELECT first_offset, paths FROM redactions") == [(0, list(PATHS[:1]))]
    assert drifts(database, log) == []
