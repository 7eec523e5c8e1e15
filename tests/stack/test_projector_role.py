"""The projector role as a process, on the real stack: its tables always are the fold of the log."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engine.policy import default_policy
from ops import stack
from ops.stack import Addresses
from ops.verify import Report
from ops.verify import verify as check
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.records import Record
from schemas.records.events import CheckpointCreated, StepCompleted, WorkflowCompleted, WorkflowErrorOccurred

from .kit import Role, Topics, build, failing, wait_for
from .starter import command

Start = Callable[..., Role]
#: after_append and after_flush lie between after_write and the commit, as the tables are written by `handle`.
CRASH_POINTS = ("after_poll", "after_fold", "after_write", "after_append", "after_flush", "after_commit")


@pytest.fixture
def environment(own: Addresses) -> dict[str, str]:
    return {**os.environ, **own.environment()}


def query(own: Addresses, text: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        return connection.execute(text.encode(), parameters).fetchall()


def tables_agree(own: Addresses) -> Report:
    return check(own, default_policy(), lambda what, done, total: None, only="tables")


def status_of(own: Addresses, workflow_id: str) -> str | None:
    found = query(own, "SELECT status FROM workflows WHERE id = %s", workflow_id)
    return found[0][0] if found else None


def healthy(workflow_id: str, **more: object) -> list[Record]:
    """A workflow that checkpoints, perhaps with more in its state, fails once by report, and completes."""
    started, step, error = failing(workflow_id, code="Boom")
    state = {"workflow_id": workflow_id, "step_id": "build", "status": "running", "data": {"n": 1.5, **more}}
    data = canonical_bytes(state)
    digest = digest_of(data)
    checkpoint = build(
        CheckpointCreated,
        workflow_id,
        checkpoint_id=str(uuid.uuid4()),
        step_id="build",
        checkpoint_type="step_start",
        sequence=1,
        state_version="1",
        codec="identity",
        size_bytes=len(data),
        digest=digest,
        chain_digest=chain_digest_of(None, digest),
        status="running",
        state=data,
    )
    run_id = step.step_run_id  # type: ignore[attr-defined]
    done = build(StepCompleted, workflow_id, step_id="build", step_run_id=run_id, duration_ms=1)
    return [started, step, checkpoint, error, done, build(WorkflowCompleted, workflow_id)]


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_any_point_the_tables_are_the_fold_of_the_log(
    topics: Topics, own: Addresses, start: Start, point: str
) -> None:
    """FAULTS.md row 1."""
    ids: list[str] = []
    for nth in (1, 3):
        role = start("projector", crash_at=f"{point}:{nth}")
        wait_for("partitions", lambda role=role: "partitions assigned" in role.log_file.read_text() or None)
        while role.process.poll() is None:
            ids.append(str(uuid.uuid4()))
            topics.put(*healthy(ids[-1]))
            time.sleep(0.02)
        assert role.process.returncode == -signal.SIGKILL
    role = start("projector")
    role.wait_log("partitions assigned")
    wait_for("all workflows", lambda: all(status_of(own, i) == "completed" for i in ids))
    wait_for("no lag", lambda: role.metric("kintsugi_consumer_lag_records") == 0)
    assert role.stop() == 0
    report = tables_agree(own)
    assert report.sound, report
    assert report.rows["workflows"] >= len(ids)


def test_killed_again_and_again_with_recovery_beside_it_nothing_is_lost(
    topics: Topics, own: Addresses, start: Start
) -> None:
    dice = random.Random(7)
    ids: list[str] = []
    for _ in range(4):
        roles = [start("recovery"), start("projector"), start("projector")]
        for role in roles:
            role.wait_log("started")
        end_s = time.monotonic() + dice.uniform(0.2, 3.0)
        while time.monotonic() < end_s:
            ids.append(str(uuid.uuid4()))
            topics.put(*healthy(ids[-1]))
            time.sleep(0.05)
        for role in roles:
            role.kill()
    recovery, projector = start("recovery"), start("projector")
    wait_for("all workflows", lambda: all(status_of(own, i) == "completed" for i in ids), 60)
    wait_for("no lag", lambda: recovery.metric("kintsugi_consumer_lag_records") == 0)
    wait_for("no open error", lambda: not query(
        own, "SELECT 1 FROM workflow_errors WHERE status = 'open' AND workflow_id = ANY(%s::uuid[])", ids
    ))  # fmt: skip
    assert recovery.stop() == 0
    wait_for("no lag", lambda: projector.metric("kintsugi_consumer_lag_records") == 0)
    assert projector.stop() == 0
    report = tables_agree(own)
    assert report.sound, report


def test_bad_records_are_set_aside_as_they_are_and_the_partition_moves_on(
    topics: Topics, own: Addresses, start: Start
) -> None:
    role = start("projector")
    role.wait_log("partitions assigned")
    wait_for("no lag", lambda: role.metric("kintsugi_consumer_lag_records") == 0)
    before = role.metric("kintsugi_dlq_records_total")
    keys = {
        reason: str(uuid.uuid4()) for reason in ("empty", "wrong_magic", "malformed", "unknown_schema_id", "wrong_key")
    }
    good = topics.codec.encode(failing(str(uuid.uuid4()))[0])
    values: dict[str, bytes | None] = {
        "empty": None,
        "wrong_magic": b"\x07junk",
        "malformed": good[:-2],
        "unknown_schema_id": b"\x00\x77\x00\x00\x00" + good[5:],
        "wrong_key": good,
    }
    for reason, key in keys.items():
        topics.raw(key.encode(), values[reason], [("own", b"\xff\x00")])
        topics.put(*healthy(key))  # behind it, in the same partition
    wait_for("those behind", lambda: all(status_of(own, key) == "completed" for key in keys.values()))
    for reason, key in keys.items():
        found = query(own, "SELECT reason, record_value, stage FROM dead_letters WHERE record_key = %s", key.encode())
        assert found == [(reason, values[reason], "VALUE_CONVERTER")]
    assert role.metric("kintsugi_dlq_records_total") == before + len(keys)
    assert role.stop() == 0
    assert tables_agree(own).sound


def test_what_avro_takes_and_postgres_refuses_is_kept_or_set_aside(
    topics: Topics, own: Addresses, start: Start
) -> None:
    """FAULTS.md row 18: U+0000, NaN, huge numbers, duplicate keys; a number that fits no column."""
    role = start("projector")
    role.wait_log("partitions assigned")
    contexts = {
        "nul": '{"a": "x\\u0000y"}',
        "nan": '{"a": NaN}',
        "huge": '{"a": 1e400}',
        "digits": '{"a": ' + "9" * 300 + "}",
        "surrogate": '{"a": "\\ud800"}',
        "twice": '{"a": 1, "a": 2}',
        "none": "not json at all",
    }
    ids = {name: str(uuid.uuid4()) for name in contexts}
    for name, workflow_id in ids.items():
        started, step, error = failing(workflow_id)
        assert isinstance(error, WorkflowErrorOccurred)
        topics.put(started, step, replace(error, context=contexts[name], error_message="a\x00b"))
        topics.put(build(WorkflowCompleted, workflow_id))
    too_big = str(uuid.uuid4())
    *before, checkpoint, error, done, completed = healthy(too_big)
    assert isinstance(checkpoint, CheckpointCreated)
    topics.put(*before, replace(checkpoint, size_bytes=2**40), error, done, completed)
    everyone = [*ids.values(), too_big]
    wait_for("all", lambda: all(status_of(own, i) == "completed" for i in everyone))
    rows = query(
        own, "SELECT error_message FROM workflow_errors WHERE workflow_id = ANY(%s::uuid[])", list(ids.values())
    )
    assert rows == [("a\ufffdb",)] * len(ids)
    aside = query(own, "SELECT reason, stage FROM dead_letters WHERE record_key = %s", too_big.encode())
    assert aside == [("bad_number", "VALUE_CONVERTER")]
    assert role.metric("kintsugi_dlq_records_total", reason="bad_number") >= 1
    assert role.stop() == 0
    assert tables_agree(own).sound


def test_a_zombie_is_fenced_and_its_partitions_go_on(topics: Topics, own: Addresses, start: Start) -> None:
    """FAULTS.md row 8: frozen beyond its session, it wakes up and writes nothing."""
    zombie = start("projector")
    zombie.wait_log("partitions assigned")
    wait_for("no lag", lambda: zombie.metric("kintsugi_consumer_lag_records") == 0)
    zombie.process.send_signal(signal.SIGSTOP)
    successor = start("projector")
    wait_for("all partitions", lambda: successor.metric("kintsugi_partitions_assigned") == 8, 60)
    ids = [str(uuid.uuid4()) for _ in range(10)]
    for workflow_id in ids:
        topics.put(*healthy(workflow_id))
    wait_for("all workflows", lambda: all(status_of(own, i) == "completed" for i in ids))
    zombie.process.send_signal(signal.SIGCONT)
    more = [str(uuid.uuid4()) for _ in range(10)]
    for workflow_id in more:
        topics.put(*healthy(workflow_id))
    wait_for("all workflows", lambda: all(status_of(own, i) == "completed" for i in more), 60)
    for role in (zombie, successor):
        assert role.stop() == 0
    assert tables_agree(own).sound


def test_events_for_nobody_out_of_order_and_twice_are_applied(topics: Topics, own: Addresses, start: Start) -> None:
    role = start("projector")
    role.wait_log("partitions assigned")
    stray, late, twice = (str(uuid.uuid4()) for _ in range(3))
    topics.put(failing(stray)[-1])
    records = healthy(late)
    topics.put(*reversed(records))
    records = healthy(twice)
    topics.put(*records, *records)
    wait_for("all", lambda: status_of(own, twice) == "completed" and status_of(own, stray) and status_of(own, late))
    assert query(own, "SELECT count(*) FROM workflow_checkpoints WHERE workflow_id = %s", twice) == [(1,)]
    assert query(own, "SELECT count(*) FROM workflow_errors WHERE workflow_id = %s", twice) == [(1,)]
    assert role.stop() == 0
    assert tables_agree(own).sound


def test_what_the_policy_names_is_hidden_and_verify_knows(
    topics: Topics, own: Addresses, start: Start, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("workflow_error_handling: {checkpoints: {redact: [data.n]}}", encoding="utf-8")
    role = start("projector", "--policy", str(policy))
    workflow_id = str(uuid.uuid4())
    topics.put(*healthy(workflow_id))
    wait_for("the workflow", lambda: status_of(own, workflow_id) == "completed")
    found = query(
        own, "SELECT state_data->'data', redacted FROM workflow_checkpoints WHERE workflow_id = %s", workflow_id
    )
    assert found == [({"n": "[redacted]"}, True)]
    assert role.stop() == 0
    report = tables_agree(own)
    assert report.sound, report


def test_verify_names_every_row_that_somebody_changed(
    topics: Topics, own: Addresses, start: Start, environment: dict[str, str]
) -> None:
    role = start("projector")
    workflow_id = str(uuid.uuid4())
    topics.put(*healthy(workflow_id))
    wait_for("the workflow", lambda: status_of(own, workflow_id) == "completed")
    assert role.stop() == 0

    def verify() -> tuple[int, dict[str, Any]]:
        done = command(environment, "verify", "--only", "tables", "--output", "json")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    code, report = verify()
    assert (code, report["sound"], report["drifts"]) == (0, True, [])
    with psycopg.connect(own.postgres) as connection:
        connection.execute("UPDATE kintsugi.workflows SET status = 'failed' WHERE id = %s", [workflow_id])
    code, report = verify()
    assert code == 6
    assert [(d["table"], d["key"], d["column"]) for d in report["drifts"]] == [("workflows", workflow_id, "status")]


def test_with_postgres_away_repairs_go_on_and_the_tables_catch_up(
    breakable: Addresses, home: Path, tmp_path: Path
) -> None:
    """Decision 5 of the design: no database in the recovery path. FAULTS.md row 21."""
    at = breakable
    environment = {**os.environ, **at.environment()}
    roles = [Role(name, environment, tmp_path / f"{name}.log") for name in ("recovery", "projector")]
    topics = Topics(at)
    try:
        for role in roles:
            role.wait_log("partitions assigned")
        first, second = str(uuid.uuid4()), str(uuid.uuid4())
        topics.put(*failing(first))
        wait_for("a command", lambda: topics.commands({first}))
        wait_for("a row", lambda: status_of(at, first) == "recovering")
        stack.kill_part("postgres", home)
        topics.put(*failing(second))
        wait_for("a command without Postgres", lambda: topics.commands({second}))
        roles[1].wait_log("partition waits")
        assert stack.ensure(home) == at
        wait_for("the row", lambda: status_of(at, second) == "recovering", 60)
        for role in roles:
            assert role.stop() == 0
        report = check(at, default_policy(), lambda what, done, total: None)
        assert report.sound, report
    finally:
        topics.registry.close()
        for role in roles:
            role.kill()
