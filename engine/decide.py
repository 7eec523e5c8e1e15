"""Decide: what follows from the event just folded. Pure; the answer depends on state, event and policy alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from schemas.records.events import (
    ErrorClassified,
    RepairHeld,
    WorkflowErrorOccurred,
    WorkflowFailed,
)

from . import branches, people, requests
from .by_hand import LADDER, next_stage
from .classify import classify
from .commands import command_of
from .coordinating import TOLD, coordinate, key_of
from .detectors import detect, fingerprint, lost_lease, overdue, state_corruption
from .effects import Append, Effect, Send, fact
from .events import Delivered
from .fold_stages import BRANCHES
from .inforce import NO_BREAKERS, Breakers
from .ladder import GIVE_UP
from .outcome import finished
from .policy.model import Policy
from .propose import propose
from .state import Transition, WorkflowState
from .strategies import MANUAL


def decide(
    state: WorkflowState, event: Delivered, policy: Policy, breakers: Breakers = NO_BREAKERS
) -> tuple[Effect, ...]:
    """Effects of the event that `evolve` folded last. Folding it again gives none; deciding again gives the same."""
    told = type(event.record) in TOLD
    if not state.transitions and not told:
        return ()
    effects: list[Effect] = []
    for transition in state.transitions:
        held = _hold(state, event, policy, breakers, transition) if transition.kind in _SENDING else None
        if held is not None:
            effects.append(held)
        else:
            effects.extend(_HANDLERS[transition.kind](state, event, policy, transition))
    effects.extend(coordinate(state, event, policy))
    return tuple(effects)


def _hold(state: WorkflowState, event: Delivered, policy: Policy, breakers: Breakers, t: Transition) -> Append | None:
    """Why the command that is due may not go out now; None when it may."""
    case, attempt = t.case, t.attempt
    if case is None or attempt is None or attempt.status != "sent" or t.outcome == "released":
        return None
    decision = attempt.decision
    if decision.command_type is None or decision.strategy in (MANUAL, GIVE_UP) or decision.ladder == LADDER:
        return None
    key = key_of(case.fingerprint, case.dependency)
    if breakers and breakers.is_open(key):
        held, reason = key, f"{key} is failing for others too"
    elif policy.coordination.branches == branches.WAIT_FOR_ALL and branches.siblings(state, case.step_id):
        held, reason = BRANCHES, "other branches of the workflow are still running"
    else:
        return None
    return Append(
        fact(
            RepairHeld,
            event,
            f"held|{decision.attempt_id}",
            error_id=case.error_id,
            attempt_id=decision.attempt_id,
            breaker=held,
            reason=reason,
        )
    )


def _opened(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.case is not None
    yield _classified(event, t.case.error_id, "opened")
    yield from branches.opened(state, event, policy, t.case)
    yield from propose(state, event, policy, t.case)


def _again(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.case is not None
    yield _classified(event, t.case.error_id, "joined")


def _unrooted(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    record = event.record
    assert isinstance(record, WorkflowErrorOccurred)
    yield _classified(event, record.error_id, "ignored", note=t.detail)


def _ended(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.case is not None
    yield finished(event, t)
    if isinstance(event.record, WorkflowErrorOccurred):
        yield _classified(event, t.case.error_id, "joined")
    if not t.case.requested:  # an operator's repair comes next, or its refusal
        yield from propose(state, event, policy, t.case)


def _staged(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """A command was answered and is over: the strategy goes on."""
    assert t.case is not None
    yield finished(event, t)
    if t.case.requested:  # an operator's repair comes next, or its refusal
        return
    by_hand = next_stage(state, event, policy, t)
    if by_hand is not None:
        yield by_hand
    else:
        yield from propose(state, event, policy, t.case)


def _held(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    return iter(())  # the coordinator is told


def _closed(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.case is not None
    if t.attempt is not None:
        yield finished(event, t)
    yield from people.closed(event, t.case)
    yield from branches.closed(state, event, policy, t.case, recovered=t.kind == "recovered")


def _late(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """A decision whose case closed while it was on its way: nothing is sent, the attempt ends as the case did."""
    succeeded = state.status not in ("failed", "cancelled")
    yield finished(
        event,
        t._replace(
            outcome="succeeded" if succeeded else "failed", detail="the error ended before the command was sent"
        ),
    )


def _decided(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.case is not None and t.attempt is not None
    decision = t.attempt.decision
    if t.attempt.status == "sent" and decision.command_type is not None:
        yield Send(command_of(t.attempt, state, event, policy))
    if decision.strategy not in (MANUAL, GIVE_UP):
        return
    if decision.strategy == MANUAL and policy.intervention.enabled:
        trigger = json.loads(decision.evidence).get("trigger", "all_recovery_strategies_failed")
        yield people.request(event, policy, t.case, trigger, decision.rule, state=state)
    else:
        yield Append(fact(WorkflowFailed, event, "gave_up", reason=decision.rule, error_id=t.case.error_id))


def _send(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.attempt is not None
    if t.attempt.decision.command_type is not None:
        yield Send(command_of(t.attempt, state, event, policy))


def _overdue(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    yield Append(overdue(event, t.detail, t.step_id, t.run))


def _rejected(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    yield from map(Append, state_corruption(event, policy, reason=t.outcome, detail=t.detail))


def _lease_lost(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    assert t.run is not None
    yield Append(lost_lease(event, t.step_id, t.run))


def _look(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    yield from map(Append, detect(state, event, policy))


#: Transitions at which a command goes out.
_SENDING = frozenset({"decided", "send"})
_HANDLERS: dict[str, Callable[[WorkflowState, Delivered, Policy, Transition], Iterator[Effect]]] = {
    "opened": _opened,
    "again": _again,
    "unrooted": _unrooted,
    "ended": _ended,
    "staged": _staged,
    "held": _held,
    "recovered": _closed,
    "closed": _closed,
    "late": _late,
    "decided": _decided,
    "send": _send,
    "overdue": _overdue,
    "rejected": _rejected,
    "lease_lost": _lease_lost,
    "look": _look,
    **people.HANDLERS,
    **requests.HANDLERS,
}


def _classified(event: Delivered, root_error_id: str, disposition: str, *, note: str = "") -> Append:
    record = event.record
    assert isinstance(record, WorkflowErrorOccurred)
    kind = classify(record)
    return Append(
        fact(
            ErrorClassified,
            event,
            "classified",
            error_id=record.error_id,
            root_error_id=root_error_id,
            error_type=kind.error_type,
            severity=kind.severity,
            retryable=kind.retryable,
            fingerprint=fingerprint(record),
            rule=f"{kind.rule}; {note}" if note else kind.rule,
            disposition=disposition,
        )
    )
