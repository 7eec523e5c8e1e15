"""What the coordinator is told of a workflow: resources and waits, failures and their ends, and who is asked.

The coordinator sees all workflows and none of their events; it needs of each only this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from schemas.records import Record
from schemas.records.coordination import (
    FailureEnded,
    FailureSeen,
    InterventionSeen,
    LeaseAsked,
    LeaseReturned,
    RepairWaiting,
    WaitSeen,
    WorkflowEnded,
)
from schemas.records.events import (
    InterventionClaimed,
    InterventionRequested,
    InterventionResolved,
    ResourceReleased,
    ResourceRequested,
    WaitBegan,
    WaitEnded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
)

from .effects import Coordinate, fact
from .events import Delivered
from .policy.model import Policy
from .state import COMPLETED, Case, Transition, WorkflowState
from .strategies import MANUAL

R = TypeVar("R", bound=Record)
#: Characters of a key; what is longer is cut, and two that begin alike are one.
KEY_CHARS_MAX = 300


def key_of(fingerprint: str, dependency: str | None) -> str:
    """What failures of one kind have in common: the outside system where they name one, else how they look."""
    return f"dependency:{dependency}"[:KEY_CHARS_MAX] if dependency else f"fingerprint:{fingerprint}"


def coordinate(state: WorkflowState, event: Delivered, policy: Policy) -> Iterator[Coordinate]:
    """What follows for the coordinator from the event that was folded last."""
    record = event.record
    tell = _BY_RECORD.get(type(record))
    if tell is not None:
        yield from tell(state, event, record)
    for t in state.transitions:
        case = t.case
        if case is None or not (policy.storms.enabled or case.interventions or t.kind == "ended"):
            continue  # without storms only what was tried has to be heard, and of errors that a human was asked about
        if t.kind == "opened" or (t.kind == "ended" and t.outcome == "failed"):
            yield _told(FailureSeen, state, event, f"failure|{case.error_id}", strategy=_tried(t), **_failure(case))
        elif t.kind in ("recovered", "closed"):
            yield _told(
                FailureEnded,
                state,
                event,
                f"failure ended|{case.error_id}",
                error_id=case.error_id,
                fingerprint=case.fingerprint,
                dependency=case.dependency,
                outcome=t.kind,
                strategy=_tried(t) if t.kind == "recovered" else "",
            )
        elif t.kind == "held" and t.attempt is not None and ":" in t.detail:  # a breaker's key, not a branch
            yield _told(
                RepairWaiting,
                state,
                event,
                f"waiting|{t.attempt.decision.attempt_id}",
                error_id=case.error_id,
                attempt_id=t.attempt.decision.attempt_id,
                breaker=t.detail,
                fingerprint=case.fingerprint,
                dependency=case.dependency,
            )


def _told(kind: type[R], of: WorkflowState, event: Delivered, label: str, **fields: Any) -> Coordinate:
    return Coordinate(fact(kind, event, label, partition=of.partition, **fields))


def _tried(t: Transition) -> str:
    """The strategy of the attempt that ended; people who were asked are none."""
    strategy = "" if t.attempt is None else t.attempt.decision.strategy
    return "" if strategy == MANUAL else strategy


def _failure(case: Case) -> dict[str, Any]:
    return {
        "error_id": case.error_id,
        "step_id": case.step_id,
        "error_type": case.error_type,
        "severity": case.severity,
        "fingerprint": case.fingerprint,
        "dependency": case.dependency,
        "attempts": case.attempts,
    }


def _work(state: WorkflowState) -> dict[str, int]:
    return {"work": state.steps.count(COMPLETED), "began_at": max(0, state.started_at_us)}


def _asked(state: WorkflowState, event: Delivered, record: ResourceRequested) -> Iterator[Coordinate]:
    yield _told(
        LeaseAsked,
        state,
        event,
        "lease asked",
        step_id=record.step_id,
        resource_id=record.resource_id,
        lease_id=record.lease_id,
        amount=record.amount,
        priority=record.priority,
        wait_ms=record.wait_ms,
        **_work(state),
    )


def _returned(state: WorkflowState, event: Delivered, record: ResourceReleased) -> Iterator[Coordinate]:
    if record.producer.startswith("kintsugi-coordinator"):
        return  # it knows
    yield _told(
        LeaseReturned,
        state,
        event,
        "lease returned",
        resource_id=record.resource_id,
        lease_id=record.lease_id,
        reason=record.reason,
    )


def _wait_began(state: WorkflowState, event: Delivered, record: WaitBegan) -> Iterator[Coordinate]:
    yield _told(
        WaitSeen,
        state,
        event,
        "wait began",
        wait_id=record.wait_id,
        step_id=record.step_id,
        awaited_id=record.awaited_id,
        **_work(state),
    )


def _wait_ended(state: WorkflowState, event: Delivered, record: WaitEnded) -> Iterator[Coordinate]:
    yield _told(WaitSeen, state, event, "wait ended", wait_id=record.wait_id, step_id="", **_work(state))


def _workflow_ended(state: WorkflowState, event: Delivered, record: Record) -> Iterator[Coordinate]:
    if state.coordinated:
        yield _told(WorkflowEnded, state, event, "workflow ended", status=state.status)


def _intervention(state: WorkflowState, event: Delivered, record: Any) -> Iterator[Coordinate]:
    case = _case_of(state, record)
    if case is None:
        return
    asked = isinstance(record, InterventionRequested)
    if asked:
        what = "open" if case.interventions <= 1 else "escalated"
    elif isinstance(record, InterventionClaimed):
        what = "claimed"
    else:
        what = "ended"
    yield _told(
        InterventionSeen,
        state,
        event,
        f"intervention {what}",
        intervention_id=record.intervention_id,
        error_id=case.error_id,
        step_id=case.step_id,
        state=what,
        trigger=record.trigger if asked else "",
        error_type=case.error_type,
        severity=case.severity,
        fingerprint=case.fingerprint,
        dependency=case.dependency,
        channels=record.channels if asked else (),
        actor=None if asked else record.actor,
    )


def _case_of(state: WorkflowState, record: Any) -> Case | None:
    error_id = getattr(record, "error_id", None)
    if error_id is not None:
        return (state.cases or {}).get(error_id)
    return next((c for c in (state.cases or {}).values() if c.intervention_id == record.intervention_id), None)


_BY_RECORD: dict[type, Callable[[WorkflowState, Delivered, Any], Iterator[Coordinate]]] = {
    ResourceRequested: _asked,
    ResourceReleased: _returned,
    WaitBegan: _wait_began,
    WaitEnded: _wait_ended,
    WorkflowCompleted: _workflow_ended,
    WorkflowFailed: _workflow_ended,
    WorkflowCancelled: _workflow_ended,
    InterventionRequested: _intervention,
    InterventionClaimed: _intervention,
    InterventionResolved: _intervention,
}

#: Types of records that the coordinator hears of even when they change nothing in the workflow's repairs.
TOLD = frozenset(_BY_RECORD)
