"""Run the step that is declared as the alternative of the failed one, and go on after it.

Needs `alternative` in the step's declaration. Success: the alternative completes; the failed one is skipped then.
Undone by the alternative's own compensation.
"""

from __future__ import annotations

from .base import Plan, Situation, Unavailable


def alternative_path(situation: Situation) -> Plan | Unavailable:
    """Run the declared alternative; unavailable when there is none, or when it has failed as well."""
    spec = situation.state.graph.spec(situation.case.step_id)
    if spec is None or spec.alternative is None:
        return Unavailable(f"step {situation.case.step_id!r} declares no alternative")
    if spec.alternative == spec.step_id:
        return Unavailable(f"step {spec.step_id!r} is declared as its own alternative")
    if situation.state.case_of(spec.alternative) is not None:
        return Unavailable(f"its alternative {spec.alternative!r} has an error of its own")
    return Plan(
        command_type="RunAlternativePath",
        action=f"run {spec.alternative!r} instead",
        checkpoint=situation.checkpoint(),
        parameters={"alternative_step_id": spec.alternative},
    )
