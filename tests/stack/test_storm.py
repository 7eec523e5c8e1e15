"""A storm on the real stack: repairs are held, let go behind canaries, and people see and handle one incident."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.stack import Addresses
from schemas.records import Command, Record
from schemas.records.events import (
    CommandAcknowledged,
    RepairHeld,
    StepCompleted,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
)

from .kit import Role, Topics, build, failing, wait_for
from .starter import command

Start = Callable[..., Role]
Run = Callable[..., subprocess.CompletedProcess[str]]
POLICY = str(Path(__file__).with_name("storm.yaml"))


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment(), "KINTSUGI_ACTOR": "ada"}


@pytest.fixture
def cli(environment: dict[str, str]) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command(environment, "incidents", *arguments)

    return run


def failing_on(dependency: str, count: int) -> dict[str, list[Record]]:
    """So many workflows whose step fails on it."""
    found = {}
    for _ in range(count):
        workflow_id = str(uuid.uuid4())
        *before, error = failing(workflow_id)
        assert isinstance(error, WorkflowErrorOccurred)
        found[workflow_id] = [*before, replace(error, dependency=dependency)]
    return found


def recovered(command: Command) -> list[Record]:
    """What a service writes that carries a command out."""
    run_id, common = str(uuid.uuid4()), {"command_id": command.command_id}
    step: dict[str, Any] = {"step_id": "build", "step_run_id": run_id, **common}
    return [
        build(
            CommandAcknowledged,
            command.workflow_id,
            **common,
            error_id=command.error_id,
            attempt_number=command.attempt_number,
            status="accepted",
        ),
        build(StepStarted, command.workflow_id, **step),
        build(StepCompleted, command.workflow_id, **step, duration_ms=5),
        build(WorkflowCompleted, command.workflow_id),
    ]


def row_of(own: Addresses, dependency: str) -> tuple[Any, ...] | None:
    query = "SELECT id::text, state, revision FROM kintsugi.incidents WHERE dependency = %s"
    with psycopg.connect(own.postgres) as connection:
        rows = connection.execute(query, [dependency]).fetchall()
    assert len(rows) <= 1
    return rows[0] if rows else None


def test_a_storm_is_held_let_go_behind_canaries_and_shown_as_one_incident(
    topics: Topics, own: Addresses, start: Start, cli: Run
) -> None:
    dependency = f"registry-{uuid.uuid4().hex[:8]}"
    roles = [start(role, "--policy", POLICY) for role in ("recovery", "coordinator")] + [start("projector")]
    for role in roles:
        role.wait_log("partitions assigned")
    first, held = failing_on(dependency, 5), failing_on(dependency, 6)
    topics.put(*(r for records in first.values() for r in records))
    incident_id = wait_for("the incident", lambda: row_of(own, dependency))[0]
    topics.put(*(r for records in held.values() for r in records))
    wait_for("held repairs", lambda: {r.workflow_id for r in topics.events(RepairHeld, set(held))} == set(held))

    listed = json.loads(cli("list", "--output", "json").stdout)
    assert [row["state"] for row in listed if row["id"] == incident_id] == ["open"]
    shown = json.loads(cli("show", incident_id, "--output", "json").stdout)
    assert shown["dependency"] == dependency
    assert 5 <= shown["affected_count"] <= 11
    assert shown["affected"] and {w["workflow_id"] for w in shown["affected"]} <= {*first, *held}
    assert "repairs" in shown["breaker"]
    owned = json.loads(cli("own", incident_id, "--reason", "on call", "--output", "json").stdout)
    assert (owned["outcome"], owned["owner"]) == ("done", "ada")
    noted = json.loads(cli("note", incident_id, "called the registry's people", "--output", "json").stdout)
    assert (noted["note"], noted["owner"]) == ("called the registry's people", "ada")
    assert cli("acknowledge", incident_id, "--reason", "seen", "--no-wait").returncode == 0

    answered: set[str] = set()

    def healed() -> bool:
        commands = [c for c in topics.commands({*first, *held}) if c.command_id not in answered]
        topics.put(*(r for command in commands for r in recovered(command)))
        answered.update(c.command_id for c in commands)
        row = row_of(own, dependency)
        return row is not None and row[1] == "resolved"

    wait_for("the end of the incident", healed, 90)
    assert len(answered) == 11, "each repair was sent once"
    tried = json.loads(cli("show", incident_id, "--output", "json").stdout)["tried"]
    assert 1 <= sum(row["succeeded"] for row in tried) <= 11, tried
    text = cli("show", incident_id).stdout
    assert "What was tried" in text and tried[0]["strategy"] in text
    late = cli("resolve", incident_id, "--reason", "it is over")
    assert late.returncode == 4, late.stderr
    for_people = cli("show", incident_id).stdout
    assert dependency in for_people and "called the registry's people" in for_people
    for role in roles:
        assert role.stop() == 0


def test_an_incident_that_is_not_there_is_not_found(cli: Run) -> None:
    missing = str(uuid.uuid4())
    assert cli("show", missing).returncode == 3
    assert cli("own", missing, "--reason", "mine").returncode == 3
    assert cli("own", missing).returncode == 2
