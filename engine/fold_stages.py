"""The fold of repairs that take several commands, and of commands that may not go out yet."""

from __future__ import annotations

import json

from schemas.records.events import DependantsHeld, RepairHeld, RepairReleased

from .commands import BEGINNING
from .events import Delivered
from .safety import WAIT, must_end
from .state import Attempt, Case, Transition, WorkflowState
from .strategies import MANUAL, UNDOING

#: Commands that are over when they are answered; the others when the step that they repair completes.
ANSWERED = frozenset({"ScaleResources", "ReconcileStep", "CompensateStep"})
#: What holds a command while other branches of its workflow run.
BRANCHES = "branches"


def in_flight(attempt: Attempt) -> bool:
    """Whether its command is out and not over."""
    return attempt.status in ("sent", "accepted") and attempt.decision.strategy != MANUAL


def give_epoch(state: WorkflowState, attempt: Attempt) -> None:
    """A command that begins a run is sent: the run's checkpoints are told apart from those of the run before."""
    if attempt.decision.command_type in BEGINNING:
        state.epochs += 1
        attempt.epoch = state.epochs


def answered(state: WorkflowState, case: Case, attempt: Attempt, result: str) -> None:
    """A command that is over when it is answered: the strategy goes on with its next stage, on the same rung."""
    decision = attempt.decision
    case.attempt = None
    case.unanswered = 0
    if decision.command_type == "ReconcileStep":
        case.reconciled = result or "cannot_tell"
    elif decision.command_type == "CompensateStep":
        case.undo_tries = 0
    else:
        case.stage = decision.stage
        case.scaled = float(json.loads(decision.parameters or "{}").get("factor", case.scaled))
    state.transitions = (*state.transitions, Transition("staged", case, attempt, "succeeded", result))


def waited(state: WorkflowState, case: Case, attempt: Attempt) -> None:
    """What was waited for has ended, or the wait has: it is looked again what can be done."""
    case.attempt = None
    at_work = _still_at_work(state, case, attempt)
    case.stage = WAIT if at_work else ""
    beside = None if at_work else state.checkpoint_beside(case.step_id, case.opened_offset)
    if beside is not None:  # what ended meanwhile is in it, and is not to be repeated
        case.opened_offset = beside.offset + 1
    state.transitions = (*state.transitions, Transition("staged", case, attempt, "succeeded"))


def end_waits(state: WorkflowState) -> None:
    """A run may have ended: whoever waited only for it goes on."""
    for case in (state.cases or {}).values():
        attempt = case.attempt
        if attempt is None or attempt.decision.stage != WAIT:
            continue
        if not _still_at_work(state, case, attempt):
            waited(state, case, attempt)


def _still_at_work(state: WorkflowState, case: Case, attempt: Attempt) -> bool:
    undoing = attempt.decision.strategy in UNDOING
    return any(must_end(state, case, number, undoing=undoing) for number in state.runs or ())


def compensated(state: WorkflowState, command_id: str | None) -> None:
    """A step was undone: the command that asked for it is answered, whether its acknowledgement arrives or not."""
    for case in (state.cases or {}).values():
        attempt = case.attempt
        if attempt is not None and in_flight(attempt) and attempt.decision.command_id == command_id:
            if attempt.decision.command_type == "CompensateStep":
                answered(state, case, attempt, "")
            return


def repair_held(state: WorkflowState, record: RepairHeld, event: Delivered) -> bool:
    """The command that was due was not sent."""
    case = (state.cases or {}).get(record.error_id)
    attempt = None if case is None else case.attempt
    if attempt is not None and attempt.status == "sent" and attempt.decision.attempt_id == record.attempt_id:
        attempt.status, attempt.held, attempt.held_at_us = "held", record.breaker, event.timestamp_us
        state.transitions = (Transition("held", case, attempt, detail=record.breaker),)
    return False


def repair_released(state: WorkflowState, record: RepairReleased, event: Delivered) -> bool:
    """The coordinator lets a held command go."""
    case = (state.cases or {}).get(record.error_id)
    attempt = None if case is None else case.attempt
    if attempt is not None and attempt.held == record.breaker and attempt.status == "held":
        if record.attempt_id in (None, attempt.decision.attempt_id):
            release(state, case, attempt, event)
    return False


def send_held(state: WorkflowState, event: Delivered, held: str) -> None:
    """Let go whatever is held by this."""
    for case in (state.cases or {}).values():
        if case.attempt is not None and case.attempt.status == "held" and case.attempt.held == held:
            release(state, case, case.attempt, event)


def release(state: WorkflowState, case: Case | None, attempt: Attempt, event: Delivered) -> None:
    """The command may go out now."""
    attempt.status, attempt.sent_at_us = "sent", event.timestamp_us
    give_epoch(state, attempt)
    state.transitions = (*state.transitions, Transition("send", case, attempt, "released"))


def dependants_held(state: WorkflowState, record: DependantsHeld, event: Delivered) -> bool:
    """Read back: the case says so when it closes."""
    case = (state.cases or {}).get(record.error_id)
    if case is not None:
        case.holds_dependants = True
    return False
