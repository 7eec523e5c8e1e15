"""Repairs that people choose: made from the same strategies as the ladder's, outside its budgets.

A human sees what would run again before choosing, so nothing is refused here for being repeated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .effects import Append
from .events import Delivered
from .policy.model import Policy, Rung
from .propose import write_down
from .state import Case, Transition, WorkflowState
from .strategies import MANUAL, STRATEGIES, Plan, Situation, Unavailable

#: Ladder of the repairs that people chose: they are outside every budget, and no breaker holds them.
LADDER = "operator"
#: Strategies that only people choose.
SKIP, CANCEL = "skip_step", "cancel_workflow"
#: Strategies that may be asked for.
CHOICES = (*(name for name in STRATEGIES if name != MANUAL), SKIP, CANCEL)
#: What a strategy takes that the policy's ladder does not have: twice the time, twice the size.
_TWICE = 2.0
#: Longest wait that may be asked for: a month.
_DELAY_MS_MAX = 31 * 24 * 3600 * 1000
_FACTOR_MAX = 1_000.0
#: JSON that a person supplies; it travels in a decision and in a command.
TEXT_CHARS_MAX = 256 * 1024


def plan_of(
    state: WorkflowState,
    case: Case,
    policy: Policy,
    strategy: str,
    parameters: Mapping[str, Any],
    *,
    stage: str = "",
) -> Plan | Unavailable:
    """What the strategy would do for this error now, or why it cannot. `stage`: the one that was answered last."""
    if strategy == SKIP:
        return _skip(state, case, parameters)
    if strategy == CANCEL:
        return Plan(command_type="CancelWorkflow", action="cancel the workflow")
    make = STRATEGIES.get(strategy)
    if make is None or strategy == MANUAL:
        return Unavailable(f"there is no strategy {strategy!r:.100}; one of {', '.join(CHOICES)}")
    rung = _rung(state, case, policy, strategy, parameters)
    if isinstance(rung, str):
        return Unavailable(rung)
    # Who asks for it begins anew: an undoing that gave up may be tried again.
    undoing = "" if "to_step" in parameters else case.undoing  # what is half undone may be undone further
    asked = replace(case, stage=stage, undo_tries=0, undoing=undoing)
    situation = Situation(state, asked, rung, policy, case.error_id, 1)
    to_step = rung.to_step
    if to_step is not None and to_step not in state.graph.index:
        return Unavailable(f"the workflow has no step {to_step!r:.200}")
    return make(situation)


def _skip(state: WorkflowState, case: Case, parameters: Mapping[str, Any]) -> Plan | Unavailable:
    if not case.step_id:
        return Unavailable("the error is about no step that could be left out")
    result = parameters.get("result")
    if result is not None and not _is_object(result):
        return Unavailable("the result is no JSON object")
    return Plan(
        command_type="SkipStep",
        action=f"go on after step {case.step_id!r} without it",
        checkpoint=state.newest_before(case.opened_offset),
        parameters={"result": result} if result is not None else None,
    )


def _is_object(text: object) -> bool:
    return isinstance(text, str) and len(text) <= TEXT_CHARS_MAX and object_of(text) is not None


def object_of(text: str | None) -> dict[str, Any] | None:
    """The JSON object in a text; an empty one for None, None for anything else."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _rung(state: WorkflowState, case: Case, policy: Policy, strategy: str, parameters: Mapping[str, Any]) -> Rung | str:
    """As the error's ladder has it, else with defaults, changed as asked. Text: what is wrong with what was asked."""
    ladder, _ = policy.ladder_for(case.error_type, state.workflow_type, case.step_id, case.error_code, case.message)
    default = Rung(strategy=strategy, attempts_max=1, timeout_multiplier=_TWICE, scaling_factor=_TWICE)
    rung = next((r for r in ladder.rungs if r.strategy == strategy), default)
    changed: dict[str, Any] = {}
    for name, value in parameters.items():
        check = _PARAMETERS.get(name)
        if check is None:
            return f"{name!r:.100} is no parameter; one of {', '.join(_PARAMETERS)}"
        if not check(value):
            return f"{name}: {value!r:.100} is out of range"
        changed[name] = value
    return replace(rung, backoff=None, time_ms_max=None, **{"delay_ms": 0, **changed})


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _DELAY_MS_MAX


def _factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= _FACTOR_MAX


_PARAMETERS: dict[str, Callable[[Any], bool]] = {
    "to_step": lambda value: isinstance(value, str) and 0 < len(value) <= 255,
    "delay_ms": _whole,
    "timeout_ms_max": lambda value: _whole(value) and value > 0,
    "timeout_multiplier": lambda value: _factor(value) and math.isfinite(value),
    "scaling_factor": lambda value: _factor(value) and math.isfinite(value),
}


def decision_of(
    event: Delivered,
    state: WorkflowState,
    policy: Policy,
    case: Case,
    plan: Plan,
    strategy: str,
    *,
    rule: str,
    evidence: Mapping[str, Any],
    number: int = 0,
    parameters: Mapping[str, Any] | None = None,
) -> Append:
    """A human chose: the command goes out like any other. `parameters` of the answer come on top of the plan's."""
    return write_down(
        event,
        state,
        policy,
        case,
        replace(plan, parameters={**(plan.parameters or {}), **(parameters or {})}),
        strategy,
        number=number or case.next_number,
        rung=len(policy.ladder(case.error_type).rungs),
        ladder=LADDER,
        rule=rule,
        evidence=evidence,
    )


def next_stage(state: WorkflowState, event: Delivered, policy: Policy, t: Transition) -> Append | None:
    """The next command of a strategy that a human chose; None when the ladder's own course goes on."""
    case, attempt = t.case, t.attempt
    if case is None or attempt is None or attempt.decision.ladder != LADDER or case.undoing:
        return None
    decision = attempt.decision
    evidence = json.loads(decision.evidence)
    asked = evidence.get("asked") or {}
    plan = plan_of(state, case, policy, decision.strategy, asked, stage=decision.stage)
    if isinstance(plan, Unavailable):
        return None
    return decision_of(event, state, policy, case, plan, decision.strategy, rule=decision.rule, evidence=evidence)
