"""A workflow of whose steps as much is said as a case needs."""

from __future__ import annotations

from dataclasses import dataclass

from engine.policy import Policy, default_policy, load_policy
from engine.testing import Service, World, saved
from schemas.records import Command
from schemas.records.events import StepCompleted, StepProgressed, StepSpec, WorkflowErrorOccurred


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a step that completes, and what is said of it."""

    step: str
    given: str | None = None
    result: str | None = None
    state: int | None = None
    token: str | None = None
    progress: float | None = None


def do(service: Service, run: Run, command: Command | None = None) -> None:
    """The step runs from start to end."""
    service.start(run.step, command, input_digest=run.given)
    if run.token is not None or run.progress is not None:
        said = {"progress_token": run.token, "progress": run.progress}
        service.emit(StepProgressed, step_id=run.step, step_run_id=service.runs[run.step], **said)
    if run.state is not None:
        number = run.state
        service.checkpoint(run.step, lambda workflow_id, _: saved(workflow_id, "any", number))
    service.emit(
        StepCompleted,
        step_id=run.step,
        step_run_id=service.runs[run.step],
        command_id=command.command_id if command else None,
        output_digest=run.result,
        duration_ms=1,
    )


def policy_with(detection: str) -> Policy:
    """The policy that ships, but for these keys of `error_detection`, in YAML's short form."""
    return load_policy(f"workflow_error_handling: {{error_detection: {detection}}}", "test")


def started(policy: Policy | None = None, *steps: StepSpec) -> tuple[World, Service]:
    """A workflow that has begun."""
    world = World(policy or default_policy())
    return world, Service(world, steps or tuple(StepSpec(step_id=s) for s in "abc"))


def errors(world: World, detector: str) -> list[WorkflowErrorOccurred]:
    """Errors that this detector found."""
    return [e for e in world.records(WorkflowErrorOccurred) if e.detected_by == f"detector:{detector}"]
