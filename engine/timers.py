"""Timers are read off the state, never stored: which moments it waits for, and the facts to write when they pass.

Ids of `TimerFired` are derived from what is waited for and when, so two processes write the same fact.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.ids import derive_id
from schemas.records.events import TimerFired

from .backoff import jittered_ms
from .effects import PRODUCER
from .fold_stages import BRANCHES
from .people import ESCALATE
from .policy.model import Backoff, Policy
from .state import Attempt, Case, WorkflowState
from .strategies import MANUAL

#: Timers that one workflow may fire at one moment; the rest fire at the next look.
FIRED_AT_ONCE_MAX = 256
#: Repairs held by a breaker go out by themselves over this last share of `storms.hold_max`: those that began to be
#: held in the same second do not meet their target in the same second.
HOLD_SPREAD = 0.5


#: A moment a workflow waits for (broker time, microseconds since the epoch), kind, subject id, step id. A bare tuple:
#: they are listed anew at every event.
Timer = tuple[int, str, str, str]


def next_due_us(state: WorkflowState, policy: Policy) -> int | None:
    """The next moment the workflow waits for; None when it waits for none."""
    if state.ended_at_us:
        return None
    timers = _timers(state, policy)
    return min(timers)[0] if timers else None


def due(state: WorkflowState, policy: Policy, now_us: int) -> tuple[TimerFired, ...]:
    """The facts to append at broker time `now_us`."""
    if state.ended_at_us:
        return ()
    fired = sorted(timer for timer in _timers(state, policy) if timer[0] <= now_us)[:FIRED_AT_ONCE_MAX]
    return tuple(
        TimerFired(
            event_id=derive_id(f"{state.workflow_id}|{subject_id}", kind, due_us),
            workflow_id=state.workflow_id,
            workflow_type=state.workflow_type,
            occurred_at=due_us,
            producer=PRODUCER,
            kind=kind,
            subject_id=subject_id,
            step_id=step_id,
            due_at=due_us,
        )
        for due_us, kind, subject_id, step_id in fired
    )


def _timers(state: WorkflowState, policy: Policy) -> list[Timer]:
    found: list[Timer] = []
    for case in state.cases.values() if state.cases else ():
        _case_timers(case, policy, found)
    if state.status == "paused":
        return found
    for number, run in state.runs.items() if state.runs else ():
        if run.timed_out:
            continue
        spec = state.graph.steps[number]
        limit_ms = run.timeout_ms if run.timeout_ms is not None else policy.step_timeout_ms(spec)
        found.append((run.started_at_us + limit_ms * 1000, "step_timeout", run.run_id, spec.step_id))
        silence_ms = run.heartbeat_timeout_ms
        if silence_ms is not None:
            found.append((run.heard_at_us + silence_ms * 1000, "heartbeat_timeout", run.run_id, spec.step_id))
    if state.started_offset < 0:
        return found  # only what was seen to start may be overdue or stalled as a whole
    if not state.deadline_passed and not (state.cases and _waits_for_human(state.cases)):
        limit_ms = state.timeout_ms if state.timeout_ms is not None else policy.timeouts.workflow_ms
        due_us = state.deadline_from_us + limit_ms * 1000
        found.append((due_us, "workflow_timeout", str(state.workflow_timeouts), ""))
    if not state.runs and not state.cases and not state.stalled:
        due_us = state.heard_us + policy.timeouts.stall_ms * 1000
        found.append((due_us, "stall_timeout", str(state.heard_offset), ""))
    return found


def _waits_for_human(cases: Mapping[str, Case]) -> bool:
    return any(
        c.intervention_id is not None or (c.attempt is not None and c.attempt.decision.strategy == MANUAL)
        for c in cases.values()
    )


def _deadlines_max(policy: Policy) -> int:
    """How often nobody may answer one case in time; a default is applied once at least."""
    asked = policy.intervention
    return asked.escalations_max if asked.on_timeout == ESCALATE else max(1, asked.escalations_max)


def hold_ms(attempt: Attempt, policy: Policy) -> int:
    """How long a repair is held at most: a moment of the attempt's own, never beyond the policy's maximum."""
    longest_ms = policy.storms.hold_ms_max
    if attempt.held == BRANCHES:  # the others it waits for are of its own workflow
        return longest_ms
    spread_ms = int(longest_ms * HOLD_SPREAD)
    spread = Backoff(base_ms=spread_ms, max_ms=spread_ms)
    return longest_ms - jittered_ms(spread, 1, f"{attempt.decision.attempt_id}|hold")


def _case_timers(case: Case, policy: Policy, found: list[Timer]) -> None:
    if case.intervention_id is not None and case.interventions <= _deadlines_max(policy):
        found.append((case.intervention_deadline_us, "intervention_timeout", case.intervention_id, case.step_id))
    attempt = case.attempt
    if attempt is None or attempt.decision.strategy == MANUAL:
        return
    attempt_id = attempt.decision.attempt_id
    if attempt.status == "decided":
        found.append((attempt.execute_at_us, "backoff", attempt_id, case.step_id))
    elif attempt.status == "held":
        due_us = attempt.held_at_us + hold_ms(attempt, policy) * 1000
        found.append((due_us, "hold_timeout", attempt_id, case.step_id))
    elif attempt.status == "sent":
        due_us = attempt.sent_at_us + policy.timeouts.acknowledge_ms * 1000
        found.append((due_us, "acknowledge_timeout", attempt_id, case.step_id))
    else:
        due_us = attempt.accepted_at_us + policy.timeouts.attempt_ms * 1000
        found.append((due_us, "attempt_timeout", attempt_id, case.step_id))
