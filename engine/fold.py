"""The fold: what each event does to a workflow's state. `evolve` is the only function that changes a state.

Every event may come twice, late or for a workflow never started; none of that may change the outcome or raise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from sys import intern
from typing import Any

from schemas.errors import StateError
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CheckpointsExpired,
    CommandAcknowledged,
    DependantsHeld,
    InterventionClaimed,
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    RecoveryDecided,
    RecoveryRefused,
    RecoveryRequested,
    RepairHeld,
    RepairReleased,
    ResourceReleased,
    ResourceRequested,
    ResourceUsageReported,
    RestoreRequested,
    StateMigrated,
    StateRestored,
    StepCompensated,
    StepCompleted,
    StepProgressed,
    StepSkipped,
    StepStarted,
    TimerFired,
    WaitBegan,
    WaitEnded,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowFailed,
    WorkflowKeyErased,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
)
from schemas.state_schema import compiled

from . import chain, people, recent, requests
from . import fold_detection as detection
from . import fold_recovery as recovery
from . import fold_stages as stages
from .events import Delivered
from .graph import graph_of, leaves_effects
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

#: Larger states are held to their schema by the service alone: against the worst schema that is taken, checking one of
#: 10 MiB would hold up the partition for tens of seconds.
SCHEMA_STATE_BYTES_MAX = 1024 * 1024
#: Checkpoints that are made because a step completed: their state knows of it.
_COMPLETING = frozenset({"step_complete", "critical_point"})


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
        elif type(record) is InterventionRequested:
            people.intervention_requested(state, record, event)
        return state
    handler = _HANDLERS.get(type(record))
    if handler is not None:
        heard = handler(state, record, event)
        if heard:
            state.heard_offset = event.offset
            state.heard_us = event.timestamp_us
            state.stalled = False
        if state.cases:
            stages.end_waits(state)
            if not state.runs:
                stages.send_held(state, event, stages.BRANCHES)
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
    state.recent, state.leases = b"", None  # of steps that may have other numbers now
    _take_schema(state, record.state_version, record.state_schema)
    if state.tip is None and not state.last_sequence:
        state.tip = chain.BEGINNING
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
    detection.step_started(state, record, number)
    if len(state.runs) >= RUNS_MAX and number not in state.runs:
        return True
    state.runs[number] = StepRun(
        run_id=record.step_run_id,
        command_id=record.command_id,
        started_at_us=event.timestamp_us,
        heard_at_us=event.timestamp_us,
        timeout_ms=record.timeout_ms,
        heartbeat_timeout_ms=record.heartbeat_timeout_ms,
        given=0 if record.input_digest is None else recent.digest(record.input_digest),
    )
    state.set_step(number, RUNNING)
    state.last_step = number
    return True


def _step_progressed(state: WorkflowState, record: StepProgressed, event: Delivered) -> bool:
    run = (state.runs or {}).get(state.graph.index.get(record.step_id, -1))
    if run is None or run.run_id != record.step_run_id:
        return False
    run.heard_at_us = event.timestamp_us
    detection.step_progressed(run, record)
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
    if leaves_effects(state.graph.steps[number]):
        state.add_effect(number, event.offset)
    detection.step_completed(state, record, number, run)
    recovery.step_done(state, record.step_id, record.command_id, run)
    return True


def _step_skipped(state: WorkflowState, record: StepSkipped, event: Delivered) -> bool:
    number = state.step_index(record.step_id)
    if number < 0:
        return False
    _end_run(state, number, SKIPPED)
    recovery.step_done(state, record.step_id, record.command_id, None, skipped=True)
    return True


def _step_compensated(state: WorkflowState, record: StepCompensated, event: Delivered) -> bool:
    number = state.step_index(record.step_id)
    if number >= 0:
        _end_run(state, number, COMPENSATED)
        state.drop_effect(number)
        stages.compensated(state, record.command_id)
    return True


def _end_run(state: WorkflowState, number: int, status: int) -> None:
    state.set_step(number, status)
    state.end_run(number)


def _checkpoint(state: WorkflowState, record: CheckpointCreated, event: Delivered) -> bool:
    verdict = chain.judge(state, record)
    if verdict.repeated or verdict.stale:
        return True
    rejection = event.rejection or ((verdict.reason, verdict.detail) if verdict.reason else None)
    if record.evidence:
        chain.follow(state, record, verdict)
        return True
    if rejection is None:
        rejection = _against_schema(state, record, event)
    if rejection is None:
        chain.follow(state, record, verdict)
        number = state.step_index(record.step_id)
        state.add_checkpoint(record, event.offset, number)
        state.fresh = True
        if record.checkpoint_type in _COMPLETING and number >= 0 and leaves_effects(state.graph.steps[number]):
            state.saved_step, state.saved_offset = number, event.offset
    elif state.first_sight(record.event_id):
        chain.follow(state, record, verdict, damaged=event.rejection is not None)
        state.transitions = (Transition("rejected", detail=rejection[1], outcome=rejection[0]),)
    return True


def _against_schema(state: WorkflowState, record: CheckpointCreated, event: Delivered) -> tuple[str, str] | None:
    if state.schema is None or event.state is None or record.state_version != state.schema_version:
        return None
    if record.size_bytes > SCHEMA_STATE_BYTES_MAX:
        return None
    try:
        state.schema.validate(event.state.get("data"))
    except StateError as error:
        return error.reason, str(error)
    return None


def _checkpoint_rejected(state: WorkflowState, record: CheckpointRejected, event: Delivered) -> bool:
    state.drop_checkpoints([record.checkpoint_id])
    return False


def _checkpoints_expired(state: WorkflowState, record: CheckpointsExpired, event: Delivered) -> bool:
    state.drop_checkpoints(record.checkpoint_ids)
    return False


def _lease_asked(state: WorkflowState, record: ResourceRequested, event: Delivered) -> bool:
    detection.asked(state, record)
    state.coordinated = True
    return True


def _lease_released(state: WorkflowState, record: ResourceReleased, event: Delivered) -> bool:
    detection.released(state, record)
    return True


def _coordinated(state: WorkflowState, record: WaitBegan, event: Delivered) -> bool:
    state.coordinated = True
    return True


def _heard(state: WorkflowState, record: WaitEnded, event: Delivered) -> bool:
    return True


def _key_erased(state: WorkflowState, record: WorkflowKeyErased, event: Delivered) -> bool:
    state.checkpoints = b""  # nobody can read them any more
    return False


def _migrated(state: WorkflowState, record: StateMigrated, event: Delivered) -> bool:
    _take_schema(state, record.to_version, record.state_schema)
    return True


def _take_schema(state: WorkflowState, version: str | None, text: str | None) -> None:
    """A schema that is none binds nobody: the service that sent it was told so by its own client."""
    state.schema, state.schema_version = None, version
    if version is not None and text is not None:
        with suppress(StateError):
            state.schema = compiled(text)


def _restored(state: WorkflowState, record: StateRestored, event: Delivered) -> bool:
    if state.first_sight(record.event_id):
        state.runs = None
        detection.begun_anew(state)
        chain.begin_epoch(state, record.epoch)
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
        state.checkpoints = state.recent = b""
        state.usage = state.leases = None
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
    CheckpointsExpired: _checkpoints_expired,
    StateMigrated: _migrated,
    WorkflowKeyErased: _key_erased,
    StateRestored: _restored,
    ResourceUsageReported: detection.used,
    ResourceRequested: _lease_asked,
    ResourceReleased: _lease_released,
    WaitBegan: _coordinated,
    WaitEnded: _heard,
    RepairHeld: stages.repair_held,
    RepairReleased: stages.repair_released,
    DependantsHeld: stages.dependants_held,
    WorkflowErrorOccurred: recovery.error,
    RecoveryDecided: recovery.decided,
    CommandAcknowledged: recovery.acknowledged,
    RestoreRequested: requests.restore_requested,
    InterventionRequested: people.intervention_requested,
    InterventionClaimed: people.intervention_claimed,
    InterventionPointReached: people.point_reached,
    InterventionResolved: people.intervention_resolved,
    RecoveryRequested: requests.recovery_requested,
    RecoveryRefused: requests.recovery_refused,
    TimerFired: recovery.timer_fired,
}
