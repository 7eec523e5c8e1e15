"""What a workflow carries reaches the log of no role, at any level, whatever happens to it (SECURITY.md, I7)."""

from __future__ import annotations

import json
import os
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.commands.run import ROLES
from ops.stack import Addresses
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.records import Record
from schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    StateRestored,
    StepProgressed,
    StepSpec,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

from .kit import Role, Topics, build, wait_for

CANARY = "canary-4711-do-not-log"
#: The key-encryption key that the roles are given, as it stands in their environment.
KEY = b64encode(CANARY.ljust(32, "-").encode()).decode()
Start = Callable[..., Role]


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    keys = json.dumps({"current": "canary", "keys": {"canary": KEY}})
    return {
        **os.environ,
        **own.environment(),
        "KINTSUGI_KEYS": "env:CANARY_KEYS",
        "CANARY_KEYS": keys,
        "KINTSUGI_KEYS_OPTIONAL": "1",
    }


def state(workflow_id: str, **changed: Any) -> dict[str, Any]:
    data = canonical_bytes(
        {"workflow_id": workflow_id, "step_id": "build", "status": "running", "data": {CANARY: CANARY}}
    )
    digest = digest_of(data)
    kept = {
        "codec": "identity",
        "size_bytes": len(data),
        "digest": digest,
        "chain_digest": chain_digest_of(None, digest),
        "state": data,
        "step_id": "build",
        "state_version": "1",
        "status": "running",
    }
    return {**kept, **changed}


def checkpoint(workflow_id: str, sequence: int, **changed: Any) -> CheckpointCreated:
    return build(
        CheckpointCreated,
        workflow_id,
        checkpoint_id=str(uuid.uuid4()),
        checkpoint_type="manual",
        sequence=sequence,
        metadata=json.dumps({"note": CANARY}),
        **state(workflow_id, **changed),
    )


def failure(workflow_id: str, **fields: Any) -> WorkflowErrorOccurred:
    return build(
        WorkflowErrorOccurred,
        workflow_id,
        error_id=str(uuid.uuid4()),
        step_id="build",
        error_code="TIMEOUT",
        error_message=CANARY,
        stack_trace=f'File "{CANARY}", line 1',
        context=json.dumps({"user": CANARY}),
        detected_by="service",
        **fields,
    )


def told(workflow_id: str) -> list[Record]:
    """Everything a service may say with the canary in it: sound, damaged, and what Postgres refuses."""
    run_id = str(uuid.uuid4())
    kept = state(workflow_id)
    del kept["chain_digest"]
    return [
        build(
            WorkflowStarted,
            workflow_id,
            workflow_version="1",
            steps=(StepSpec(step_id="build"),),
            input=json.dumps(CANARY),
        ),
        build(StepStarted, workflow_id, step_id="build", step_run_id=run_id),
        build(StepProgressed, workflow_id, step_id="build", step_run_id=run_id, message=CANARY),
        checkpoint(workflow_id, 1),
        checkpoint(workflow_id, 2, digest="0" * 64),
        checkpoint(workflow_id, 3, codec=CANARY),
        checkpoint(workflow_id, 4, protection="aes-256-gcm"),
        checkpoint(workflow_id, 5, state=f'{{"{CANARY}": '.encode()),
        build(StateRestored, workflow_id, checkpoint_id=None, restored_at=1, restore_count=1, **kept),
        failure(workflow_id, step_run_id=run_id),
        build(
            CommandAcknowledged,
            workflow_id,
            command_id=str(uuid.uuid4()),
            status="failed",
            detail=CANARY,
        ),
        failure(workflow_id, fingerprint="f"),
        build(WorkflowCompleted, workflow_id, result=json.dumps(CANARY)),
    ]


def done(own: Addresses, workflow_id: str) -> bool:
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        query = "SELECT status FROM workflows WHERE id = %s"
        return connection.execute(query.encode(), [workflow_id]).fetchone() == ("completed",)


def test_what_a_workflow_carries_is_in_no_log(topics: Topics, own: Addresses, start: Start) -> None:
    roles = {name: start(name, "--log-level", "debug") for name in ROLES}
    for role in roles.values():
        role.wait_log("started")
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for workflow_id in ids:
        topics.put(*told(workflow_id))
        key = workflow_id.encode()
        topics.raw(key, CANARY.encode())
        topics.raw(key, topics.codec.encode(replace(checkpoint(workflow_id, 9), step_id=CANARY * 50)))
        topics.raw(CANARY.encode(), topics.codec.encode(failure(workflow_id)))
    # Postgres refuses the projector's rows while it writes, which is when it quotes them.
    with psycopg.connect(own.postgres, autocommit=True, options="-c search_path=kintsugi") as connection:
        connection.execute("ALTER TABLE workflow_errors ADD CONSTRAINT no CHECK (error_code <> 'REFUSED') NOT VALID")
    refused = str(uuid.uuid4())
    topics.put(replace(failure(refused), error_code="REFUSED"), build(WorkflowCompleted, refused))
    wait_for("all workflows", lambda: all(done(own, i) for i in ids))
    roles["projector"].wait_log("workflow parked", workflow_id=refused)
    wait_for("recovery", lambda: roles["recovery"].metric("kintsugi_consumer_lag_records") == 0)
    letters = [x["reason"] for x in roles["projector"].lines if x["event"] == "dead letter"]
    assert {"wrong_magic", "too_long", "wrong_key", "refused_by_postgres"} <= set(letters)
    for name, role in roles.items():
        assert role.stop() == 0, name
        _silent(role.log_file)


def test_what_postgres_says_of_a_row_is_in_no_log(topics: Topics, own: Addresses, start: Start) -> None:
    """A COPY that is cut off names the row it was at, in the context of the error; here also in its detail."""
    workflow_id = str(uuid.uuid4())
    with psycopg.connect(own.postgres, autocommit=True, options="-c search_path=kintsugi") as connection:
        connection.execute(
            "CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'cut off' USING ERRCODE = 'query_canceled', DETAIL = NEW.state_data::text; END $$"
        )
        trigger = (
            "CREATE TRIGGER cut_off BEFORE INSERT ON workflow_checkpoints FOR EACH ROW"
            f" WHEN (NEW.workflow_id = '{workflow_id}') EXECUTE FUNCTION cut_off()"
        )
        connection.execute(trigger.encode())
    role = start("projector", "--log-level", "debug")
    role.wait_log("partitions assigned")
    topics.put(*(checkpoint(workflow_id, number) for number in range(1, 40)))
    assert role.wait_log("partition waits")["error"] == "RetriableError: Postgres: cut off"
    role.kill()
    _silent(role.log_file)


def _silent(log: Path) -> None:
    text = log.read_text(encoding="utf-8")
    assert text
    for secret in (CANARY, KEY, KEY.rstrip("=")):
        assert secret not in text, [line for line in text.splitlines() if secret in line]
    assert all(line.startswith("{") for line in text.splitlines()), "whatever is written is one of our lines"
