"""`kintsugi resources list`, with recovery, coordinator and projector at work."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ops.stack import Addresses
from schemas.records import Record
from schemas.records.events import (
    ResourceGranted,
    ResourceReleased,
    ResourceRequested,
    StepSpec,
    StepStarted,
    WorkflowCompleted,
    WorkflowStarted,
)

from .kit import Role, Topics, build, wait_for
from .starter import command

Start = Callable[..., Role]


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def listed(environment: dict[str, str]) -> Callable[..., list[dict[str, Any]]]:
    def run(*arguments: str) -> list[dict[str, Any]]:
        done = command(environment, "resources", "list", "--output", "json", *arguments)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    return run


def asking(workflow_id: str, resource_id: str) -> list[Record]:
    """A workflow whose step asks for a resource."""
    return [
        build(WorkflowStarted, workflow_id, workflow_version="1", steps=(StepSpec(step_id="print"),)),
        build(StepStarted, workflow_id, step_id="print", step_run_id=str(uuid.uuid4())),
        build(ResourceRequested, workflow_id, step_id="print", resource_id=resource_id, lease_id="lease", priority=4),
    ]


def test_who_holds_and_who_waits_is_listed(
    topics: Topics, start: Start, listed: Callable[..., list[dict[str, Any]]]
) -> None:
    for role in ("recovery", "coordinator", "projector"):
        start(role).wait_log("partitions assigned")
    printer = f"printer-{uuid.uuid4().hex[:8]}"
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    topics.put(*asking(first, printer))
    wait_for("a grant", lambda: topics.events(ResourceGranted, {first}))
    topics.put(*asking(second, printer))

    def both() -> list[dict[str, Any]] | None:
        rows = listed("--resource", printer)
        return rows if [row["status"] for row in rows] == ["granted", "waiting"] else None

    holder, waiter = wait_for("both rows", both)
    assert (holder["workflow_id"], waiter["workflow_id"], waiter["step_id"]) == (first, second, "print")
    assert waiter["seconds"] >= 0 and waiter["granted_at"] is None
    assert [row["workflow_id"] for row in listed("--resource", printer, "--waiting")] == [second]
    assert [row["status"] for row in listed("--workflow", first)] == ["granted"]

    topics.put(build(WorkflowCompleted, first))
    wait_for("the next grant", lambda: topics.events(ResourceGranted, {second}))
    (released,) = topics.events(ResourceReleased, {first})
    assert released.reason == "workflow_ended"
    wait_for("one holder", lambda: [row["workflow_id"] for row in listed("--resource", printer)] == [second])
    statuses = [row["status"] for row in listed("--resource", printer, "--all")]
    assert statuses == ["granted", "released"]
