"""From question to effect of the answer: a real service, engine, tables, and an operator at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kintsugi_client import Client, StepContext

from schemas.records.commands import RetryStep
from schemas.records.events import CheckpointCreated, InterventionRequested, WorkflowCompleted
from schemas.topics import EVENTS

from ..cli import Cli
from ..client_kit import state_of
from ..kit import Topics, wait_for


@pytest.fixture
def shop(environment: dict[str, str], service_name: str) -> Iterator[Any]:
    """A workflow type: its charge waits for approval, and fails while the address is wrong."""
    client = Client.connect(
        service_name,
        kafka=environment["KINTSUGI_KAFKA"],
        registry=environment["KINTSUGI_REGISTRY"],
        objects="",
        keys="",
    )
    kind = client.workflow_type(service_name)

    def step(ctx: StepContext) -> None:
        if ctx.step_id == "charge" and ctx.state["address"] != "Main St 1":
            raise ValueError("no such address")
        ctx.state.setdefault("done", []).append(ctx.step_id)

    for step_id in ("pack", "charge", "ship"):
        kind.step(step_id, intervention_point="May it be charged?" if step_id == "charge" else False)(step)
    assert client.listen()
    yield kind
    client.close(5.0)


@pytest.mark.usefixtures("roles")
def test_a_workflow_is_let_pass_and_its_state_corrected(cli: Cli, topics: Topics, shop: Any) -> None:
    workflow_id = shop.start({"address": "Main St"}).workflow_id

    def asked(trigger: str) -> str | None:
        done = cli("interventions", "list", "--workflow", workflow_id, "--output", "json")
        assert done.code == 0, done.err
        return next((row["id"] for row in done.json if row["trigger"] == trigger), None)

    def answer(trigger: str, *arguments: str) -> None:
        subject = wait_for(trigger, lambda: asked(trigger))
        done = cli("interventions", "resolve", subject, *arguments, "--yes")
        assert done.code == 0, done.err

    answer("intervention_point", "--decision", "approve", "--reason", "a good customer")
    edit = ("--decision", "retry_edited", "--edit", '{"address": "Main St 1"}', "--reason", "number was missing")
    answer("all_recovery_strategies_failed", *edit)
    wait_for("the end", lambda: topics.events(WorkflowCompleted, {workflow_id}))

    commands = [c for c in topics.commands({workflow_id}) if isinstance(c, RetryStep)]
    assert [(c.approved, c.edit) for c in commands] == [(True, None), (True, '{"address": "Main St 1"}')]
    assert len(topics.events(InterventionRequested, {workflow_id})) == 2
    saved = [r for r in topics.records(EVENTS, of={workflow_id}) if isinstance(r, CheckpointCreated) and not r.evidence]
    assert state_of(saved[-1])["data"] == {"address": "Main St 1", "done": ["pack", "charge", "ship"]}
