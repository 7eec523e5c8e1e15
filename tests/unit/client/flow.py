"""A workflow type whose steps do what a test wants, and a log that is a list."""

from __future__ import annotations

import dataclasses
import threading
from collections import defaultdict
from typing import Any

import pytest
from kintsugi_client import StepContext, Workflow, WorkflowType
from kintsugi_client._schemas.records import Command, Record
from kintsugi_client._schemas.records.events import CheckpointCreated, WorkflowCompleted, WorkflowErrorOccurred
from kintsugi_client.client import WORKERS
from kintsugi_client.inbox import Received

from .kit import Service, wait_for

STEPS = ("one", "two", "three")


class Flow:
    """A workflow type whose steps note that they ran, and fail or wait when told to."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.service = service
        self.ran: list[str] = []
        self.fails: dict[str, list[BaseException]] = {}
        self.gates: dict[str, threading.Event] = {}
        self.entered: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.kind: WorkflowType = service.client.workflow_type("development", **options)
        self.declare()
        monkeypatch.setattr(service.client.reader, "fetch", self.fetch)

    def declare(self) -> None:
        """Its steps."""
        for step_id in STEPS:
            self.kind.step(step_id)(self.step)

    def step(self, ctx: StepContext) -> None:
        self.ran.append(ctx.step_id)
        self.entered[ctx.step_id].set()
        gate = self.gates.get(ctx.step_id)
        if gate is not None:
            assert gate.wait(20)
        if self.fails.get(ctx.step_id):
            raise self.fails[ctx.step_id].pop()
        ctx.state.setdefault("done", []).append(ctx.step_id)

    def fetch(self, partition: int, offset: int) -> Record:
        """The log: offsets count from 1, as `KeptOutbox` confirms them."""
        assert partition == 3
        return self.service.outbox.records[offset - 1]

    def place(self, record: Record) -> int:
        return self.service.outbox.records.index(record) + 1

    def failed_workflow(self, step_id: str = "two", error: BaseException | None = None) -> Workflow:
        """A workflow that has failed once in a step, and rests."""
        self.fails[step_id] = [error or ValueError("broken")]
        workflow = self.kind.start({"in": 1})
        wait_for("the error", lambda: self.errors(workflow))
        wait_for("rest", lambda: workflow.run.phase == "ended")
        return workflow

    def occupy_all_threads(self) -> threading.Event:
        """Let workflows wait in their first step on every thread; they go on when the event is set."""
        gate = self.gates["one"] = threading.Event()
        before = len(self.ran)
        for _ in range(WORKERS):
            self.kind.start()
        wait_for("the threads", lambda: len(self.ran) == before + WORKERS)
        return gate

    def errors(self, workflow: Workflow) -> list[WorkflowErrorOccurred]:
        return [e for e in self.service.of(WorkflowErrorOccurred) if e.workflow_id == workflow.workflow_id]

    def where(self, workflow: Workflow, nth: int = -1) -> dict[str, Any]:
        """How a command names a checkpoint of a workflow."""
        wanted = [
            c for c in self.service.of(CheckpointCreated) if c.workflow_id == workflow.workflow_id and not c.evidence
        ]
        found = wanted[nth]
        return {
            "checkpoint_id": found.checkpoint_id,
            "checkpoint_partition": 3,
            "checkpoint_offset": self.place(found),
            "checkpoint_digest": found.digest,
            **self.start_of(workflow),
        }

    def start_of(self, workflow: Workflow) -> dict[str, Any]:
        started = next(r for r in self.service.outbox.records if r.workflow_id == workflow.workflow_id)
        return {"started_partition": 3, "started_offset": self.place(started)}

    def forget(self, workflow: Workflow) -> None:
        """As in a process that never had it."""
        self.service.client.work.forget(workflow)

    def send(self, kind: type[Command], workflow: Workflow, **fields: Any) -> Received:
        return self.service.carry_out(kind, workflow.workflow_id, **fields)

    def present(self, workflow: Workflow) -> Workflow | None:
        return self.service.client.workflow(workflow.workflow_id)

    def completed(self, workflow: Workflow) -> None:
        wait_for(
            "the end",
            lambda: workflow.workflow_id in {c.workflow_id for c in self.service.of(WorkflowCompleted)},
        )


def spoil(flow: Flow, workflow: Workflow, **fields: Any) -> dict[str, Any]:
    """Damage the newest checkpoint in the log."""
    place = flow.where(workflow)
    record = flow.service.outbox.records[place["checkpoint_offset"] - 1]
    assert isinstance(record, CheckpointCreated)
    changed = {k: v(record) if callable(v) else v for k, v in fields.items()}
    flow.service.outbox.records[place["checkpoint_offset"] - 1] = dataclasses.replace(record, **changed)
    return place


def flip(record: CheckpointCreated) -> bytes:
    """The state, with one bit changed."""
    assert record.state is not None
    return record.state[:5] + bytes([record.state[5] ^ 1]) + record.state[6:]
