"""Poison on real Postgres: one workflow waits in order, the others flow, and an operator lets it go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from engine.events import Delivered
from engine.inspection import deliver
from engine.policy import default_policy
from engine.testing import Service, World
from projections import parking
from projections import store as storing
from projections.release import Released, Releasing
from projections.store import Store
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import FencedError, ParkingFullError, RetriableError
from schemas.log_record import LogRecord
from schemas.records.events import StepSpec, WorkflowCompleted, WorkflowErrorOccurred

from .test_store import count, drifts

_BROKEN = "ALTER TABLE kintsugi.workflow_errors ADD CONSTRAINT no_boom CHECK (error_code <> 'BOOM')"
_MENDED = "ALTER TABLE kintsugi.workflow_errors DROP CONSTRAINT no_boom"


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    made.claim(0)
    yield made
    made.close()


@pytest.fixture
def releasing(database: str) -> Iterator[Releasing]:
    made = Releasing(database)
    yield made
    made.close()


def run(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def rows(url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options="-c search_path=kintsugi") as connection:
        return connection.execute(query.encode(), values).fetchall()


def read(record: LogRecord) -> Delivered:
    found = admit(Codec(), record.key, record.value)
    assert not isinstance(found, Unknown)
    return deliver(found, record.partition, record.offset, record.timestamp_ms * 1000)


def mixed(*codes: str) -> tuple[list[Delivered], list[str]]:
    """A workflow for each code, all at once in the log; each fails with its code in the middle, then completes."""
    world = World(default_policy())
    services = [Service(world, (StepSpec(step_id="build"),)) for _ in codes]
    for service in services:
        service.start("build")
    for service, code in zip(services, codes, strict=True):
        service.fail("build", code)
    for service in services:
        service.emit(WorkflowCompleted)
    return world.log, [service.workflow_id for service in services]


def of(log: list[Delivered], workflow_id: str, code: str = "BOOM") -> list[Delivered]:
    """The events of a workflow from its poison on."""
    own = [event for event in log if event.record.workflow_id == workflow_id]
    first = next(
        n for n, e in enumerate(own) if isinstance(e.record, WorkflowErrorOccurred) and e.record.error_code == code
    )
    return own[first:]


def apply(store: Store, log: list[Delivered], start: int = 0, end: int | None = None) -> list[int]:
    end = len(log) if end is None else end
    return [letter.offset for letter in store.apply(0, log[start:end], [], start=start, end=end)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_one_workflow_waits_in_order_and_the_others_flow(store: Store, database: str, size: int) -> None:
    run(database, _BROKEN)
    log, ids = mixed("FINE", "BOOM", "FINE")
    refused: list[int] = []
    for start in range(0, len(log), size):
        refused += apply(store, log, start, min(start + size, len(log)))
    waiting = of(log, ids[1])
    assert refused == [waiting[0].offset]
    assert [o for (o,) in rows(database, "SELECT log_offset FROM parked_events ORDER BY 1")] == [
        event.offset for event in waiting
    ]
    assert dict(rows(database, "SELECT id::text, status FROM workflows")) == {
        ids[0]: "completed",
        ids[1]: "running",
        ids[2]: "completed",
    }
    assert store.parked(0).workflows == 1
    assert store.parked(0).events == len(waiting)
    assert drifts(database, log) == []


def test_a_new_owner_knows_who_is_parked(store: Store, database: str) -> None:
    run(database, _BROKEN)
    log, ids = mixed("BOOM", "FINE")
    poison = of(log, ids[0])[0].offset
    apply(store, log, 0, poison + 1)
    run(database, _MENDED)
    successor = Store(database)
    assert successor.claim(0) == poison + 1
    assert successor.apply(0, log[poison + 1 :], [], start=poison + 1, end=len(log)) == []
    assert successor.parked(0).events == len(of(log, ids[0]))
    successor.close()
    assert drifts(database, log) == []


def test_after_a_fix_a_retry_applies_the_queue_and_fences_the_owner(
    store: Store, releasing: Releasing, database: str
) -> None:
    run(database, _BROKEN)
    log, ids = mixed("FINE", "BOOM")
    apply(store, log, 0, len(log) - 1)
    waiting = len(of(log[:-1], ids[1]))
    failed = releasing.release_workflow(0, ids[1], read)
    assert failed is not None and (failed.applied, failed.waiting, failed.reason) == (0, waiting, "refused_by_postgres")
    run(database, _MENDED)
    tried = releasing.release_workflow(0, ids[1], read, dry_run=True)
    assert tried is not None and (tried.applied, tried.waiting) == (waiting, 0)
    assert count(database, "parked_events") == waiting
    done = releasing.release_workflow(0, ids[1], read)
    assert done == tried
    assert (
        count(database, "parked_events") == count(database, "parked_workflows") == count(database, "dead_letters") == 0
    )
    assert drifts(database, log) == []
    with pytest.raises(FencedError):
        apply(store, log, len(log) - 1)
    assert store.claim(0) == len(log) - 1
    assert apply(store, log, len(log) - 1) == []
    assert drifts(database, log) == []
    assert releasing.release_workflow(0, ids[1], read) is None


def test_a_retry_goes_as_far_as_it_can(store: Store, releasing: Releasing, database: str) -> None:
    run(database, _BROKEN)
    log, (workflow_id,) = mixed("BOOM")
    apply(store, log)
    run(database, _MENDED)
    run(database, "ALTER TABLE kintsugi.workflows ADD CONSTRAINT stays CHECK (status <> 'completed')")
    found = releasing.release_workflow(0, workflow_id, read)
    assert found is not None and found.applied > 0 and found.waiting > 0
    assert isinstance(log[found.offset or 0].record, WorkflowCompleted)
    assert drifts(database, log) == []
    assert rows(database, "SELECT first_offset, retries FROM parked_workflows") == [(found.offset, 1)]


@pytest.mark.parametrize(("discard", "status"), [(1, "completed"), (None, "running")])
def test_what_is_discarded_is_kept_aside_and_the_tables_agree(
    store: Store, releasing: Releasing, database: str, discard: int | None, status: str
) -> None:
    run(database, _BROKEN)
    log, (workflow_id,) = mixed("BOOM")
    apply(store, log)
    waiting = of(log, workflow_id)
    found = releasing.release_workflow(0, workflow_id, read, discard=discard, why="by ann: beyond repair")
    assert isinstance(found, Released) and (found.waiting, found.discarded) == (0, discard or len(waiting))
    assert rows(database, "SELECT log_offset, reason, detail FROM dead_letters ORDER BY 1") == [
        (event.offset, "discarded", "by ann: beyond repair") for event in waiting[: discard or len(waiting)]
    ]
    assert rows(database, "SELECT status FROM workflows") == [(status,)]
    assert drifts(database, log) == []


def test_a_fold_that_fails_parks_the_workflow_without_quoting_it(
    store: Store, releasing: Releasing, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, ids = mixed("FINE", "BOOM")
    fold = storing.fold

    def failing(rows: Any, events: Any, plan: Any) -> Any:
        for event in events:
            if getattr(event.record, "error_code", "") == "BOOM":
                raise KeyError("a secret of the record")
        return fold(rows, events, plan)

    monkeypatch.setattr(storing, "fold", failing)
    (letter,) = store.apply(0, log, [], start=0, end=len(log))
    assert letter.reason == "not_applicable"
    assert letter.detail.endswith(": KeyError")
    assert rows(database, "SELECT status FROM workflows WHERE id = %s", ids[0]) == [("completed",)]
    assert drifts(database, log) == []
    monkeypatch.undo()
    done = releasing.release_workflow(0, ids[1], read)
    assert done is not None and done.waiting == 0
    assert drifts(database, log) == []


def test_the_bytes_that_wait_are_those_of_the_log(store: Store, database: str) -> None:
    run(database, _BROKEN)
    log, (workflow_id,) = mixed("BOOM")

    def raw(event: Delivered) -> LogRecord:
        return LogRecord(0, event.offset, 7, 2, b"key", b"bytes %d" % event.offset, (("h", b"\x00"), ("n", None)))

    store.apply(0, log, [], start=0, end=len(log), raw=raw)
    found = rows(database, "SELECT record_value FROM parked_events ORDER BY log_offset")
    assert found == [(b"bytes %d" % event.offset,) for event in of(log, workflow_id)]


@pytest.mark.parametrize(
    ("bound", "most"), [("PARKED_EVENTS_MAX", 1), ("PARKED_WORKFLOWS_MAX", 1), ("PARKED_BYTES_MAX", 1)]
)
def test_at_a_bound_the_partition_stops_and_goes_on_when_there_is_room(
    store: Store, releasing: Releasing, database: str, bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, _BROKEN)
    log, _ = mixed("BOOM", "BOOM", "FINE")
    monkeypatch.setattr(parking, bound, most)
    with pytest.raises(ParkingFullError, match="the partition stops") as caught:
        apply(store, log)
    assert "kintsugi dlq" in str(caught.value.hint)
    stands = store.claim(0)
    assert stands is not None and stands < len(log)
    assert drifts(database, log) == []
    with pytest.raises(ParkingFullError):
        apply(store, log, stands)
    monkeypatch.undo()
    run(database, _MENDED)
    position = store.claim(0) or 0
    apply(store, log, position)
    for (workflow_id,) in rows(database, "SELECT workflow_id::text FROM parked_workflows"):
        assert releasing.release_workflow(0, workflow_id, read) is not None
    assert drifts(database, log) == []
    assert count(database, "parked_events") == 0


@pytest.mark.parametrize("when", ["INSERT INTO parked_workflows", "INSERT INTO parked_events"])
def test_a_connection_that_ends_while_it_parks_parks_nobody(
    store: Store, database: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS.md row 21."""
    run(database, _BROKEN)
    log, _ = mixed("FINE", "BOOM")
    statements: Callable[..., Any] = parking.statements

    def ended(*arguments: Any) -> Any:
        for statement, values in statements(*arguments):
            if when in statement:
                run(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'kintsugi-projector' AND datname = current_database()")  # fmt: skip
            yield statement, values

    monkeypatch.setattr(parking, "statements", ended)
    with pytest.raises(RetriableError) as caught:
        apply(store, log)
    assert not isinstance(caught.value, ParkingFullError)
    assert count(database, "parked_workflows") == count(database, "parked_events") == 0
    monkeypatch.undo()
    stands = store.claim(0) or 0
    assert len(apply(store, log, stands)) == 1
    assert drifts(database, log) == []


@pytest.mark.parametrize("state", ["40001", "40P01", "53100", "57P01", "25006"])
def test_what_is_wrong_with_the_server_parks_nobody(store: Store, database: str, state: str) -> None:
    run(database, f"""
        CREATE FUNCTION kintsugi.fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'server' USING ERRCODE = '{state}'; END $$;
        CREATE TRIGGER fails BEFORE INSERT ON kintsugi.workflow_errors EXECUTE FUNCTION kintsugi.fail()""")  # fmt: skip
    log, _ = mixed("FINE")
    with pytest.raises(RetriableError):
        apply(store, log)
    run(database, "DROP TRIGGER fails ON kintsugi.workflow_errors")
    assert store.claim(0) is None
    assert apply(store, log) == []
    assert count(database, "parked_workflows") == 0


def test_a_value_too_large_for_postgres_is_the_records_fault(store: Store, database: str) -> None:
    """SQLSTATE class 54, which psycopg counts among troubles of the server."""
    run(database, """
        CREATE FUNCTION kintsugi.fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.error_code = 'BOOM' THEN RAISE EXCEPTION 'large' USING ERRCODE = '54000'; END IF;
        RETURN NEW; END $$;
        CREATE TRIGGER fails BEFORE INSERT ON kintsugi.workflow_errors FOR EACH ROW EXECUTE FUNCTION kintsugi.fail()
    """)  # fmt: skip
    log, ids = mixed("FINE", "BOOM")
    assert apply(store, log) == [of(log, ids[1])[0].offset]
    assert drifts(database, log) == []


def test_a_failure_of_a_moment_parks_nobody(store: Store, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = mixed("BOOM")
    fold, left = storing.fold, [len(log).bit_length() + 1]

    def failing(rows: Any, events: Any, plan: Any) -> Any:
        if left[0] and any(getattr(e.record, "error_code", "") == "BOOM" for e in events):
            left[0] -= 1
            raise psycopg.errors.ForeignKeyViolation("what it refers to was deleted at that moment")
        return fold(rows, events, plan)

    monkeypatch.setattr(storing, "fold", failing)
    last = replace(log[-1])
    assert apply(store, [*log[:-1], last]) == []
    assert left[0] < len(log).bit_length() + 1
    assert drifts(database, log) == []
