"""`kintsugi dlq` on the real stack: parked by the projector, seen, retried while it runs, and written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Message

from ops.stack import Addresses
from schemas.records.events import WorkflowCompleted
from schemas.redaction import REDACTED
from schemas.topics import AUDIT

from .kit import Role, Topics, build, failing, wait_for
from .test_projector_role import query, status_of, tables_agree


@pytest.fixture
def environment(own: Addresses) -> dict[str, str]:
    return {**os.environ, **own.environment()}


def dlq(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "dlq", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_parked_workflow_is_seen_retried_and_written_down(
    topics: Topics, own: Addresses, start: Callable[..., Role], environment: dict[str, str], tmp_path: Path
) -> None:
    boom = f"boom {uuid.uuid4()}"  # the log is shared, and this projector reads it from its beginning
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute(
            f"ALTER TABLE kintsugi.workflow_errors ADD CONSTRAINT no_boom CHECK (error_message <> '{boom}')".encode()
        )
    policy = tmp_path / "policy.yaml"
    policy.write_text('workflow_error_handling: {checkpoints: {redact: ["**.password"]}}', encoding="utf-8")
    role = start("projector", "--policy", str(policy))
    role.wait_log("partitions assigned")
    context = '{"password": "a secret"}'
    poisoned, sound = str(uuid.uuid4()), str(uuid.uuid4())
    for workflow_id, message in ((poisoned, boom), (sound, "fine")):
        *before, error = failing(workflow_id)
        topics.put(*before, build(type(error), workflow_id, **{
            name: getattr(error, name) for name in ("error_id", "step_id", "step_run_id", "error_code", "detected_by")
        }, error_message=message, context=context), build(WorkflowCompleted, workflow_id))  # fmt: skip
    wait_for("the sound one", lambda: status_of(own, sound) == "completed")
    wait_for("two that wait", lambda: query(own, "SELECT count(*) FROM parked_events") == [(2,)])
    wait_for("the gauge", lambda: role.metric("kintsugi_parked_workflows") == 1)
    assert role.metric("kintsugi_parked_events") == 2
    assert tables_agree(own).sound

    code, out, _ = dlq(environment, "list", "--output", "json")
    (row,) = json.loads(out)
    assert (code, row["workflow_id"], row["reason"], row["events"]) == (0, poisoned, "refused_by_postgres", 2)
    code, out, _ = dlq(environment, "show", poisoned)
    assert code == 0
    assert "WorkflowErrorOccurred" in out and boom in out and "a table that takes its values" in out
    assert "a secret" not in out and REDACTED in out
    assert dlq(environment, "show", sound)[0] == 3
    assert dlq(environment, "retry", poisoned)[0] == 2
    assert dlq(environment, "retry", poisoned, "--reason", " ")[0] == 2
    assert dlq(environment, "retry", poisoned, "--reason", "tried", "--dry-run")[0] == 1
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute("ALTER TABLE kintsugi.workflow_errors DROP CONSTRAINT no_boom")
    code, out, err = dlq(environment, "retry", poisoned, "--reason", "the constraint is gone", "--output", "json")
    assert code == 0, err
    assert [(r["applied"], r["waiting"]) for r in json.loads(out)] == [(2, 0)]
    assert status_of(own, poisoned) == "completed"
    assert dlq(environment, "retry", poisoned, "--reason", "again")[0] == 3

    def entries() -> list[dict[str, object]]:
        found: list[Message] = topics.read(AUDIT)
        told = [json.loads(m.value() or b"{}") for m in found]
        return [entry for entry in told if entry["subject"] == poisoned]

    assert [(e["action"], e["outcome"], e["reason"]) for e in entries()] == [
        ("dlq.retry", outcome, "the constraint is gone") for outcome in ("begun", "done")
    ]
    later = build(WorkflowCompleted, poisoned)
    topics.put(later)
    wait_for("the projector goes on", lambda: role.metric("kintsugi_parked_workflows") == 0)
    wait_for("no lag", lambda: role.metric("kintsugi_consumer_lag_records") == 0)
    assert role.stop() == 0
    assert tables_agree(own).sound


def test_dead_letters_of_table_and_topic_are_listed_without_what_they_hold(
    topics: Topics, own: Addresses, start: Callable[..., Role], environment: dict[str, str]
) -> None:
    roles = [start("projector"), start("recovery")]
    for role in roles:
        role.wait_log("partitions assigned")
    key = str(uuid.uuid4())
    topics.raw(key.encode(), b"\x07a secret")
    for source in ("table", "topic"):

        def listed(source: str = source) -> list[dict[str, object]]:
            code, out, err = dlq(environment, "list", "--source", source, "--workflow", key, "--output", "json")
            assert code == 0, err
            assert "secret" not in out
            found: list[dict[str, object]] = json.loads(out)
            return found

        (row,) = wait_for("the letter", listed)
        assert (row["key"], row["reason"], row["bytes"]) == (key, "wrong_magic", 9)
