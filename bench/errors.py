"""Failing workflows for the benchmarks of the recovery role, as a service would report them."""

from __future__ import annotations

import time
import uuid
from typing import Any, NamedTuple, TypeVar

from schemas.codec import Codec
from schemas.records import Command, Record
from schemas.records.events import StepSpec, StepStarted, WorkflowCompleted, WorkflowErrorOccurred, WorkflowStarted

from .processes import Ready, Received, ready

R = TypeVar("R", bound=Record)

_STACK = "\n".join(
    ["Traceback (most recent call last):"]
    + [f'  File "service/steps/part_{n}.py", line {n * 17}, in call\n    return inner(request)' for n in range(6)]
    + ["TimeoutError: the build did not answer within 300 s"]
)


class Failing(NamedTuple):
    """A workflow that runs a step, the error that ends the step, and the workflow's end.

    A workflow left open would be taken up by the next role that reads the log, and its ladder climbed.
    """

    error_id: str
    before: tuple[Ready, ...]
    error: Ready
    after: Ready


def failing(codec: Codec, dependency: str | None = None) -> Failing:
    """TIMEOUT is answered by the shipped policy at once: no backoff is part of what is measured."""
    workflow_id, run_id, error_id = (str(uuid.uuid4()) for _ in range(3))
    started = build(WorkflowStarted, workflow_id, workflow_version="1", steps=(StepSpec(step_id="build"),))
    step = build(StepStarted, workflow_id, step_id="build", step_run_id=run_id)
    error = build(
        WorkflowErrorOccurred,
        workflow_id,
        error_id=error_id,
        step_id="build",
        step_run_id=run_id,
        error_code="TIMEOUT",
        error_message="the build did not answer within 300 s",
        stack_trace=_STACK,
        detected_by="service",
        dependency=dependency,
    )
    before = (ready(codec, started), ready(codec, step))
    return Failing(error_id, before, ready(codec, error), ready(codec, build(WorkflowCompleted, workflow_id)))


def build(kind: type[R], workflow_id: str, **fields: Any) -> R:
    """An event of a workflow, now, with a fresh id."""
    return kind(
        event_id=str(uuid.uuid4()),
        workflow_id=workflow_id,
        workflow_type="development",
        occurred_at=time.time_ns() // 1000,
        producer="bench",
        **fields,
    )


def commands_of(codec: Codec, received: list[Received]) -> list[tuple[Received, Command]]:
    """The commands among what was received."""
    decoded = ((item, codec.decode(item.value)) for item in received)
    return [(item, record) for item, record in decoded if isinstance(record, Command)]
