"""A workflow that somebody has to look after."""

from __future__ import annotations

import uuid
from typing import Any

from schemas.records.events import StepSpec, StepStarted, WorkflowErrorOccurred, WorkflowStarted

from ..kit import Topics, build

STEPS = (StepSpec(step_id="pay", idempotent=False, alternative="invoice"), StepSpec(step_id="invoice"))


def failing(
    topics: Topics, *, steps: tuple[StepSpec, ...] = STEPS, error: dict[str, Any] | None = None, **started: Any
) -> str:
    """A workflow whose step `pay`, which is not idempotent, has failed; its id."""
    workflow_id, run_id = str(uuid.uuid4()), str(uuid.uuid4())
    said = {"error_code": "CardDeclined", "error_message": "the bank said no", "detected_by": "service"}
    topics.put(
        build(WorkflowStarted, workflow_id, workflow_version="1", steps=steps, **started),
        build(StepStarted, workflow_id, step_id="pay", step_run_id=run_id),
        build(
            WorkflowErrorOccurred,
            workflow_id,
            error_id=str(uuid.uuid4()),
            step_id="pay",
            step_run_id=run_id,
            **{**said, **(error or {})},
        ),
    )
    return workflow_id
