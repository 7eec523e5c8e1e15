"""What must not be repeated: the last look at a plan before it is decided.

An outcome has three values. A step that may have taken effect and must not run twice is asked about first, and goes to
a human when nobody can tell; a completed one is not run again behind anybody's back.
"""

from __future__ import annotations

from .graph import leaves_effects
from .policy.model import Policy
from .state import Case, WorkflowState
from .strategies import Plan, Unavailable

#: Stage of a decision that sends nothing: a step that must not be given up is still at work.
WAIT = "wait"

#: Commands that go back to the state of a checkpoint, and run what completed after it again.
_RESTORING = frozenset({"RetryStep", "ResumeFromCheckpoint", "RunAlternativePath"})
#: Commands that give up whatever else is at work. A retry leaves other branches alone.
_REPLACING = frozenset(
    {"ResumeFromCheckpoint", "RestartWorkflow", "RunAlternativePath", "RollbackTo", "CompensateStep"}
)
#: Commands after which the failed step, or what stands for it, runs again.
_REPEATING = _REPLACING | {"RetryStep"}


class Unknowable:
    """The step may have taken effect, repeating it would harm, and nobody can tell: a human has to."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def checked(
    state: WorkflowState, case: Case, plan: Plan, policy: Policy, *, undoing: bool
) -> Plan | Unavailable | Unknowable:
    """The plan, or what has to come before it, or why it must not be. `undoing`: of a repair that undoes steps."""
    if plan.command_type not in _REPEATING:
        return plan
    first = _settle_outcome(state, case)
    if first is not None:
        return first
    if plan.command_type in _REPLACING:
        others = _others(state, case, policy, undoing=undoing)
        if others is not None:
            return others
    steps = state.graph.steps
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


def _others(state: WorkflowState, case: Case, policy: Policy, *, undoing: bool) -> Plan | Unknowable | None:
    """Other steps that the command would give up or repeat, and must not: their end is waited for, once."""
    steps = state.graph.steps
    for other in (state.cases or {}).values():
        spec = state.graph.spec(other.step_id)
        if other is not case and other.unsure and spec is not None and not spec.idempotent:
            if other.reconciled != "no_effect":
                return Unknowable(f"whether step {other.step_id!r} took effect is not known, and it is not idempotent")
    at_work = [number for number in state.runs or () if must_end(state, case, number, undoing=undoing)]
    if not at_work:
        return None
    step_id = steps[at_work[0]].step_id
    if case.stage == WAIT:
        return Unknowable(f"step {step_id!r} is still at work, and what it does would be lost or done twice")
    limits = (policy.step_timeout_ms(steps[number]) for number in at_work)
    return Plan(
        command_type=None,
        action=f"wait for the end of step {step_id!r}, which must not be given up",
        execute_after_ms=max(1, *limits),
        stage=WAIT,
    )


def must_end(state: WorkflowState, case: Case, number: int, *, undoing: bool) -> bool:
    """Whether a step at work may not be given up for the repair of this case. Where steps are undone, neither may one
    that can be: what it does would stay behind."""
    spec = state.graph.steps[number]
    return spec.step_id != case.step_id and (leaves_effects(spec) if undoing else not spec.idempotent)


def _settle_outcome(state: WorkflowState, case: Case) -> Plan | Unknowable | None:
    spec = state.graph.spec(case.step_id)
    if not case.unsure or spec is None or spec.idempotent or case.reconciled == "no_effect":
        return None
    if case.reconciled == "took_effect":
        return Plan(
            command_type="SkipStep",
            action=f"step {case.step_id!r} took effect: go on after it",
            checkpoint=state.newest_before(case.opened_offset),
        )
    if case.reconciled:
        return Unknowable(f"whether step {case.step_id!r} took effect, its service cannot tell")
    if not spec.reconcilable:
        return Unknowable(f"step {case.step_id!r} may have taken effect, and is neither idempotent nor reconcilable")
    return Plan(
        command_type="ReconcileStep",
        action=f"ask whether step {case.step_id!r} took effect",
        checkpoint=state.newest_before(case.opened_offset),
        stage="reconcile",
    )
