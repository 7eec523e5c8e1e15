"""Steps that run on what is not there: a step they need has failed for good, or a lease of theirs was taken away."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.records import Record
from schemas.records.events import ResourceReleased, StepStarted

from ..events import Delivered
from ..policy.model import Policy
from ..state import COMPLETED, FAILED, SKIPPED, StepRun, WorkflowState
from ..strategies import MANUAL
from .base import found

NAME = "dependency"

#: Reasons of a `ResourceReleased` that its step did not ask for.
LOST = frozenset({"lost", "expired"})


def failed_dependency(state: WorkflowState, event: Delivered, policy: Policy) -> Iterator[Record]:
    """An error when a step began although one that it needs has failed and nothing is repairing that.

    One that has merely not run is no error: graphs declare steps that are left out without a word.
    """
    record = event.record
    assert isinstance(record, StepStarted)
    spec = state.graph.spec(record.step_id)
    for dependency in spec.depends_on if spec is not None else ():
        if not _failed_for_good(state, dependency):
            continue
        yield found(
            event,
            NAME,
            "dependency",
            step_id=record.step_id,
            step_run_id=record.step_run_id,
            command_id=record.command_id,
            error_code="DEPENDENCY_FAILURE",
            error_message=f"step {record.step_id!r} began, but {dependency!r}, which it needs, has failed",
            context={"failed": dependency},
        )
        return


def _failed_for_good(state: WorkflowState, step_id: str) -> bool:
    number = state.graph.index.get(step_id, -1)
    if number < 0 or state.steps[number] != FAILED:
        return False
    instead = state.graph.index.get(state.graph.steps[number].alternative or "", -1)
    if instead >= 0 and state.steps[instead] in (COMPLETED, SKIPPED):
        return False
    case = state.case_of(step_id)
    return case is None or (case.attempt is not None and case.attempt.decision.strategy == MANUAL)


def lost_lease(event: Delivered, step_id: str, run: StepRun) -> Record:
    """The error that it is when a step that runs loses a lease, or the wish for one."""
    record = event.record
    assert isinstance(record, ResourceReleased)
    return found(
        event,
        NAME,
        "lease",
        step_id=step_id,
        step_run_id=run.run_id,
        command_id=run.command_id,
        error_code="COORDINATION_FAILURE",
        error_message=f"step {step_id!r} lost {record.resource_id!r} while it ran: {record.reason}",
        context={"resource_id": record.resource_id, "lease_id": record.lease_id, "reason": record.reason},
    )
