"""People: what a human is asked, and what follows from the answer.

The first answer in the log counts. Whoever answers an intervention that is answered already changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from schemas.ids import derive_id
from schemas.records.events import InterventionRequested, InterventionResolved, RecoveryDecided, RestoreRequested

from .commands import operator_command, restore_command
from .effects import Append, Effect, Send, fact
from .events import Delivered
from .ladder import attempt_id_of
from .outcome import finished
from .policy.model import Policy
from .propose import propose
from .state import Case, CheckpointRef, Transition, WorkflowState

#: Ladder of the repairs that people chose: they are outside every budget, and no breaker holds them.
LADDER = "operator"


def intervention_requested(state: WorkflowState, record: InterventionRequested, event: Delivered) -> bool:
    """The request read back: the case waits for a human, with a deadline."""
    case = (state.cases or {}).get(record.error_id or "")
    if case is not None and case.intervention_id is None and state.first_sight(record.event_id):
        case.intervention_id = record.intervention_id
        case.intervention_deadline_us = event.timestamp_us + record.deadline_ms * 1000
        case.interventions += 1
    return False


def intervention_resolved(state: WorkflowState, record: InterventionResolved, event: Delivered) -> bool:
    """The first answer counts. A deadline that passed is escalated, an operator's answer is carried out."""
    case = (state.cases or {}).get(record.error_id or "")
    if case is None or case.intervention_id != record.intervention_id:
        return False
    case.intervention_id = None
    attempt = case.attempt
    if record.decision in ("retry", "restart"):
        case.attempt = None
        case.undo_tries = 0
    state.transitions = (Transition("resolved", case, attempt, "succeeded", record.decision),)
    return False


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


def request(event: Delivered, policy: Policy, case: Case, trigger: str, reason: str) -> Append:
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
        )
    )


def expired(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """Nobody answered in time."""
    assert t.case is not None and t.case.intervention_id is not None
    yield Append(
        fact(
            InterventionResolved,
            event,
            "expired",
            intervention_id=t.case.intervention_id,
            error_id=t.case.error_id,
            step_id=t.case.step_id,
            decision="expired",
            reason="nobody answered in time",
            actor="engine",
        )
    )


def resolved(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Iterator[Effect]:
    """The answer is carried out."""
    record = event.record
    assert isinstance(record, InterventionResolved) and t.case is not None
    if record.decision == "expired":
        if t.case.interventions <= policy.intervention.escalations_max:
            yield request(event, policy, t.case, "intervention_expired", "nobody answered in time")
    elif record.decision == "cancel":
        yield Send(operator_command("CancelWorkflow", state, event, policy, error_id=t.case.error_id))
    elif record.decision in ("retry", "restart"):
        if t.attempt is not None:
            yield finished(event, t)
        if t.case.undoing and record.decision == "retry":  # half undone: it goes on where it failed
            yield from propose(state, event, policy, t.case)
            return
        restart = record.decision == "restart" or not t.case.step_id
        found = state.checkpoints_before(t.case.opened_offset)
        yield _operator_decision(
            event,
            policy,
            t.case,
            "complete_restart" if restart else "retry_step",
            "RestartWorkflow" if restart else "RetryStep",
            None if restart or not found else _place_of(state, found[-1]),
            rule=f"operator {record.actor}: {record.decision}",
            evidence={"intervention_id": record.intervention_id},
        )


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
        yield Append(
            fact(
                InterventionResolved,
                event,
                "answered",
                intervention_id=t.intervention_id,
                error_id=t.case.error_id,
                step_id=t.case.step_id,
                decision="restore",
                reason=record.reason,
                actor=record.actor,
            )
        )
    yield _operator_decision(
        event,
        policy,
        t.case,
        "restart_from_checkpoint",
        "ResumeFromCheckpoint",
        _Place(record.checkpoint_id, record.checkpoint_partition, record.checkpoint_offset, record.checkpoint_digest),
        rule=f"operator {record.actor}: restore",
        evidence={"request_id": record.request_id, "reason": record.reason},
    )


class _Place(NamedTuple):
    """Where a checkpoint stands, and what its state must digest to."""

    checkpoint_id: str
    partition: int
    offset: int
    digest: str


def _place_of(state: WorkflowState, ref: CheckpointRef) -> _Place:
    return _Place(ref.checkpoint_id, state.partition, ref.offset, ref.digest)


def _operator_decision(
    event: Delivered,
    policy: Policy,
    case: Case,
    strategy: str,
    command_type: str,
    place: _Place | None,
    *,
    rule: str,
    evidence: dict[str, str],
) -> Append:
    """A human chose: the command goes out like any other, outside the ladder's budgets."""
    number = case.attempts + 1
    event_id = derive_id(event.record.event_id, f"decided|{case.error_id}", number)
    return Append(
        fact(
            RecoveryDecided,
            event,
            f"decided|{case.error_id}",
            number,
            error_id=case.error_id,
            attempt_id=attempt_id_of(case),
            attempt_number=number,
            error_type=case.error_type,
            rung=len(policy.ladder(case.error_type).rungs),
            strategy=strategy,
            step_id=case.step_id,
            command_type=command_type,
            command_id=derive_id(event_id, "command"),
            checkpoint_id=None if place is None else place.checkpoint_id,
            checkpoint_partition=None if place is None else place.partition,
            checkpoint_offset=None if place is None else place.offset,
            checkpoint_digest=None if place is None else place.digest,
            policy_version=policy.version,
            rule=rule,
            evidence=json.dumps(evidence),
            alternatives="[]",
            ladder=LADDER,
        )
    )
