"""`kintsugi state migrate --dry-run` on the real stack: what a deployment would meet, and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.stack import Addresses
from schemas.records.events import CheckpointCreated
from schemas.topics import EVENTS

from .client_kit import Here
from .kit import Role, Topics, wait_for

MODULE = """
from kintsugi_client import Migrations

migrations = Migrations()

@migrations.add("1", "2")
def title(data):
    data["title"] = data["name"].title()
    return data
"""
SCHEMA = {"type": "object", "properties": {"title": {"maxLength": 5}}, "required": ["title"]}
Start = Callable[..., Role]
Serve = Callable[..., Here]


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def migrate(environment: dict[str, str], tmp_path: Path) -> Callable[..., tuple[int, Any, str]]:
    """Runs the command in a folder that holds the module: exit code, its JSON, what it said."""
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "app_states.py").write_text(MODULE)

    def run(*arguments: str) -> tuple[int, Any, str]:
        command = [str(Path(sys.executable).parent / "kintsugi"), "state", "migrate"]
        done = subprocess.run(
            [*command, "--migrations", "app_states:migrations", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout, done.stderr

    return run


def started(here: Here, topics: Topics, **data: Any) -> str:
    """A live workflow of version 1, whose first step waits."""
    workflow = here.kind.start({"plan": {"one": ["hold"]}, **data})
    wait_for("its checkpoint", lambda: topics.events(CheckpointCreated, {workflow.workflow_id}))
    return workflow.workflow_id


def test_every_live_workflow_is_tried_and_nothing_is_written(
    topics: Topics, own: Addresses, start: Start, serve: Serve, service_name: str, migrate: Callable[..., Any]
) -> None:
    start("projector").wait_log("partitions assigned")
    here = serve()
    good = [started(here, topics, name=name) for name in ("ann", "bob")]
    bad, long = started(here, topics), started(here, topics, name="maximilian")
    ended = here.kind.start({"name": "eve"}).workflow_id

    def in_tables() -> bool:
        query = """
            SELECT w.status, count(c.id) FROM workflows w JOIN workflow_checkpoints c ON c.workflow_id = w.id
            WHERE w.id = ANY(%s::uuid[]) GROUP BY w.id, w.status"""
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
            found = connection.execute(query, [[*good, bad, long, ended]]).fetchall()
            return sorted(found) == [("completed", 6), *[("running", 1)] * 4]

    wait_for("the tables", in_tables)
    mine = {*good, bad, long, ended}
    before = len(topics.read(EVENTS, mine))

    code, report, said = migrate("--dry-run", "--type", service_name, "--output", "json")
    assert code == 6, said
    assert (report["workflows"], report["without"], report["failed"], report["to_version"]) == (4, 0, 1, "2")
    assert report["versions"] == [{"state_version": "1", "checkpoints": 4, "passed": 3, "failed": 1, "erased": 0}]
    (failure,) = report["failures"]
    assert (failure["workflow_id"], failure["reason"]) == (bad, "migration_failed")
    assert failure["detail"] == "migration '1' -> '2': KeyError: 'name'"

    with_schema = ("--schema", "schema.json", "--output", "json")
    code, report, _ = migrate("--dry-run", "--type", service_name, *with_schema)
    assert code == 6 and {f["workflow_id"] for f in report["failures"]} == {bad, long}

    code, report, said = migrate("--dry-run", "--type", service_name, "--to", "3", "--output", "json")
    assert code == 6 and {f["reason"] for f in report["failures"]} == {"migration_missing"}

    code, table, said = migrate("--dry-run", "--type", service_name)
    assert code == 6 and "KeyError: 'name'" in table and "1 states would not be migrated" in said
    assert len(topics.read(EVENTS, mine)) == before


def test_what_has_no_live_workflow_is_fine(own: Addresses, migrate: Callable[..., Any]) -> None:
    code, _, said = migrate("--dry-run", "--type", "nobody")
    assert code == 0 and "0 live workflows" in said


def test_states_are_migrated_by_a_restore_alone(own: Addresses, migrate: Callable[..., Any]) -> None:
    code, _, said = migrate("--type", "nobody")
    assert code == 2 and "when it restores one" in said
