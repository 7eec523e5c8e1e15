"""`kintsugi projections verify` and `diff` on the real stack, while a projector writes."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from ops.stack import Addresses
from ops.tables_proof import TablesReport, prove
from projections.choice import rank

from .cli import Cli
from .kit import Role, Topics, wait_for
from .test_projector_role import healthy, query, status_of

Start = Callable[..., Role]


@pytest.fixture
def environment(own: Addresses) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def cli(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(environment, monkeypatch, capfd)


@pytest.fixture
def projector(start: Start) -> Role:
    return start("projector")


@pytest.fixture
def ids(topics: Topics, own: Addresses, projector: Role) -> list[str]:
    """Workflows whose rows are there; the projector goes on with what else is in the log."""
    made = [str(uuid.uuid4()) for _ in range(6)]
    for workflow_id in made:
        topics.put(*healthy(workflow_id))
    wait_for("all workflows", lambda: all(status_of(own, i) == "completed" for i in made), 60)
    return made


def check(own: Addresses, **options: Any) -> TablesReport:
    return prove(own, lambda what, done, total: None, **options)


def alter(own: Addresses, text: str, *values: object) -> None:
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        assert connection.execute(sql.SQL(text), values).rowcount == 1


def test_tables_are_proven_while_they_are_written(topics: Topics, own: Addresses, ids: list[str]) -> None:
    stop, written = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            written.append(str(uuid.uuid4()))
            topics.put(*healthy(written[-1]))
            stop.wait(0.05)  # the log is that of all tests

    writer = threading.Thread(target=write)
    writer.start()
    try:
        rows = []
        for _ in range(5):
            report = check(own)
            assert report.sound, report.drifts
            rows.append(report.rows["workflows"])
        wait_for("rows meanwhile", lambda: query(own, "SELECT count(*) FROM workflows")[0][0] > rows[0])
        assert check(own, memory_mb=1).sound
    finally:
        stop.set()
        writer.join()
    assert rows[0] >= len(ids)


def test_what_a_hand_did_is_listed_by_row_and_column(
    own: Addresses, ids: list[str], environment: dict[str, str], cli: Cli
) -> None:
    altered, gone, emptied, *_, extra = ids
    alter(own, "UPDATE workflows SET steps = steps + 1 WHERE id = %s", altered)
    alter(own, "DELETE FROM workflow_errors WHERE workflow_id = %s", gone)
    alter(own, "UPDATE workflow_errors SET stack_trace = NULL, reason = '' WHERE workflow_id = %s", emptied)
    foreign = str(uuid.uuid4())
    alter(
        own,
        "INSERT INTO workflow_state_history (id, workflow_id, version, step_id, status, state_data, timestamp,"
        " restore_count, created_at, source, state_version)"
        " SELECT %s, workflow_id, version, step_id, status, state_data, timestamp, restore_count, created_at, source,"
        " state_version FROM workflow_state_history WHERE workflow_id = %s",
        foreign,
        extra,
    )
    done = cli("projections", "verify", "--output", "json")
    assert done.code == 6
    told = {(d["table"], d["key"], d["column"]) for d in done.json["drifts"]}
    (error,) = query(own, "SELECT id::text FROM workflow_errors WHERE workflow_id = %s", emptied)[0]
    assert ("workflows", altered, "steps") in told
    assert ("workflow_state_history", foreign, "") in told
    assert ("workflow_errors", error, "reason") in told
    missing = [d for d in done.json["drifts"] if d["found"] == "no row"]
    assert [d["table"] for d in missing] == ["workflow_errors"]
    assert cli("projections", "verify", "--workflow", ids[3]).code == 0
    assert cli("projections", "verify", "--workflow", altered).code == 6


def test_a_sample_is_the_same_for_one_seed(own: Addresses, ids: list[str], projector: Role, cli: Cli) -> None:
    assert projector.stop() == 0  # else there are more to choose from each time
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        changed = connection.execute("UPDATE workflows SET steps = steps + 1 RETURNING id::text").fetchall()
    known = sorted((row[0] for row in changed), key=lambda workflow_id: rank(7, workflow_id))
    drawn = []
    for _ in range(2):
        done = cli("projections", "verify", "--sample", "20", "--seed", "7", "--output", "json")
        assert done.code == 6
        drawn.append({d["key"] for d in done.json["drifts"]})
        # Incidents of other tests are drawn, too, and have no such row.
        assert 1 <= len(drawn[-1]) == done.json["rows"]["workflows"] <= 20
    assert drawn == [set(known[: len(drawn[0])])] * 2
    assert cli("projections", "verify", "--sample", "2", "--workflow", known[0]).code == 2


def test_a_workflow_gone_from_all_tables_is_sampled_from_the_log(
    own: Addresses, ids: list[str], projector: Role
) -> None:
    assert projector.stop() == 0  # else there are more to choose from than were counted
    known = len(query(own, "SELECT id FROM workflows"))
    for table in ("workflow_errors", "workflow_state_history", "workflow_checkpoints"):
        alter(own, f"DELETE FROM {table} WHERE workflow_id = %s", ids[0])
    alter(own, "DELETE FROM workflows WHERE id = %s", ids[0])
    report = check(own, sample=known + 1_000)  # incidents and breakers of other tests are drawn, too, and have no row
    assert report.rows["workflows"] == known
    assert report.counts == {f"table: {name}": 1 for name in (
        "workflows", "workflow_errors", "workflow_state_history", "workflow_checkpoints"
    )}  # fmt: skip


def test_generations_are_compared_where_both_stand(own: Addresses, ids: list[str], cli: Cli) -> None:
    assert cli("projections", "diff", "kintsugi", "kintsugi_g9").code == 1
    assert cli("projections", "diff", "kintsugi", "public").code == 2
    assert cli("projections", "diff", "kintsugi", "kintsugi").code == 0
