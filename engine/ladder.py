"""Which repair comes next: the rung, within the budgets of rung, ladder and workflow; after the last, a human.

Where the policy asks nobody, the workflow is given up, and says so: none is left neither repaired nor looked after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.ids import derive_id

from .backoff import jittered_ms
from .branches import waiting
from .policy.model import Backoff, Ladder, Policy, Rung, fitting
from .safety import Unknowable, checked
from .state import Case, WorkflowState
from .strategies import MANUAL, STRATEGIES, UNDOING, Plan, Situation, Unavailable

#: Longest wait before the next command to a service that answered none so far.
UNANSWERED_WAIT_MS_MAX = 600_000
#: What is decided when no repair is left and nobody is to be asked.
GIVE_UP = "give_up"
_HUMAN = Rung(strategy=MANUAL, attempts_max=1)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen strategy, its plan, the rule that chose it, and those passed over with the reason."""

    strategy: str
    rung: int
    plan: Plan
    rule: str
    passed_over: tuple[tuple[str, str], ...]
    trigger: str = ""
    ladder: str = ""
    cost: float = 0.0


def choose(state: WorkflowState, case: Case, policy: Policy, now_us: int) -> Choice:
    """The next repair of a case. Never a rung below the one reached, never beyond a budget."""
    ladder, matched = policy.ladder_for(
        case.error_type, state.workflow_type, case.step_id, case.error_code, case.message
    )
    passed: list[tuple[str, str]] = []
    if case.undoing in UNDOING:
        return _undo(state, case, policy, ladder)
    spent = _spent(state, case, ladder, policy, now_us)
    if spent is not None:
        return _end(state, case, policy, ladder, spent, passed, spent=True)
    reached, tries = (case.progress or {}).get(ladder.name, (0, 0))
    attempt_id = attempt_id_of(case)
    for number in range(reached, len(ladder.rungs)):
        rung = ladder.rungs[number]
        made = tries if number == reached else 0
        reason = _rung_spent(case, rung, made, now_us)
        strategy = STRATEGIES.get(rung.strategy)
        if reason is None and strategy is None:
            reason = "not available in this version"
        if reason is None and strategy is not None:
            plan = strategy(Situation(state, case, rung, policy, attempt_id, made + 1))
            undoing = rung.strategy in UNDOING
            safe = plan if isinstance(plan, Unavailable) else checked(state, case, plan, policy, undoing=undoing)
            if isinstance(safe, Unknowable):
                return _human(state, case, policy, ladder, safe.reason, "outcome_unknown", passed)
            if not isinstance(safe, Unavailable):
                return Choice(
                    rung.strategy,
                    number,
                    _spaced(safe, case, policy, attempt_id),
                    f"{matched}: rung {number + 1}, try {made + 1} of {rung.attempts_max}",
                    tuple(passed),
                    ladder=ladder.name,
                    cost=rung.cost,
                )
            reason = safe.reason
        passed.append((rung.strategy, reason or ""))
    return _end(state, case, policy, ladder, "the ladder is exhausted", passed, spent=False)


def _undo(state: WorkflowState, case: Case, policy: Policy, ladder: Ladder) -> Choice:
    """Go on undoing: what was begun is not left half done for want of a budget, only handed to a human."""
    rung_number, _ = (case.progress or {}).get(ladder.name, (len(ladder.rungs), 0))
    rung = Rung(strategy=case.undoing, attempts_max=1)
    situation = Situation(state, case, rung, policy, attempt_id_of(case), case.undo_tries + 1)
    plan = STRATEGIES[case.undoing](situation)
    if isinstance(plan, Unavailable):
        passed = [(case.undoing, plan.reason)]
        return _human(state, case, policy, ladder, plan.reason, "compensation_failed", passed)
    rule = f"compensation: try {case.undo_tries + 1} of {policy.compensation.attempts_max}"
    return Choice(
        case.undoing,
        rung_number,
        _spaced(plan, case, policy, situation.attempt_id),
        rule,
        (),
        ladder=ladder.name,
    )


def _spaced(plan: Plan, case: Case, policy: Policy, attempt_id: str) -> Plan:
    """Wait longer and longer for a service that does not answer: the first command may have met a dying process."""
    if case.unanswered <= 1:
        return plan
    backoff = Backoff(base_ms=policy.timeouts.acknowledge_ms, max_ms=UNANSWERED_WAIT_MS_MAX)
    wait_ms = jittered_ms(backoff, case.unanswered - 1, attempt_id)
    return replace(plan, execute_after_ms=max(plan.execute_after_ms, wait_ms))


def attempt_id_of(case: Case) -> str:
    """Id of the case's next attempt."""
    return derive_id(case.error_id, "attempt", case.next_number)


def _spent(state: WorkflowState, case: Case, ladder: Ladder, policy: Policy, now_us: int) -> str | None:
    """Which overall budget is spent; None while all have room."""
    if state.attempts >= policy.workflow_attempts_max:
        return f"budgets.workflow_max_attempts: {state.attempts} of {policy.workflow_attempts_max} made"
    open_ms = (now_us - case.opened_at_us) // 1000
    if policy.workflow_cost_max is not None and state.cost >= policy.workflow_cost_max:
        return f"budgets.workflow_max_cost: {state.cost:g} of {policy.workflow_cost_max:g} spent"
    if ladder.cost_max is not None and case.cost >= ladder.cost_max:
        return f"{ladder.name}.max_cost: {case.cost:g} of {ladder.cost_max:g} spent"
    if open_ms > policy.workflow_time_ms_max:
        return f"budgets.workflow_max_time: open for {open_ms} of {policy.workflow_time_ms_max} ms"
    if open_ms > ladder.time_ms_max:
        return f"recovery_strategies.{ladder.error_type}.max_time: open for {open_ms} of {ladder.time_ms_max} ms"
    return None


def _rung_spent(case: Case, rung: Rung, made: int, now_us: int) -> str | None:
    if made >= rung.attempts_max:
        return f"{made} of {rung.attempts_max} attempts made"
    if rung.time_ms_max is not None and now_us - case.opened_at_us > rung.time_ms_max * 1000:
        return f"open for longer than {rung.time_ms_max} ms"
    return None


def _end(
    state: WorkflowState,
    case: Case,
    policy: Policy,
    ladder: Ladder,
    rule: str,
    passed: list[tuple[str, str]],
    *,
    spent: bool,
) -> Choice:
    """No repair is left: leave the step and its dependants out, or end the workflow, where the policy says so; once.
    Else a human is asked where the policy's triggers say so, and the workflow is given up where they do not."""
    fits = fitting(spent=spent, critical=case.severity == "critical")
    what, last = policy.coordination.dependants, len(ladder.rungs)
    tried = (case.progress or {}).get(ladder.name, (0, 0))
    known = state.graph.spec(case.step_id) is not None
    if what == "hold" or not known or case.severity == "critical" or (tried[0] >= last and tried[1] > 0):
        trigger = policy.asked_by(ladder, fits)
        if trigger is None and policy.intervention.enabled:
            why = f"manual_intervention.triggers does not list {' or '.join(fits)}"
            return _give_up(ladder, rule, fits[0], passed, why)
        return _human(state, case, policy, ladder, rule, trigger or fits[0], passed)
    rule = f"coordination.dependants: {what}; {rule}"
    if what == "fail":
        plan = Plan(command_type="CancelWorkflow", action=f"give the workflow up: step {case.step_id!r} failed")
        return Choice("fail_dependants", last, plan, rule, tuple(passed), ladder=ladder.name)
    left_out = waiting(state, case.step_id)
    plan = Plan(
        command_type="SkipStep",
        action=f"leave out step {case.step_id!r} and {len(left_out)} that depend on it",
        checkpoint=state.newest_before(case.opened_offset),
        parameters={"dependants": list(left_out)},
    )
    return Choice("skip_dependants", last, plan, rule, tuple(passed), ladder=ladder.name)


def _human(
    state: WorkflowState,
    case: Case,
    policy: Policy,
    ladder: Ladder,
    rule: str,
    trigger: str,
    passed: list[tuple[str, str]],
) -> Choice:
    if not policy.intervention.enabled:
        return _give_up(ladder, rule, trigger, passed, "manual_intervention.enabled is false")
    plan = STRATEGIES[MANUAL](Situation(state, case, _HUMAN, policy, attempt_id_of(case), 1))
    assert isinstance(plan, Plan)
    return Choice(MANUAL, len(ladder.rungs), plan, rule, tuple(passed), trigger, ladder.name)


def _give_up(ladder: Ladder, rule: str, trigger: str, passed: list[tuple[str, str]], why: str) -> Choice:
    """Nobody is asked: the workflow fails when the decision is read back, and its service is told to end it."""
    plan = Plan(command_type="CancelWorkflow", action="give the workflow up")
    passed.append((MANUAL, why))
    return Choice(GIVE_UP, len(ladder.rungs), plan, f"{rule}; {why}", tuple(passed), trigger, ladder.name)
