"""Let the workflow rest, then run the step again: for exhausted resources that come back by themselves."""

from __future__ import annotations

from .base import Plan, Situation, run_again


def queue_for_later(situation: Situation) -> Plan:
    """Wait the policy's delay; the workflow waits in the state, nothing waits in a consumer."""
    delay_ms = situation.rung.delay_ms
    return run_again(situation, f"queued for {delay_ms} ms", execute_after_ms=delay_ms)
