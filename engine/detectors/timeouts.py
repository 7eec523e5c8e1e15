"""What passed its deadline: steps, critical steps, workflows, heartbeats, and workflows left between steps.

The moments are read off the state by `engine.timers`, and a timer that fires is a fact like any other. A command that
no service accepts in time ends its attempt and is no error of the workflow: see `engine.fold_recovery`.
"""

from __future__ import annotations

from schemas.records import Record

from ..events import Delivered
from ..state import StepRun
from .base import found

NAME = "timeout"


def overdue(event: Delivered, code: str, step_id: str, run: StepRun | None) -> Record:
    """The error that a deadline's timer is; of the workflow as a whole when no `run` was overdue."""
    what = f"step {step_id!r}" if run is not None else "the workflow"
    return found(
        event,
        NAME,
        "overdue",
        step_id=step_id,
        step_run_id=None if run is None else run.run_id,
        command_id=None if run is None else run.command_id,
        error_code=code,
        error_message=f"{what} passed its deadline ({code})",
    )
