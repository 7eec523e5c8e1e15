"""Run the step again with a longer deadline. Success: the step completes within it. Nothing to undo."""

from __future__ import annotations

from .base import Plan, Situation, Unavailable, run_again


def increase_timeout_and_retry(situation: Situation) -> Plan | Unavailable:
    """Multiply the last deadline, up to the policy's maximum; at the maximum another try is still allowed."""
    case, rung, state = situation.case, situation.rung, situation.state
    spec = state.graph.spec(case.step_id)
    if case.timeout_ms is not None:
        before_ms = case.timeout_ms
    elif spec is not None:
        before_ms = situation.policy.step_timeout_ms(spec)
    else:
        before_ms = situation.policy.timeouts.step_ms
    # Multiplied as milliseconds and cut before conversion: a large multiplier must not overflow the field.
    longer_ms = int(min(before_ms * rung.timeout_multiplier, float(rung.timeout_ms_max or 2**53)))
    timeout_ms = max(before_ms, longer_ms) if rung.timeout_ms_max is None else longer_ms
    return run_again(situation, f"retry with a deadline of {timeout_ms} ms", timeout_ms=timeout_ms)
