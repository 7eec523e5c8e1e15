"""Run the failed step again. Success: the step completes. Nothing to undo."""

from __future__ import annotations

from ..backoff import jittered_ms
from .base import Plan, Situation, run_again


def retry_step(situation: Situation) -> Plan:
    """Wait as the backoff says, then run the step again."""
    backoff = situation.rung.backoff
    wait_ms = 0 if backoff is None else jittered_ms(backoff, situation.tries, situation.attempt_id)
    return run_again(situation, f"retry the step after {wait_ms} ms", execute_after_ms=wait_ms)
