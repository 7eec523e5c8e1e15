"""How an attempt ended, as a fact."""

from __future__ import annotations

import json

from schemas.records.events import RecoveryAttemptFinished

from .effects import Append, fact
from .events import Delivered
from .state import Transition


def finished(event: Delivered, t: Transition) -> Append:
    """The attempt of a transition is over."""
    assert t.attempt is not None
    decision = t.attempt.decision
    action = json.loads(decision.evidence).get("action", decision.strategy)
    return Append(
        fact(
            RecoveryAttemptFinished,
            event,
            f"finished|{decision.attempt_id}",
            error_id=decision.error_id,
            attempt_id=decision.attempt_id,
            attempt_number=decision.attempt_number,
            strategy=decision.strategy,
            outcome=t.outcome,
            action_taken=str(action)[:255],
            error_message=None if t.outcome == "succeeded" else t.detail or None,
            duration_ms=max(0, event.timestamp_us - t.attempt.decided_at_us) // 1000,
        )
    )
