"""The fold: what each event does to a workflow's state. `evolve` is the only function that changes a state.

Every event may come twice, late or for a workflow never started; none of that may change the outcome or raise.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import intern
from typing import Any

from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CommandAcknowledged,
    InterventionRequested,
    InterventionResolved,
    RecoveryDecided,
    StateRestored,
    StepCompensated,
    StepCompleted,
    StepProgressed,
    StepSkipped,
    StepStarted,
    TimerFired,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowFailed,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
)

from . import fold_recovery as recovery
from .events import Delivered
from .graph import graph_of
from .state import (
    COMPENSATED,
    COMPLETED,
    RUNNING,
    RUNS_MAX,
    SKIPPED,
    StepRun,
    Transition,
    WorkflowState,
)


def evolve(state: WorkflowState | None, event: Delivered) -> WorkflowState:
    """Fold one event; returns the same object, changed, or a new one for a workflow not seen before.

    `state.transitions` then says what changed. An event at or below the last folded offset changes nothing.
    """
    record = event.record
    if state is None:
        state = WorkflowState(record.workflow_id, intern(record.workflow_type), event.partition)
        state.deadline_from_us = event.timestamp_us
    state.transitions = ()
    if event.offset <= state.last_offset:
        return state
    state.last_offset = event.offset
    if state.ended_at_us:
        if type(record) is WorkflowErrorOccurred and state.first_sight(record.error_id):
            state.transitions = (Transition("unrooted", detail="the workflow has ended"),)
        elif type(record) is RecoveryDecided:
            recovery.decided(state, record, event)
        return state
    handler = _HANDLERS.get(type(record))
    if handler is not None:
        heard = handler(state, record, event)
        if heard:
            state.heard_offset = event.offset
            state.heard_us = event.timestamp_us
            state.stalled = False
    return state


def _started(state: WorkflowState, record: WorkflowStarted, event: Delivered) -> bool:
    if state.started_offset >= 0:
        return False
    before = {spec.step_id: state.steps[n] for n, spec in enumerate(state.graph.steps)}
    undeclared = tuple(s for s in state.graph.steps if all(s.step_id != d.step_id for d in record.steps))
    state.graph = graph_of(record.steps + undeclared)
    state.steps = bytes(before.get(spec.step_id, 0) for spec in state.graph.steps)
    runs = {i: run for i, run in ((state.graph.index.get(s, -1), r) for s, r in _named_runs(state, before)) if i >= 0}
    state.runs = runs or None
    state.started_offset = event.offset
    state.started_at_us = state.deadline_from_us = event.timestamp_us
    state.timeout_ms = record.timeout_ms
    return True


def _named_runs(state: WorkflowState, before: dict[str, int]) -> list[tuple[str, StepRun]]:
    names = list(before)
    return [(names[n], run) for n, run in (state.runs or {}).items()]


def _step_started(state: WorkflowState, record: StepStarted, event: Delivered) -> bool:
    number = state.step_index(record.step_id)
    if number < 0 or not state.first_sight(record.event_id):
        return False
    if state.runs is None:
        state.runs = {}
    if len(state.runs) >= RUNS_MAX and number not in state.runs:
        return True
    state.runs[number] = StepRun(
        run_id=record.step_run_id,
        command_id=record.command_id,
        started_at_us=event.timestamp_us,
        heard_at_us=event.timestamp_us,
        timeout_ms=record.timeout_ms,
        heartbeat_timeout_ms=record.heartbeat_timeout_ms,
    )
    state.set_step(number, RUNNING)
    state.last_step = number
    return True


def _step_progressed(state: WorkflowState, record: StepProgressed, event: Delivered) -> bool:
    run = (state.runs or {}).get(state.graph.index.get(record.step_id, -1))
    if run is None or run.run_id != record.step_run_id:
        return False
    run.heard_at_us = event.timestamp_us
    return True


def _step_completed(state: WorkflowState, record: StepCompleted, event: Delivered) -> bool:
    number = state.step_index(record.step_id)
    if number < 0:
        return False
    run = (state.runs or {}).get(number)
    if run is not None and run.run_id != record.step_run_id:
        return False  # a run that was replaced ended after all; the newer one counts
    if not state.first_sight(record.event_id):
        return False
    _end_run(state, number, COMPLETED)
    recovery.step_done(state, record.step_id, record.command_id, run)
    return True


def _step_skipped(state: WorkflowState, record: StepSkipped, event: Delivered) -> bool:
    number = state.step_index(record.step_id)
    if number < 0:
        return False
    _end_run(state, number, SKIPPED)
    recovery.step_done(state, record.step_id, None, None)
    return True


def _step_compensated(state: WorkflowState, record: StepCompensated, event: Delivered) -> bool:
    number = state.step_index(record.step_id)
    if number >= 0:
        _end_run(state, number, COMPENSATED)
    return True


def _end_run(state: WorkflowState, number: int, status: int) -> None:
    state.set_step(number, status)
    if state.runs is not None:
        state.runs.pop(number, None)
        if not state.runs:
            state.runs = None


def _checkpoint(state: WorkflowState, record: CheckpointCreated, event: Delivered) -> bool:
    if event.rejection is not None:
        if state.first_sight(record.checkpoint_id):
            state.transitions = (Transition("rejected"),)
    elif not record.evidence:
        number = state.step_index(record.step_id)
        state.add_checkpoint(record.checkpoint_id, record.digest, event.offset, record.sequence, number)
    return True


def _checkpoint_rejected(state: WorkflowState, record: CheckpointRejected, event: Delivered) -> bool:
    state.drop_checkpoint(record.checkpoint_id)
    return False


def _restored(state: WorkflowState, record: StateRestored, event: Delivered) -> bool:
    if state.first_sight(record.event_id):
        state.runs = None
    return True


def _paused(state: WorkflowState, record: WorkflowPaused, event: Delivered) -> bool:
    if state.first_sight(record.event_id) and state.status == "running":
        state.status = "paused"
        state.paused_at_us = event.timestamp_us
    return True


def _resumed(state: WorkflowState, record: WorkflowResumed, event: Delivered) -> bool:
    if state.first_sight(record.event_id):
        recovery.unpause(state, event.timestamp_us)
    return True


def _ended(status: str) -> Callable[[WorkflowState, Any, Delivered], bool]:
    def handler(state: WorkflowState, record: Any, event: Delivered) -> bool:
        state.status = status
        state.ended_at_us = event.timestamp_us
        recovery.close_all(state, recovered=status == "completed", status=status)
        state.runs = None
        state.checkpoints = b""
        return True

    return handler


#: What each record does; the answer says whether the service was heard. Other records do not concern the engine.
_HANDLERS: dict[type, Callable[[WorkflowState, Any, Delivered], bool]] = {
    WorkflowStarted: _started,
    WorkflowCompleted: _ended("completed"),
    WorkflowFailed: _ended("failed"),
    WorkflowCancelled: _ended("cancelled"),
    WorkflowPaused: _paused,
    WorkflowResumed: _resumed,
    StepStarted: _step_started,
    StepProgressed: _step_progressed,
    StepCompleted: _step_completed,
    StepSkipped: _step_skipped,
    StepCompensated: _step_compensated,
    CheckpointCreated: _checkpoint,
    CheckpointRejected: _checkpoint_rejected,
    StateRestored: _restored,
    WorkflowErrorOccurred: recovery.error,
    RecoveryDecided: recovery.decided,
    CommandAcknowledged: recovery.acknowledged,
    InterventionRequested: recovery.intervention_requested,
    InterventionResolved: recovery.intervention_resolved,
    TimerFired: recovery.timer_fired,
}
