"""What must not be repeated: the last look at a plan before it is decided.

An outcome has three values. A step that may have taken effect and must not run twice is asked about first, and goes to
a human when nobody can tell; a completed one is not run again behind anybody's back.
"""

from __future__ import annotations

from .state import Case, WorkflowState
from .strategies import Plan, Unavailable

#: Commands after which the failed step, or what stands for it, runs again.
_REPEATING = frozenset(
    {"RetryStep", "ResumeFromCheckpoint", "RestartWorkflow", "RunAlternativePath", "RollbackTo", "CompensateStep"}
)
#: Commands that go back to the state of a checkpoint, and run what completed after it again.
_RESTORING = frozenset({"RetryStep", "ResumeFromCheckpoint", "RunAlternativePath"})
#: Commands that give up whatever else is at work. A retry leaves other branches alone.
_REPLACING = frozenset(
    {"ResumeFromCheckpoint", "RestartWorkflow", "RunAlternativePath", "RollbackTo", "CompensateStep"}
)


class Unknowable:
    """The step may have taken effect, repeating it would harm, and nobody can tell: a human has to."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def checked(state: WorkflowState, case: Case, plan: Plan) -> Plan | Unavailable | Unknowable:
    """The plan, or what has to come before it, or why it must not be."""
    if plan.command_type not in _REPEATING:
        return plan
    first = _settle_outcome(state, case)
    if first is not None:
        return first
    steps = state.graph.steps
    if plan.command_type in _REPLACING:
        at_work = [steps[n] for n in state.runs or () if steps[n].step_id != case.step_id and not steps[n].idempotent]
        if at_work:
            return Unknowable(f"step {at_work[0].step_id!r} is at work, would be given up, and is not idempotent")
    if plan.command_type == "RestartWorkflow":
        since = -1
    elif plan.command_type in _RESTORING and plan.checkpoint is not None:
        since = plan.checkpoint.offset
    else:
        return plan
    repeated = [steps[n].step_id for n in state.effects_after(since) if not steps[n].idempotent]
    if repeated:
        return Unavailable(f"it would run step {repeated[0]!r} a second time, which is not idempotent")
    return plan


def _settle_outcome(state: WorkflowState, case: Case) -> Plan | Unknowable | None:
    spec = state.graph.spec(case.step_id)
    if not case.unsure or spec is None or spec.idempotent or case.reconciled == "no_effect":
        return None
    if case.reconciled == "took_effect":
        found = state.checkpoints_before(case.opened_offset)
        return Plan(
            command_type="SkipStep",
            action=f"step {case.step_id!r} took effect: go on after it",
            checkpoint=found[-1] if found else None,
        )
    if case.reconciled:
        return Unknowable(f"whether step {case.step_id!r} took effect, its service cannot tell")
    if not spec.reconcilable:
        return Unknowable(f"step {case.step_id!r} may have taken effect, and is neither idempotent nor reconcilable")
    found = state.checkpoints_before(case.opened_offset)
    return Plan(
        command_type="ReconcileStep",
        action=f"ask whether step {case.step_id!r} took effect",
        checkpoint=found[-1] if found else None,
        stage="reconcile",
    )
