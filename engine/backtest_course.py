"""The tries that a policy would go on to make after a decision, if none of them worked.

Taken from the policy and the case as it stood: rungs and attempts left, restores for which there is a checkpoint, the
budgets of attempts and of cost. Budgets of time, and what a rung finds when its turn comes, are not foreseen.
"""

from __future__ import annotations

from schemas.records.events import RecoveryDecided

from .backtest_estimate import TRIES_MAX, Course, Try
from .ladder import GIVE_UP
from .policy.model import Ladder, Policy, Rung, fitting
from .state import Case, WorkflowState
from .strategies import MANUAL, RESTORING, UNDOING

#: Strategies of the engine's own that leave a step out, or end its workflow.
_GIVES_UP = frozenset({"skip_dependants", "fail_dependants", GIVE_UP})


def course_of(
    state: WorkflowState, case: Case, policy: Policy, decision: RecoveryDecided, tried: frozenset[str]
) -> Course:
    """From a decision of this policy on. `tried`: strategies that the error has been tried with before."""
    if decision.strategy == MANUAL:
        return Course((), "human")
    if decision.strategy in _GIVES_UP:
        return Course((), "gives_up")
    ladder, _ = policy.ladder_for(case.error_type, state.workflow_type, case.step_id, case.error_code, case.message)
    end, spent_end = (_end(state, case, policy, ladder, spent=spent) for spent in (False, True))
    if case.undoing in UNDOING or decision.rung >= len(ladder.rungs):
        first = decision.strategy not in tried
        return Course((Try(decision.strategy, first, decision.cost, decision.execute_after_ms),), end)
    reached, made = (case.progress or {}).get(ladder.name, (0, 0))
    tries: list[Try] = []
    left = policy.workflow_attempts_max - state.attempts
    spent, workflow_spent = case.cost, state.cost
    seen = set(tried)
    checkpoints = len(state.checkpoints_before(case.opened_offset)) - case.restores
    for number in range(decision.rung, len(ladder.rungs)):
        rung = ladder.rungs[number]
        done = made if number == reached else 0
        for count in range(done + 1, rung.attempts_max + 1):
            over = ladder.cost_max is not None and spent >= ladder.cost_max
            over = over or (policy.workflow_cost_max is not None and workflow_spent >= policy.workflow_cost_max)
            if over or len(tries) >= left:
                return Course(tuple(tries), spent_end)
            if rung.strategy in RESTORING:
                if tries and checkpoints <= 0:
                    break
                checkpoints -= 1
            if len(tries) == TRIES_MAX:
                return Course(tuple(tries), end, cut=True)
            wait_ms = decision.execute_after_ms if not tries else _wait_ms(rung, count, policy)
            tries.append(Try(rung.strategy, rung.strategy not in seen, rung.cost, wait_ms))
            seen.add(rung.strategy)
            spent, workflow_spent = spent + rung.cost, workflow_spent + rung.cost
    return Course(tuple(tries), end)


def _end(state: WorkflowState, case: Case, policy: Policy, ladder: Ladder, *, spent: bool) -> str:
    """What comes after the last try: step or workflow are given up where the policy says so, else people are asked."""
    critical = case.severity == "critical"
    known = state.graph.spec(case.step_id) is not None
    if policy.coordination.dependants != "hold" and known and not critical:
        return "gives_up"
    asked = policy.asked_by(ladder, fitting(spent=spent, critical=critical))
    return "gives_up" if asked is None else "human"


def _wait_ms(rung: Rung, count: int, policy: Policy) -> int:
    """Before a try that is still to be drawn: the middle of what it is drawn from."""
    if rung.strategy == "queue_for_later":
        return rung.delay_ms
    if rung.strategy == "scale_resources_and_retry":
        return policy.scaling.settle_ms
    if rung.strategy != "retry_step" or rung.backoff is None:
        return 0
    return min(rung.backoff.max_ms, rung.backoff.base_ms << min(count - 1, 40)) // 2
