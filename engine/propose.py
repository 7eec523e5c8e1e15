"""From a plan to the decision that is written down, with what it saw: the ladder's, and those of people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.ids import derive_id
from schemas.records.events import RecoveryDecided

from .effects import Append, Effect, fact
from .events import Delivered
from .ladder import choose
from .policy.model import Policy
from .state import Case, WorkflowState
from .strategies import Plan


def propose(state: WorkflowState, event: Delivered, policy: Policy, case: Case) -> Iterator[Effect]:
    """The next decision of a case that has no attempt."""
    choice = choose(state, case, policy, event.timestamp_us)
    evidence = {
        "occurrences": case.occurrences,
        "attempts": case.attempts,
        "workflow_attempts": state.attempts,
        "open_ms": (event.timestamp_us - case.opened_at_us) // 1000,
        "checkpoints": len(state.checkpoints_before(case.opened_offset)),
        "severity": case.severity,
        **({"unanswered": case.unanswered} if case.unanswered else {}),
        **({"trigger": choice.trigger} if choice.trigger else {}),
    }
    yield write_down(
        event,
        state,
        policy,
        case,
        choice.plan,
        choice.strategy,
        number=case.next_number,
        rung=choice.rung,
        ladder=choice.ladder,
        rule=choice.rule,
        evidence=evidence,
        alternatives=choice.passed_over,
        cost=choice.cost,
    )


def write_down(
    event: Delivered,
    state: WorkflowState,
    policy: Policy,
    case: Case,
    plan: Plan,
    strategy: str,
    *,
    number: int,
    rung: int,
    ladder: str,
    rule: str,
    evidence: Mapping[str, Any],
    alternatives: tuple[tuple[str, str], ...] = (),
    cost: float = 0.0,
) -> Append:
    """The decision for a plan, as attempt `number` of the case; its ids follow from the event and the number."""
    event_id = derive_id(event.record.event_id, f"decided|{case.error_id}", number)
    checkpoint = plan.checkpoint
    return Append(
        fact(
            RecoveryDecided,
            event,
            f"decided|{case.error_id}",
            number,
            error_id=case.error_id,
            attempt_id=derive_id(case.error_id, "attempt", number),
            attempt_number=number,
            error_type=case.error_type,
            rung=rung,
            strategy=strategy,
            step_id=plan.step_id or case.step_id,
            command_type=plan.command_type,
            command_id=derive_id(event_id, "command") if plan.command_type else None,
            execute_after_ms=plan.execute_after_ms,
            timeout_ms=plan.timeout_ms,
            checkpoint_id=checkpoint.checkpoint_id if checkpoint else None,
            checkpoint_partition=state.partition if checkpoint else None,
            checkpoint_offset=checkpoint.offset if checkpoint else None,
            checkpoint_digest=checkpoint.digest if checkpoint else None,
            policy_version=policy.version,
            rule=rule,
            evidence=json.dumps({"action": plan.action, **evidence}, sort_keys=True),
            alternatives=json.dumps([{"strategy": s, "reason": r} for s, r in alternatives]),
            stage=plan.stage,
            parameters=json.dumps(dict(plan.parameters), sort_keys=True) if plan.parameters else None,
            cost=cost,
            ladder=ladder,
        )
    )
