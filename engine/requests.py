"""What operators ask for unasked: a restore, or one repair of an open error.

Both take the place of what is being tried. A repair that cannot be carried out is refused in the log, and what was
being tried goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.records.events import (
    InterventionResolved,
    RecoveryDecided,
    RecoveryRefused,
    RecoveryRequested,
    RestoreRequested,
)

from .by_hand import LADDER, decision_of, object_of, plan_of
from .commands import restore_command
from .effects import Append, Effect, Send, fact
from .events import Delivered
from .outcome import finished
from .people import POINT
from .policy.model import Policy
from .propose import propose
from .state import Attempt, Case, CheckpointRef, Transition, WorkflowState
from .strategies import Plan, Unavailable


def restore_requested(state: WorkflowState, record: RestoreRequested, event: Delivered) -> bool:
    """An operator's restore answers the case that waits for a human, else the oldest; without one it stands alone."""
    if not state.first_sight(record.event_id):
        return False
    cases = (state.cases or {}).values()
    case = next((c for c in cases if c.intervention_id is not None), next(iter(cases), None))
    if case is None:
        state.epochs += 1
        state.transitions = (Transition("restore"),)
        return False
    attempt, intervention_id = case.attempt, case.intervention_id
    case.promise(on_its_way=_on_its_way(attempt, intervention_id))
    case.attempt = case.intervention_id = None
    state.transitions = (
        Transition(
            "restore",
            case,
            attempt,
            outcome="failed",
            detail="an operator restored the workflow",
            intervention_id=intervention_id or "",
        ),
    )
    return False


def restore(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """An operator chose a checkpoint: what was being tried ends, and the restore is the case's next attempt."""
    record = event.record
    assert isinstance(record, RestoreRequested)
    if t.case is None:
        yield Send(restore_command(state, event, policy))
        return
    if t.attempt is not None:
        yield finished(event, t)
    if t.intervention_id:
        yield _replaced(event, t.case, t.intervention_id, "restore", record)
    plan = Plan(
        command_type="ResumeFromCheckpoint",
        action="restart_from_checkpoint",
        checkpoint=CheckpointRef(
            record.checkpoint_id, record.checkpoint_digest, record.checkpoint_offset, 0, 0, b"", b""
        ),
    )
    yield decision_of(
        event,
        state,
        policy,
        t.case,
        plan,
        "restart_from_checkpoint",
        rule=f"operator {record.actor}: restore",
        evidence={"request_id": record.request_id, "reason": record.reason},
        number=t.case.promised,
    )


def _replaced(
    event: Delivered, case: Case, intervention_id: str, decision: str, record: RestoreRequested | RecoveryRequested
) -> Append:
    return Append(
        fact(
            InterventionResolved,
            event,
            "answered",
            intervention_id=intervention_id,
            error_id=case.error_id,
            step_id=case.step_id,
            decision=decision,
            reason=record.reason,
            actor=record.actor,
        )
    )


def recovery_requested(state: WorkflowState, record: RecoveryRequested, event: Delivered) -> bool:
    """Nothing changes yet: whether it can be done depends on the policy, so it is decided, and read back."""
    if not state.first_sight(record.event_id):
        return False
    case = (state.cases or {}).get(record.error_id)
    if case is None:
        state.transitions = (Transition("asked", detail="the error is not open"),)
    elif case.requested:
        state.transitions = (Transition("asked", detail="another request is being decided"),)
    else:
        case.requested = record.event_id
        case.promise(on_its_way=_on_its_way(case.attempt, case.intervention_id))
        case.requested_number = case.promised
        state.transitions = (Transition("asked", case),)
    return False


def recovery_refused(state: WorkflowState, record: RecoveryRefused, event: Delivered) -> bool:
    """Read back: the next request may come, and what ended meanwhile goes on."""
    case = (state.cases or {}).get(record.error_id)
    if case is not None and case.requested == record.causation_id:
        case.requested = ""
        nothing_else = case.promised == case.requested_number
        if case.attempt is None and case.intervention_id is None and nothing_else:
            state.transitions = (Transition("go_on", case),)
    return False


def asked(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """Decide for the repair that was asked for, or refuse it."""
    record, case = event.record, t.case
    assert isinstance(record, RecoveryRequested)
    parameters = object_of(record.parameters)
    plan: Plan | Unavailable
    if case is None:
        plan = Unavailable(t.detail)
    elif parameters is None:
        plan = Unavailable("the parameters are no JSON object")
    elif case.undoing == record.strategy and case.intervention_id is None:
        plan = Unavailable(f"{case.undoing} is under way")
    else:
        plan = plan_of(state, case, policy, record.strategy, parameters)
    if isinstance(plan, Unavailable) or case is None:
        reason = plan.reason if isinstance(plan, Unavailable) else ""
        yield Append(
            fact(
                RecoveryRefused,
                event,
                "refused",
                request_id=record.request_id,
                error_id=record.error_id,
                strategy=record.strategy,
                reason=reason,
            )
        )
        return
    if case.intervention_id is not None:
        yield _replaced(event, case, case.intervention_id, "recover", record)
    yield decision_of(
        event,
        state,
        policy,
        case,
        plan,
        record.strategy,
        rule=f"operator {record.actor}: {record.strategy}",
        evidence={"request_id": record.request_id, "reason": record.reason, "asked": parameters},
        number=case.promised,
    )


def _on_its_way(attempt: Attempt | None, intervention_id: str | None) -> bool:
    """Whether another decision may be in the log already, or about to be: this one comes after it."""
    return attempt is None and not intervention_id


def go_on(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """The ladder's next decision, which waited for an operator's request."""
    assert t.case is not None
    if t.case.error_type != POINT:
        yield from propose(state, event, policy, t.case)


def supersede(state: WorkflowState, case: Case, record: RecoveryDecided) -> None:
    """A decision of a human is read back: what is being tried ends before it."""
    if case.requested and record.causation_id == case.requested:
        case.requested = ""
    if record.ladder != LADDER or record.attempt_number <= case.attempts:
        return
    if record.strategy != case.undoing:
        case.undoing = ""
    if not record.stage:
        case.stage = ""
    attempt = case.attempt
    if attempt is not None:
        case.attempt = case.intervention_id = None
        state.transitions = (Transition("superseded", case, attempt, "failed", record.rule),)


def superseded(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """The attempt that an operator's repair took the place of."""
    yield finished(event, t)


#: What each transition of this module leads to.
HANDLERS = {"restore": restore, "asked": asked, "go_on": go_on, "superseded": superseded}
