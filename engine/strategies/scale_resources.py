"""Give the workflow more of what ran out, wait for it to take effect, then run the step again.

Two commands: ScaleResources, whose answer is waited for, and RetryStep after the policy's settling time. Success: the
step completes; the size it completed with is where the next scaling of this workflow begins. A larger size is left in
place: what is undone by itself would run out again.
"""

from __future__ import annotations

from ..classify import resource_of
from .base import Plan, Situation, Unavailable, run_again


def scale_resources_and_retry(situation: Situation) -> Plan | Unavailable:
    """Multiply the last size, up to the policy's maximum; unavailable there, and for errors that name no resource."""
    case, rung, scaling = situation.case, situation.rung, situation.policy.scaling
    resource = resource_of(case.error_code)
    if resource is None:
        return Unavailable(f"{case.error_code} names no resource that could be scaled")
    if situation.stage == "scale":
        again = run_again(
            situation, f"retry with {case.scaled:g} times the {resource}", execute_after_ms=scaling.settle_ms
        )
        return again
    worked = (situation.state.sizes or {}).get(resource, 1.0)
    before = max(case.scaled, worked)
    factor = min(before * rung.scaling_factor, scaling.factor_max)
    if factor <= before:
        return Unavailable(f"{resource} is at {before:g} times its base, the policy's maximum")
    return Plan(
        command_type="ScaleResources",
        action=f"scale {resource} to {factor:g} times its base",
        stage="scale",
        parameters={"resource": resource, "factor": factor},
    )
