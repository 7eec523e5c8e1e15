"""From the ladder's choice to the decision that is written down, with what it saw."""

from __future__ import annotations

import json
from collections.abc import Iterator

from schemas.ids import derive_id
from schemas.records.events import RecoveryDecided

from .effects import Append, Effect, fact
from .events import Delivered
from .ladder import attempt_id_of, choose
from .policy.model import Policy
from .state import Case, WorkflowState


def propose(state: WorkflowState, event: Delivered, policy: Policy, case: Case) -> Iterator[Effect]:
    """The next decision of a case that has no attempt."""
    choice = choose(state, case, policy, event.timestamp_us)
    checkpoint, parameters = choice.plan.checkpoint, choice.plan.parameters
    number = case.next_number
    event_id = derive_id(event.record.event_id, f"decided|{case.error_id}", number)
    evidence = {
        "occurrences": case.occurrences,
        "attempts": case.attempts,
        "workflow_attempts": state.attempts,
        "open_ms": (event.timestamp_us - case.opened_at_us) // 1000,
        "checkpoints": len(state.checkpoints_before(case.opened_offset)),
        "severity": case.severity,
        "action": choice.plan.action,
        **({"unanswered": case.unanswered} if case.unanswered else {}),
        **({"trigger": choice.trigger} if choice.trigger else {}),
    }
    yield Append(
        fact(
            RecoveryDecided,
            event,
            f"decided|{case.error_id}",
            number,
            error_id=case.error_id,
            attempt_id=attempt_id_of(case),
            attempt_number=number,
            error_type=case.error_type,
            rung=choice.rung,
            strategy=choice.strategy,
            step_id=choice.plan.step_id or case.step_id,
            command_type=choice.plan.command_type,
            command_id=derive_id(event_id, "command") if choice.plan.command_type else None,
            execute_after_ms=choice.plan.execute_after_ms,
            timeout_ms=choice.plan.timeout_ms,
            checkpoint_id=checkpoint.checkpoint_id if checkpoint else None,
            checkpoint_partition=state.partition if checkpoint else None,
            checkpoint_offset=checkpoint.offset if checkpoint else None,
            checkpoint_digest=checkpoint.digest if checkpoint else None,
            policy_version=policy.version,
            rule=choice.rule,
            evidence=json.dumps(evidence, sort_keys=True),
            alternatives=json.dumps([{"strategy": s, "reason": r} for s, r in choice.passed_over]),
            stage=choice.plan.stage,
            parameters=None if parameters is None else json.dumps(dict(parameters), sort_keys=True),
            cost=choice.cost,
            ladder=choice.ladder,
        )
    )
