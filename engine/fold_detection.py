"""The fold of what detectors look at: the steps completed last, what steps use, the leases they hold."""

from __future__ import annotations

from schemas.records.events import (
    ResourceReleased,
    ResourceRequested,
    ResourceUsageReported,
    StepCompleted,
    StepProgressed,
    StepStarted,
    WorkflowErrorOccurred,
)

from . import recent
from .detectors.base import found_by
from .detectors.dependency import LOST
from .detectors.infinite_loop import NAME as INFINITE_LOOP
from .events import Delivered
from .state import FAILED, Case, StepRun, Transition, WorkflowState
from .usage import CPU, MEMORY, Usage

#: Leases remembered per workflow; of more, the oldest is not known when it is lost.
LEASES_MAX = 64

#: There is something for a detector to see.
_LOOK = Transition("look")


def step_started(state: WorkflowState, record: StepStarted, number: int) -> None:
    """A run begins; a step that it needs may have failed."""
    if state.usage is not None:
        state.usage.forget(record.step_id)
        if record.command_id is not None:
            state.usage.forget_calls()
    index = state.graph.index
    for dependency in state.graph.steps[number].depends_on:
        needed = index.get(dependency, -1)
        if needed >= 0 and state.steps[needed] == FAILED:
            state.transitions = (*state.transitions, _LOOK)
            return


def step_progressed(run: StepRun, record: StepProgressed) -> None:
    """A heartbeat may say how far its run is; the newest word counts."""
    run.said = recent.word(record.progress, record.progress_token) or run.said


def step_completed(state: WorkflowState, record: StepCompleted, number: int, run: StepRun | None) -> None:
    """A run ended well: remember by what it can be told from others. Only one that was seen before may close a loop."""
    if state.usage is not None:
        state.usage.forget(record.step_id)
    saved = state.tip[-32:] if state.fresh and state.tip is not None else None
    state.fresh = False
    last = recent.entry(
        number,
        state=saved,
        result=record.output_digest,
        given=0 if run is None else run.given,
        said=0 if run is None else run.said,
    )
    again = last in state.recent
    state.recent = recent.add(state.recent, last)
    if again:
        state.transitions = (*state.transitions, _LOOK)


def begun_anew(state: WorkflowState) -> None:
    """The workflow goes on from an earlier state, or from the start: what it did before is no part of a loop now."""
    state.recent, state.fresh = b"", False
    for case in (state.cases or {}).values():
        if case.loop:
            case.loop = recent.restored(case.loop)


def loop_of(state: WorkflowState, record: WorkflowErrorOccurred) -> Case | None:
    """The case of the loop that was found once more, at another of its steps."""
    number = state.graph.index.get(record.step_id, -1)
    if number < 0 or not found_by(record, INFINITE_LOOP):
        return None
    return next((c for c in (state.cases or {}).values() if c.loop and number in recent.steps(c.loop)), None)


def loop_found(state: WorkflowState, record: WorkflowErrorOccurred, case: Case) -> None:
    """An error was folded. What was remembered until a loop was found is what the workflow has to leave, and to begin
    with it goes back to before the first round: that is where the cause of the error lies."""
    if record.error_code != "INFINITE_LOOP":
        return
    if state.recent and found_by(record, INFINITE_LOOP):
        if not case.loop:
            case.opened_offset = min(case.opened_offset, _loop_began(state, case.opened_offset))
        case.loop = state.recent
    state.recent, state.fresh = b"", False


def _loop_began(state: WorkflowState, unknown: int) -> int:
    """Offset from which on all checkpoints hold states of the rounds that were alike; `unknown` when these states
    cannot be told, or no checkpoint is remembered from before."""
    refs = list(state.all_checkpoints())
    same = [at for at, ref in enumerate(refs) if ref.digest == refs[-1].digest]
    if len(same) < 2:
        return unknown
    of_round = {ref.digest for ref in refs[same[-2] + 1 :]}
    at = len(refs)
    while at > 0 and refs[at - 1].digest in of_round:
        at -= 1
    return refs[at].offset if at > 0 else unknown


def loop_left(state: WorkflowState, case: Case) -> bool:
    """Whether the completion just folded shows that the workflow is out of the case's loop."""
    return bool(state.recent) and recent.has_left(case.loop, state.recent)


def used(state: WorkflowState, record: ResourceUsageReported, event: Delivered) -> bool:
    """A step says what it uses."""
    usage = state.usage = state.usage or Usage()
    if not usage.first_sight(record.event_id):
        return False
    step_id = record.step_id or ""
    if record.memory_mb is not None:
        usage.report(MEMORY, step_id, record.memory_mb, event.timestamp_us)
    if record.cpu_percent is not None:
        usage.report(CPU, step_id, record.cpu_percent, event.timestamp_us)
    if record.api_calls is not None:
        usage.count(record.api_calls, event.timestamp_us)
    state.transitions = (_LOOK,)
    return True


def asked(state: WorkflowState, record: ResourceRequested) -> None:
    """A step asks for a lease."""
    number = state.step_index(record.step_id)
    if number < 0:
        return
    leases = {**(state.leases or {}), record.lease_id: number}
    while len(leases) > LEASES_MAX:
        del leases[next(iter(leases))]
    state.leases = leases


def released(state: WorkflowState, record: ResourceReleased) -> None:
    """A lease ended. When its step did not give it back and still runs, that step runs on what it has no more."""
    leases = dict(state.leases or {})
    number = leases.pop(record.lease_id, -1)
    state.leases = leases or None
    run = (state.runs or {}).get(number)
    if run is not None and record.reason in LOST:
        state.transitions = (Transition("lease_lost", step_id=state.graph.steps[number].step_id, run=run),)
