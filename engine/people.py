"""People: what a human is asked, and what follows from the answer.

The first answer in the log counts. Whoever answers what is answered already changes nothing, and so does a decision
that nobody knows. An answer that cannot be carried out leads to the next question at once. A workflow that stands
before an intervention point is a case of its own: it waits for a human, and no ladder is tried for it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.fingerprint import fingerprint_of
from schemas.ids import derive_id
from schemas.records.events import (
    InterventionClaimed,
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    WorkflowErrorOccurred,
)

from .by_hand import CANCEL, SKIP, TEXT_CHARS_MAX, decision_of, object_of, plan_of
from .effects import Append, Effect, fact
from .events import Delivered
from .fold_stages import in_flight
from .outcome import finished
from .policy.model import Policy
from .propose import propose
from .state import CASES_MAX, Case, Transition, WorkflowState
from .strategies import Plan, Unavailable

#: Type of the case of a workflow that stands before an intervention point.
POINT = "intervention_point"
_POINT_CODE = "INTERVENTION_POINT"

APPROVE, RETRY, RETRY_EDITED, ALTERNATIVE = "approve", "retry", "retry_edited", "alternative"
ESCALATE, EXPIRED = "escalate", "expired"
#: The strategy that carries out a decision.
STRATEGY_OF = {
    APPROVE: "retry_step",
    RETRY: "retry_step",
    RETRY_EDITED: "retry_step",
    "skip": SKIP,
    ALTERNATIVE: "alternative_path",
    "rollback": "rollback",
    "restart": "complete_restart",
    "cancel": CANCEL,
}
#: Decisions that lead to the next question.
ASKS_AGAIN = frozenset({ESCALATE, EXPIRED})
#: What the engine itself writes when an operator's restore or repair takes the place of an answer.
REPLACED = frozenset({"restore", "recover"})
#: What the engine writes when nobody needs to answer any more.
CLOSED = "closed"
#: Decisions that people may take.
DECISIONS = (*STRATEGY_OF, ESCALATE)
#: All decisions that mean something; any other changes nothing.
KNOWN = frozenset(DECISIONS) | ASKS_AGAIN | REPLACED | {CLOSED}


def intervention_requested(state: WorkflowState, record: InterventionRequested, event: Delivered) -> bool:
    """The request read back: the case waits for a human, with a deadline."""
    if not state.first_sight(record.event_id):
        return False
    case = (state.cases or {}).get(record.error_id or "")
    if case is None:  # it closed while the question was on its way
        state.transitions = (Transition("asked_late", intervention_id=record.intervention_id),)
    elif case.intervention_id is None:
        case.intervention_id = record.intervention_id
        case.intervention_deadline_us = event.timestamp_us + record.deadline_ms * 1000
        case.interventions += 1
        case.claimed_by = ""
    return False


def intervention_claimed(state: WorkflowState, record: InterventionClaimed, event: Delivered) -> bool:
    """Somebody looks after it; whoever claims it last does."""
    for case in (state.cases or {}).values():
        if case.intervention_id == record.intervention_id:
            case.claimed_by = record.actor
    return False


def intervention_resolved(state: WorkflowState, record: InterventionResolved, event: Delivered) -> bool:
    """The first answer counts. A deadline that passed is escalated, an operator's answer is carried out."""
    case = (state.cases or {}).get(record.error_id or "")
    if case is None or case.intervention_id != record.intervention_id or record.decision not in KNOWN:
        return False
    case.intervention_id = None
    attempt = case.attempt
    if record.decision in STRATEGY_OF:
        case.attempt = None
        case.undo_tries = 0
        case.promise()
        case.approved = case.approved or record.decision == APPROVE
    state.transitions = (Transition("resolved", case, attempt, "succeeded", record.decision),)
    return False


def point_reached(state: WorkflowState, record: InterventionPointReached, event: Delivered) -> bool:
    """The workflow stands before a step that a human must let it pass."""
    if not state.first_sight(record.event_id):
        return False
    number = state.step_index(record.step_id)
    state.end_run(number)
    case = state.case_of(record.step_id)
    if case is None:
        _open_point(state, record, event)
    elif case.attempt is not None and in_flight(case.attempt):  # a repair led to the point again
        attempt, case.attempt = case.attempt, None
        detail = "the workflow stands before the intervention point again"
        state.transitions = (Transition("point", case, attempt, "failed", detail),)
    return True


def _open_point(state: WorkflowState, record: InterventionPointReached, event: Delivered) -> None:
    if len(state.cases or ()) >= CASES_MAX:
        detail = f"{CASES_MAX} errors are open already: nobody is asked about step {record.step_id!r:.200}"
        state.transitions = (Transition("point_refused", detail=detail, step_id=record.step_id),)
        return
    case = Case(
        error_id=derive_id(record.event_id, "point"),
        step_id=record.step_id,
        error_type=POINT,
        severity="low",
        opened_at_us=event.timestamp_us,
        opened_offset=event.offset,
        error_code=_POINT_CODE,
        fingerprint=fingerprint_of(state.workflow_type, record.step_id, _POINT_CODE, "", None),
    )
    state.open_case(case)
    state.transitions = (Transition("point", case),)


def point_passed(state: WorkflowState, case: Case) -> bool:
    """The step that a human let pass failed: that is an error of its own, and the point's case is over."""
    if case.error_type != POINT or case.attempt is None:
        return False
    state.close_case(case)
    detail = "the step was let pass, and failed"
    state.transitions = (Transition("recovered", case, case.attempt, "succeeded", detail),)
    return True


def request(event: Delivered, policy: Policy, case: Case, trigger: str, reason: str, *, state: WorkflowState) -> Append:
    """A human is asked."""
    return Append(
        fact(
            InterventionRequested,
            event,
            f"intervention|{case.error_id}",
            case.interventions + 1,
            intervention_id=derive_id(case.error_id, "intervention", case.interventions + 1),
            error_id=case.error_id,
            step_id=case.step_id,
            trigger=trigger,
            reason=reason,
            deadline_ms=policy.intervention.timeout_ms,
            channels=policy.intervention.channels,
            fingerprint=case.fingerprint or None,
            dependency=case.dependency,
            options=options_of(state, case, policy),
        )
    )


def options_of(state: WorkflowState, case: Case, policy: Policy) -> tuple[str, ...]:
    """Decisions that can be carried out for this case as it stands."""
    found = [d for d in STRATEGY_OF if not isinstance(plan_for(state, case, policy, d, {}), Unavailable)]
    return (*found, ESCALATE)


def plan_for(
    state: WorkflowState, case: Case, policy: Policy, decision: str, parameters: Mapping[str, Any]
) -> Plan | Unavailable:
    """What a decision would do for this case, or why it cannot be taken."""
    point = case.error_type == POINT
    if point and decision in (RETRY, RETRY_EDITED):
        return Unavailable("the step waits to be let pass: approve does that")
    if not point and decision == APPROVE:
        spec = state.graph.spec(case.step_id)
        if case.approved or spec is None or not spec.intervention_point:
            return Unavailable("the step waits for nobody's approval: retry runs it again")
    if decision in (APPROVE, RETRY_EDITED) and not case.step_id:
        return Unavailable("the error is about no step")
    return plan_of(state, case, policy, STRATEGY_OF[decision], parameters)


def point(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """Ask whether the workflow may go on. A declared point always asks, whatever the policy's `enabled` says."""
    record = event.record
    assert isinstance(record, InterventionPointReached) and t.case is not None
    if t.attempt is not None:
        yield finished(event, t)
    reason = record.reason or f"step {record.step_id!r} is an intervention point"
    yield request(event, policy, t.case, POINT, reason, state=state)


def point_refused(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """Too much is open for another question: that is said as an error."""
    yield Append(
        fact(
            WorkflowErrorOccurred,
            event,
            "point refused",
            error_id=derive_id(event.record.event_id, "error"),
            step_id=t.step_id,
            error_code=_POINT_CODE,
            error_message=t.detail,
            detected_by="engine",
        )
    )


def asked_late(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """A question about what is over."""
    record = event.record
    assert isinstance(record, InterventionRequested)
    yield _closed(event, record.intervention_id, record.error_id, record.step_id)


def closed(event: Delivered, case: Case) -> Iterator[Effect]:
    """The case is over: nobody needs to answer any more."""
    if case.intervention_id is not None:
        yield _closed(event, case.intervention_id, case.error_id, case.step_id)


def _closed(event: Delivered, intervention_id: str, error_id: str | None, step_id: str) -> Append:
    return Append(
        fact(
            InterventionResolved,
            event,
            f"closed|{intervention_id}",
            intervention_id=intervention_id,
            error_id=error_id,
            step_id=step_id,
            decision=CLOSED,
            reason="the error or the workflow is over",
            actor="engine",
        )
    )


def expired(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """Nobody answered in time: the policy's default is the answer, or somebody else is asked."""
    assert t.case is not None and t.case.intervention_id is not None
    default = policy.intervention.on_timeout
    if default == RETRY and t.case.error_type == POINT:
        default = ESCALATE  # nobody let it pass
    yield Append(
        fact(
            InterventionResolved,
            event,
            "expired",
            intervention_id=t.case.intervention_id,
            error_id=t.case.error_id,
            step_id=t.case.step_id,
            decision=EXPIRED if default == ESCALATE else default,
            reason="nobody answered in time",
            actor="engine",
        )
    )


def resolved(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """The answer is carried out; one that cannot be leads to the next question."""
    record = event.record
    assert isinstance(record, InterventionResolved) and t.case is not None
    decision = record.decision
    if decision == EXPIRED:
        if t.case.interventions <= policy.intervention.escalations_max:
            yield request(event, policy, t.case, "intervention_expired", "nobody answered in time", state=state)
        return
    if decision == ESCALATE:
        yield request(event, policy, t.case, "escalated", f"{record.actor}: {record.reason}", state=state)
        return
    if decision in REPLACED or decision == CLOSED:
        return
    parameters = object_of(record.parameters)
    plan: Plan | Unavailable
    if parameters is None:
        plan = Unavailable("the parameters are no JSON object")
    else:
        plan = plan_for(state, t.case, policy, decision, parameters)
    given = _supplied(record)
    if isinstance(given, Unavailable):
        plan = given
    if isinstance(plan, Unavailable):
        if t.attempt is not None:
            yield finished(event, t._replace(outcome="failed", detail=plan.reason))
        reason = f"{decision}: {plan.reason}"
        yield request(event, policy, t.case, "answer_not_possible", reason, state=state)
        return
    assert not isinstance(given, Unavailable)
    if t.attempt is not None:
        yield finished(event, t)
    if t.case.undoing and decision == RETRY:  # half undone: it goes on where it failed
        yield from propose(state, event, policy, t.case)
        return
    yield decision_of(
        event,
        state,
        policy,
        t.case,
        plan,
        STRATEGY_OF[decision],
        number=t.case.promised,
        rule=f"operator {record.actor}: {decision}",
        evidence={"intervention_id": record.intervention_id, "asked": parameters},
        parameters=given,
    )


def _supplied(record: InterventionResolved) -> dict[str, Any] | Unavailable:
    """What the human supplied, as fields of the command: in clear, or sealed bytes that only the service can read."""
    if record.sealed is not None:
        if record.decision not in (APPROVE, RETRY_EDITED, "skip"):
            return Unavailable(f"{record.decision} takes no edit and no result")
        return {"sealed": b64encode(record.sealed).decode()}
    fields: dict[str, Any] = {}
    for name, text, takes in (
        ("edit", record.edit, (APPROVE, RETRY_EDITED)),
        ("result", record.result, ("skip",)),
    ):
        if text is None:
            continue
        if record.decision not in takes:
            return Unavailable(f"{record.decision} takes no {name}")
        if len(text) > TEXT_CHARS_MAX or object_of(text) is None:
            return Unavailable(f"the {name} is no JSON object of up to {TEXT_CHARS_MAX} characters")
        fields[name] = text
    if record.decision == RETRY_EDITED and not fields:
        return Unavailable("retry_edited needs an edit")
    return fields


#: What each transition of this module leads to.
HANDLERS = {
    "asked_late": asked_late,
    "expired": expired,
    "resolved": resolved,
    "point": point,
    "point_refused": point_refused,
}
