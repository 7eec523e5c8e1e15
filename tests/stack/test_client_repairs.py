"""Repairs of single steps through the real topics: by the process that ran the workflow, and by one that has only the
log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kintsugi_client import Client, LocalLimits, StepContext

from examples.development.faults import OUT_OF_MEMORY, fault_of
from examples.development.service import Development, Settings
from ops.stack import Addresses
from schemas.records import Command
from schemas.records.commands import (
    CancelStep,
    CompensateStep,
    ReconcileStep,
    RetryStep,
    RollbackTo,
    RunAlternativePath,
    ScaleResources,
    SkipStep,
)
from schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    InterventionPointReached,
    StepCompensated,
    StepSkipped,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowResumed,
)

from .client_kit import Desk, state_of
from .kit import Topics, wait_for

DONE = (("accepted", False), ("succeeded", False))


class Shop:
    """A service whose steps fail once when their state says so. Each step notes that it ran, in the state alone."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.kind = client.workflow_type(name)
        self.kind.step("reserve", compensation="release")(self.step)
        self.kind.step(
            "charge",
            alternative="invoice",
            compensation="refund",
            intervention_point="May it be charged?",
            reconcilable=True,
        )(self.step)
        self.kind.step("ship")(self.step)
        for step_id in ("release", "refund", "invoice"):
            self.kind.step(step_id)(self.step)
        self.kind.reconcile("charge")(lambda ctx: ctx.state.get("paid"))
        self.hung = threading.Event()

    def step(self, ctx: StepContext) -> None:
        if ctx.state.get("hangs") == ctx.step_id:
            self.hung.set()
            while not ctx.cancelled:
                time.sleep(0.01)
            ctx.check()
        if ctx.step_id in ctx.state.get("fails", []):
            raise ValueError(f"{ctx.step_id} failed")
        ctx.state.setdefault("done", []).append(ctx.step_id)


Open = Callable[[], Shop]


@pytest.fixture
def open_shop(environment: dict[str, str], service_name: str) -> Iterator[Open]:
    made: list[Client] = []

    def make() -> Shop:
        client = Client.connect(
            service_name,
            kafka=environment["KINTSUGI_KAFKA"],
            registry=environment["KINTSUGI_REGISTRY"],
            objects="",
            keys="",
        )
        made.append(client)
        shop = Shop(client, service_name)
        assert client.listen()
        return shop

    yield make
    for client in made:
        client.close(5.0)


class Case:
    """One workflow, and commands to it."""

    def __init__(self, topics: Topics, desk: Desk, name: str, workflow_id: str) -> None:
        self.topics, self.desk, self.name, self.workflow_id = topics, desk, name, workflow_id

    def events(self, kind: type[Any]) -> list[Any]:
        return self.topics.events(kind, {self.workflow_id})

    def until(self, kind: type[Any], number: int = 1) -> list[Any]:
        found: list[Any] = wait_for(
            f"{number} {kind.__name__}", lambda: len(self.events(kind)) >= number and self.events(kind)
        )
        return found

    def order(self, kind: type[Command], *, nth: int = -1, **fields: Any) -> CommandAcknowledged:
        """Send a command that names a checkpoint, and wait until it has succeeded."""
        command = self.desk.build(kind, self.workflow_id, self.name, **self.desk.where(self.workflow_id, nth), **fields)
        self.desk.send(command)
        return self.desk.wait_answers(command, *DONE)[-1]


def test_steps_are_asked_about_skipped_and_undone_by_a_process_that_has_only_the_log(
    topics: Topics, desk: Desk, open_shop: Open, service_name: str
) -> None:
    first = open_shop()
    workflow = first.kind.start({"fails": ["ship"]})
    case = Case(topics, desk, service_name, workflow.workflow_id)
    case.until(WorkflowPaused)
    first.client.close(5.0)
    open_shop()
    assert case.order(ReconcileStep, step_id="charge").result == "cannot_tell"
    case.order(SkipStep, step_id="charge", result='{"receipt": 7}')
    case.until(WorkflowErrorOccurred)
    case.order(CompensateStep, step_id="charge")
    case.order(CompensateStep, step_id="reserve")
    assert [c.step_id for c in case.until(StepCompensated, 2)] == ["charge", "reserve"]
    case.order(SkipStep, step_id="ship", result='{"fails": null, "given": "up"}')
    (completed,) = case.until(WorkflowCompleted)
    assert completed.workflow_id == workflow.workflow_id
    assert [s.step_id for s in case.events(StepSkipped)] == ["charge", "ship"]
    last = state_of([c for c in case.events(CheckpointCreated) if not c.evidence][-1])
    assert last["data"] == {"done": ["reserve"], "receipt": 7, "given": "up"}


def test_a_workflow_passes_its_intervention_point_takes_the_alternative_and_is_rolled_back(
    topics: Topics, desk: Desk, open_shop: Open, service_name: str
) -> None:
    shop = open_shop()
    workflow = shop.kind.start({"fails": ["charge", "ship"]})
    case = Case(topics, desk, service_name, workflow.workflow_id)
    (reached,) = case.until(InterventionPointReached)
    assert (reached.step_id, reached.reason) == ("charge", "May it be charged?")
    case.until(WorkflowPaused)
    command = desk.build(
        RetryStep, case.workflow_id, case.name, step_id="charge", approved=True, **desk.where(case.workflow_id)
    )
    desk.send(command)
    desk.wait_answers(command, ("accepted", False), ("failed", False))
    assert [r.command_id for r in case.events(WorkflowResumed)] == [command.command_id]
    case.order(RunAlternativePath, step_id="charge", alternative_step_id="invoice")
    assert [s.reason for s in case.until(StepSkipped)] == ["alternative invoice ran"]
    case.until(WorkflowErrorOccurred, 2)
    case.order(CompensateStep, step_id="reserve")
    case.order(RollbackTo, nth=0, step_id="reserve")
    case.until(InterventionPointReached, 2)
    case.order(SkipStep, step_id="charge", result='{"fails": []}')
    case.until(WorkflowCompleted)
    started = [s.step_id for s in case.events(StepStarted)]
    assert started == ["reserve", "charge", "invoice", "ship", "reserve", "ship"]


def test_a_step_is_cancelled_where_it_runs(topics: Topics, desk: Desk, open_shop: Open, service_name: str) -> None:
    shop = open_shop()
    workflow = shop.kind.start({"hangs": "reserve"})
    case = Case(topics, desk, service_name, workflow.workflow_id)
    assert shop.hung.wait(20)
    wait_for("its checkpoint", lambda: case.events(CheckpointCreated))
    case.order(CancelStep, step_id="reserve")
    assert case.events(WorkflowErrorOccurred) == []
    assert workflow.status == "running"
    wait_for("its end", lambda: workflow.run.phase == "ended")
    case.order(SkipStep, step_id="reserve", result='{"hangs": null}')
    case.until(WorkflowPaused)


def test_the_example_meets_its_memory_limit_until_it_is_scaled_and_tells_whether_it_deployed(
    topics: Topics, desk: Desk, addresses: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in addresses.environment().items():
        monkeypatch.setenv(name, value)
    index = next(n for n in range(20) if (fault := fault_of(n, 7)) is not None and fault.kind == OUT_OF_MEMORY)
    settings = Settings(run=str(tmp_path), scratch=tmp_path, seed=7, first=index, count=1, per_second=1, work_ms=0)
    development = Development(settings)
    with development.client:
        assert development.client.listen()
        workflow = development.start(index)
        case = Case(topics, desk, "development", workflow.workflow_id)
        (error,) = case.until(WorkflowErrorOccurred)
        assert error.error_code == "OUT_OF_MEMORY" and json.loads(error.context)["memory_mb"] == 512
        assert case.order(ReconcileStep, step_id="deployment").result == "no_effect"
        step = {"step_id": error.step_id}
        assert case.order(ScaleResources, resource="memory", factor=2.0, **step).result == "1024 MB"
        case.order(RetryStep, **step)
        case.until(WorkflowCompleted)
        again = LocalLimits({"memory": 512}, most={"memory": 2048}, folder=tmp_path / "limits")
        assert again.size(workflow.workflow_id, "memory") == 1024
        assert case.order(ReconcileStep, step_id="deployment").result == "took_effect"
