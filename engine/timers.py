"""Timers are read off the state, never stored: which moments it waits for, and the facts to write when they pass.

Ids of `TimerFired` are derived from what is waited for and when, so two processes write the same fact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from schemas.ids import derive_id
from schemas.records.events import TimerFired

from .effects import PRODUCER
from .policy.model import Policy
from .state import Case, WorkflowState
from .strategies import MANUAL

#: Timers that one workflow may fire at one moment; the rest fire at the next look.
FIRED_AT_ONCE_MAX = 256


class Timer(NamedTuple):
    """A moment a workflow waits for, broker time, microseconds since the epoch."""

    due_us: int
    kind: str
    subject_id: str
    step_id: str


def next_due_us(state: WorkflowState, policy: Policy) -> int | None:
    """The next moment the workflow waits for; None when it waits for none."""
    if state.ended_at_us:
        return None
    return min((timer.due_us for timer in _timers(state, policy)), default=None)


def due(state: WorkflowState, policy: Policy, now_us: int) -> tuple[TimerFired, ...]:
    """The facts to append at broker time `now_us`."""
    if state.ended_at_us:
        return ()
    fired = sorted(timer for timer in _timers(state, policy) if timer.due_us <= now_us)[:FIRED_AT_ONCE_MAX]
    return tuple(
        TimerFired(
            event_id=derive_id(f"{state.workflow_id}|{t.subject_id}", t.kind, t.due_us),
            workflow_id=state.workflow_id,
            workflow_type=state.workflow_type,
            occurred_at=t.due_us,
            producer=PRODUCER,
            kind=t.kind,
            subject_id=t.subject_id,
            step_id=t.step_id,
            due_at=t.due_us,
        )
        for t in fired
    )


def _timers(state: WorkflowState, policy: Policy) -> Iterator[Timer]:
    for case in (state.cases or {}).values():
        yield from _case_timers(case, policy)
    if state.status == "paused":
        return
    if state.runs:
        for number, run in state.runs.items():
            if run.timed_out:
                continue
            spec = state.graph.steps[number]
            limit_ms = run.timeout_ms if run.timeout_ms is not None else policy.step_timeout_ms(spec)
            yield Timer(run.started_at_us + limit_ms * 1000, "step_timeout", run.run_id, spec.step_id)
            silence_ms = run.heartbeat_timeout_ms
            if silence_ms is not None:
                yield Timer(run.heard_at_us + silence_ms * 1000, "heartbeat_timeout", run.run_id, spec.step_id)
    if state.started_offset < 0:
        return  # only what was seen to start may be overdue or stalled as a whole
    if not state.deadline_passed and not _waits_for_human(state):
        limit_ms = state.timeout_ms if state.timeout_ms is not None else policy.timeouts.workflow_ms
        due_us = state.deadline_from_us + limit_ms * 1000
        yield Timer(due_us, "workflow_timeout", str(state.workflow_timeouts), "")
    if not state.runs and not state.cases and not state.stalled:
        due_us = state.heard_us + policy.timeouts.stall_ms * 1000
        yield Timer(due_us, "stall_timeout", str(state.heard_offset), "")


def _waits_for_human(state: WorkflowState) -> bool:
    return any(c.attempt is not None and c.attempt.decision.strategy == MANUAL for c in (state.cases or {}).values())


def _case_timers(case: Case, policy: Policy) -> Iterator[Timer]:
    if case.intervention_id is not None and case.interventions <= policy.intervention.escalations_max:
        yield Timer(case.intervention_deadline_us, "intervention_timeout", case.intervention_id, case.step_id)
    attempt = case.attempt
    if attempt is None or attempt.decision.strategy == MANUAL:
        return
    attempt_id = attempt.decision.attempt_id
    if attempt.status == "decided":
        yield Timer(attempt.execute_at_us, "backoff", attempt_id, case.step_id)
    elif attempt.status == "sent":
        due_us = attempt.sent_at_us + policy.timeouts.acknowledge_ms * 1000
        yield Timer(due_us, "acknowledge_timeout", attempt_id, case.step_id)
    else:
        due_us = attempt.accepted_at_us + policy.timeouts.attempt_ms * 1000
        yield Timer(due_us, "attempt_timeout", attempt_id, case.step_id)
