"""The service: declares the workflow, runs its steps, and lets the planned faults strike."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from kintsugi_client import Client, LocalLimits, StepContext, Workflow, WorkflowType

from . import work
from .faults import (
    CORRUPT_CHECKPOINT,
    CRASH,
    FLAKY,
    HUNG,
    OUT_OF_MEMORY,
    PERMANENT,
    RATE_LIMIT,
    STEPS,
    Fault,
    Strikes,
    fault_of,
)

SERVICE = "development"
#: No healthy step takes nearly as long.
STEP_TIMEOUT_MS = 4_000
#: A hung step wakes up by itself after this; long before, a command has replaced it.
HUNG_S_MAX = 4 * STEP_TIMEOUT_MS / 1000
_HUNG_LOOK_S = 0.1
#: In the scratch folder: every execution of a deployment.
LEDGER = "ledger.jsonl"
#: Address space of the tools that a workflow runs, until it is scaled, and the most that it is ever given.
TOOL_MB, TOOL_MB_MAX = 512, 4_096
_POLL_S = 0.002
_IDS = uuid.UUID("6b696e74-0000-5000-8000-64656d6f0000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one service process is told. `first` and `count` are its share of the run's workflows."""

    run: str
    scratch: Path
    seed: int
    first: int
    count: int
    per_second: float
    work_ms: int


def workflow_id_of(run: str, index: int) -> str:
    """Id of a workflow, the same in every process of a run."""
    return str(uuid.uuid5(_IDS, f"{run}|{index}"))


class Development:
    """The workflow type and its four steps."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = settings.scratch / "started"
        self._started.mkdir(parents=True, exist_ok=True)
        # In a folder, so that a process that takes a workflow over gives it what it has been given before.
        self.limits = LocalLimits({"memory": TOOL_MB}, most={"memory": TOOL_MB_MAX}, folder=settings.scratch / "limits")
        self.client = Client.connect(SERVICE, interceptors=[self._damage], scaler=self.limits)
        self.kind = self._declare()

    def start_all(self, stop: Event) -> int:
        """Start this process's share, except what an earlier process under the same name has started."""
        number = 0
        for index in range(self._settings.first, self._settings.first + self._settings.count):
            mark = self._started / str(index)
            if mark.exists():
                continue
            if stop.is_set():
                break
            workflow = self.start(index)
            # Only what Kafka has confirmed is started: until then a process that dies leaves it to its successor.
            while workflow.known_partition() < 0:
                if stop.wait(_POLL_S):
                    return number
            mark.touch()
            number += 1
            stop.wait(1 / self._settings.per_second)
        return number

    def start(self, index: int) -> Workflow:
        """Start one workflow of the plan. Its state names its folder: whoever goes on with it works there."""
        data = {"index": index, "seed": self._settings.seed, "scratch": str(self._settings.scratch)}
        return self.kind.start(data, workflow_id=workflow_id_of(self._settings.run, index))

    def _declare(self) -> WorkflowType:
        kind = self.client.workflow_type("development", version="1")
        before: tuple[str, ...] = ()
        functions = (self._code_generation, self._build, self._test, self._deployment)
        for step_id, function in zip(STEPS, functions, strict=True):
            kind.step(
                step_id,
                depends_on=before,
                timeout_ms=STEP_TIMEOUT_MS,
                critical=True,
                idempotent=step_id != "deployment",
                reconcilable=step_id == "deployment",
            )(function)
            before = (step_id,)
        kind.reconcile("deployment")(self._deployed)
        return kind

    # -- steps ----------------------------------------------------------------------------------------------------

    def _code_generation(self, ctx: StepContext) -> None:
        fault = self._begin(ctx)
        defect = None
        if fault is not None and fault.kind == PERMANENT:
            defect = work.SYNTAX if fault.step_id == "build" else work.LOGIC
        index, seed = ctx.state["index"], ctx.state["seed"]
        ctx.state["sources"] = work.generate(self._folder(ctx), index, seed, defect)

    def _build(self, ctx: StepContext) -> None:
        self._begin(ctx)
        ctx.state["artefacts"] = work.build(self._folder(ctx), ctx.state["sources"])

    def _test(self, ctx: StepContext) -> None:
        self._begin(ctx)
        ctx.state["checks"] = work.run_checks(self._folder(ctx), ctx.state["artefacts"])

    def _deployment(self, ctx: StepContext) -> None:
        self._begin(ctx)
        execution = work.Execution(
            workflow_id=ctx.workflow.workflow_id,
            command_id=ctx.run.command_id,
            step_run_id=ctx.run_id,
            pid=os.getpid(),
        )
        scratch = Path(ctx.state["scratch"])
        work.append_to_ledger(scratch / LEDGER, execution)
        ctx.state["manifest"] = work.deploy(
            self._folder(ctx), self._target(ctx), ctx.state["artefacts"], execution=execution
        )

    def _deployed(self, ctx: StepContext) -> bool:
        """Whether the deployment took effect: its manifest appears whole or not at all."""
        if not (self._target(ctx) / work.MANIFEST).exists():
            return False
        ctx.state["manifest"] = work.MANIFEST
        return True

    def _target(self, ctx: StepContext) -> Path:
        return Path(ctx.state["scratch"]) / "target" / ctx.workflow.workflow_id

    def _folder(self, ctx: StepContext) -> Path:
        return Path(ctx.state["scratch"]) / "work" / ctx.workflow.workflow_id

    # -- faults ---------------------------------------------------------------------------------------------------

    def _begin(self, ctx: StepContext) -> Fault | None:
        """The part of a step that takes time, and the moment at which its fault strikes."""
        time.sleep(self._settings.work_ms / 1000)
        ctx.check()
        fault = fault_of(ctx.state["index"], ctx.state["seed"])
        if fault is None or fault.step_id != ctx.step_id or fault.kind in (PERMANENT, CORRUPT_CHECKPOINT):
            return fault
        if fault.kind == OUT_OF_MEMORY:
            self._run_tool(ctx)
            return fault
        number = _strikes(ctx.state).take(ctx.workflow.workflow_id, fault)
        if number is not None:
            self._strike(ctx, fault, number)
        return fault

    def _run_tool(self, ctx: StepContext) -> None:
        """A tool that needs more memory than a workflow has by itself. It meets a real limit, until that is raised."""
        workflow_id = ctx.workflow.workflow_id
        done = self.limits.run(workflow_id, work.HUNGRY_TOOL, timeout_s=STEP_TIMEOUT_MS / 1000)
        if done.returncode != 0:
            has_mb = self.limits.size(workflow_id, "memory")
            ctx.error_context.update(index=ctx.state["index"], planned=OUT_OF_MEMORY, memory_mb=has_mb)
            raise work.StepFailedError("OUT_OF_MEMORY", f"{ctx.step_id}: a tool needs more than the {has_mb} MB it has")

    def _strike(self, ctx: StepContext, fault: Fault, number: int) -> None:
        ctx.error_context.update(index=ctx.state["index"], planned=fault.kind, strike=number)
        if fault.kind == CRASH:
            raise RuntimeError(f"{ctx.step_id} crashed")
        if fault.kind == FLAKY:
            raise ConnectionError(f"{ctx.step_id}: the network failed for the {number}. time")
        if fault.kind == RATE_LIMIT:
            raise work.StepFailedError("API_RATE_LIMIT", f"{ctx.step_id}: 429 Too Many Requests")
        assert fault.kind == HUNG
        wake_s = time.monotonic() + HUNG_S_MAX
        while time.monotonic() < wake_s:
            ctx.check()  # raises as soon as a command has replaced this run
            time.sleep(_HUNG_LOOK_S)

    def _damage(self, record: Any) -> Any:
        """Between client and Kafka: spoil one checkpoint of the workflows whose plan says so, as a bad disk would."""
        if type(record).__name__ != "CheckpointCreated" or record.checkpoint_type != "step_start" or not record.state:
            return record
        workflow = self.client.workflow(record.workflow_id)
        if workflow is None or "index" not in workflow.data:
            return record
        fault = fault_of(workflow.data["index"], workflow.data["seed"])
        if fault is None or fault.kind != CORRUPT_CHECKPOINT or fault.step_id != record.step_id:
            return record
        if _strikes(workflow.data).take(record.workflow_id, fault) is None:
            return record
        middle = len(record.state) // 2
        spoiled = record.state[:middle] + bytes([record.state[middle] ^ 0xFF]) + record.state[middle + 1 :]
        return dataclasses.replace(record, state=spoiled)


def _strikes(state: dict[str, Any]) -> Strikes:
    return Strikes(Path(state["scratch"]) / "strikes")
