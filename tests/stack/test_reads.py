"""`kintsugi workflows` and `kintsugi errors`: what happened, what was tried, and why, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from ops.stack import Addresses
from schemas.records.events import CommandAcknowledged, StepCompleted, StepStarted, WorkflowCompleted

from .kit import Role, Topics, build, failing, wait_for

Start = Callable[..., Role]


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def cli(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ops.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def repaired(topics: Topics, own: Addresses, start: Start) -> tuple[str, str]:
    """Ids of a workflow whose step timed out, was run again and completed, and of its error."""
    roles = [start("recovery"), start("projector")]
    for role in roles:
        role.wait_log("partitions assigned")
    workflow_id = str(uuid.uuid4())
    *before, error = failing(workflow_id)
    hostile = "\x1b[2J[red]gone[/red]"
    topics.put(*before, replace(error, error_message=hostile, stack_trace=hostile, context='{"try": 1}'))  # type: ignore[call-arg]
    command = wait_for("a command", lambda: topics.commands({workflow_id}))[0]
    run_id = str(uuid.uuid4())
    topics.put(
        build(
            CommandAcknowledged,
            workflow_id,
            command_id=command.command_id,
            error_id=command.error_id,
            attempt_number=1,
            status="accepted",
        ),
        build(StepStarted, workflow_id, step_id="build", step_run_id=run_id, command_id=command.command_id),
        build(
            StepCompleted,
            workflow_id,
            step_id="build",
            step_run_id=run_id,
            command_id=command.command_id,
            duration_ms=5,
        ),
        build(WorkflowCompleted, workflow_id),
    )

    def recovered() -> bool:
        with psycopg.connect(own.postgres) as connection:
            query = "SELECT 1 FROM kintsugi.workflow_errors WHERE workflow_id = %s AND status = 'recovered'"
            return connection.execute(query, [workflow_id]).fetchone() is not None

    wait_for("the recovery", recovered)
    for role in roles:
        assert role.stop() == 0
    return workflow_id, str(command.error_id)


def test_a_repair_is_shown_from_list_to_timeline(
    topics: Topics, own: Addresses, start: Start, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    workflow_id, error_id = repaired(topics, own, start)

    listed = json.loads(cli("workflows", "list", "--status", "completed", "--limit", "500", "--output", "json").stdout)
    (row,) = [r for r in listed if r["id"] == workflow_id]
    assert (row["steps_completed"], row["steps"], row["errors"]) == (1, 1, 1)

    shown = json.loads(cli("workflows", "show", workflow_id, "--output", "json").stdout)
    assert [e["id"] for e in shown["error_list"]] == [error_id]
    text = cli("workflows", "show", workflow_id)
    assert workflow_id in text.stdout and "completed" in text.stdout

    errors = json.loads(cli("errors", "list", "--workflow", workflow_id, "--output", "json").stdout)
    assert [(e["id"], e["status"], e["recovery_attempts"]) for e in errors] == [(error_id, "recovered", 1)]
    assert (
        json.loads(cli("errors", "list", "--workflow", workflow_id, "--status", "open", "--output", "json").stdout)
        == []
    )

    error = json.loads(cli("errors", "show", error_id, "--output", "json").stdout)
    (attempt,) = error["attempts"]
    assert (attempt["status"], attempt["strategy"]) == ("succeeded", "increase_timeout_and_retry")
    assert attempt["rule"].startswith("recovery_strategies.timeout")
    for_people = cli("errors", "show", error_id.upper()).stdout
    assert "increase_timeout_and_retry" in for_people
    assert "\x1b" not in for_people, "what a service writes cannot move the reader's terminal"
    assert "[red]gone[/red]" in for_people, "nor is it markup"

    timeline = json.loads(cli("workflows", "timeline", workflow_id, "--output", "json").stdout)
    told = [row["event"] for row in timeline]
    expected = ["WorkflowStarted", "StepStarted", "WorkflowErrorOccurred", "ErrorClassified", "RecoveryDecided",
                "CommandAcknowledged", "StepStarted", "StepCompleted", "WorkflowCompleted"]  # fmt: skip
    assert [event for event in told if event in expected] == expected
    assert "RecoveryAttemptFinished" in told
    assert timeline[0]["after_ms"] == 0
    assert [row["offset"] for row in timeline] == sorted(row["offset"] for row in timeline)


def test_what_is_not_there_is_exit_3_and_what_is_no_id_is_exit_2(
    cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    nobody = str(uuid.uuid4())
    for command in (("workflows", "show"), ("workflows", "timeline"), ("errors", "show")):
        missing = cli(*command, nobody)
        assert missing.returncode == 3
        assert "list" in missing.stderr
        assert cli(*command, "42").returncode == 2
    assert cli("workflows", "list", "--status", "strange").returncode == 2


def test_without_tables_the_way_to_get_them_is_said(
    own: Addresses, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA kintsugi CASCADE")
    done = cli("errors", "list")
    assert done.returncode == 1
    assert "kintsugi db migrate" in done.stderr
    assert cli("db", "status").returncode == 4
    assert cli("db", "migrate").returncode == 0
    assert cli("errors", "list").returncode == 0
    assert cli("db", "status").returncode == 0
