"""The fold of errors and repairs: cases open, attempts go decided -> sent -> accepted -> ended, cases close.

A case whose `attempt` is None is waiting for its next decision to be read back from the log. The first decision with
the expected number wins; any other is ignored.
"""

from __future__ import annotations

from schemas.records.events import (
    CommandAcknowledged,
    RecoveryDecided,
    TimerFired,
    WorkflowErrorOccurred,
)

from . import fold_detection as detection
from . import people, requests
from .branches import cancel_id
from .by_hand import LADDER
from .classify import classify, resource_of
from .detectors import fingerprint
from .events import Delivered
from .fold_stages import ANSWERED, answered, give_epoch, in_flight, release, waited
from .safety import WAIT
from .state import CASES_MAX, FAILED, PENDING, Attempt, Case, StepRun, Transition, WorkflowState
from .strategies import RESTORING, UNDO_STAGE

#: What ended an attempt that no service answered.
UNANSWERED = "no service accepted the command in time"
#: What a service says of an error after which it does not know whether the step took effect.
OUTCOME_UNKNOWN = "outcome_unknown"
#: Characters of an error's message that rules are matched against.
MATCHED_CHARS_MAX = 1_000
_RUNS_ANEW = frozenset({"ResumeFromCheckpoint", "RestartWorkflow", "RollbackTo", "SkipStep"})
#: Reasons of a service for which another try of the same kind fails alike.
_ENDS_RUNG = frozenset({"migration_missing", "migration_failed", "downgrade", "key_erased", "unsupported"})
#: Reasons for which asking, or undoing, fails alike however often it is tried.
_HOPELESS = frozenset({"not_reconcilable", "no_compensation", "never_ran", "unsupported", "key_erased"})
#: No policy allows as many.
UNDO_TRIES_MAX = 1_000_000


def error(state: WorkflowState, record: WorkflowErrorOccurred, event: Delivered) -> bool:
    """An error ends the step's run; it opens a case, ends the attempt in flight, or joins the open case."""
    if not state.first_sight(record.error_id):
        return False
    run = _fail_run(state, record)
    kind = classify(record)
    case = state.case_of(record.step_id) or _case_of_command(state, record, run) or detection.loop_of(state, record)
    approved = case is not None and _lets_pass(state, case, record, run)
    if approved:
        case = None
    if case is None:
        if len(state.cases or ()) >= CASES_MAX:
            state.transitions = (Transition("unrooted", detail=f"{CASES_MAX} errors are open already"),)
            return True
        case = Case(
            error_id=record.error_id,
            step_id=record.step_id,
            error_type=kind.error_type,
            severity=kind.severity,
            opened_at_us=event.timestamp_us,
            opened_offset=event.offset,
            error_code=record.error_code,
            message=record.error_message[:MATCHED_CHARS_MAX],
            fingerprint=fingerprint(record),
            dependency=record.dependency,
            unsure=_unsure(record, run),
            approved=approved,
        )
        state.open_case(case)
        state.transitions = (*state.transitions, Transition("opened", case))
        detection.loop_found(state, record, case)
        return True
    detection.loop_found(state, record, case)
    case.occurrences += 1
    attempt = case.attempt
    if attempt is not None and in_flight(attempt) and _belongs(record, run, attempt):
        # What fails instead of the step, a compensation or the alternative, makes it no error of another kind.
        if not case.undoing and record.step_id in ("", case.step_id):
            case.error_type, case.severity = kind.error_type, kind.severity
            case.error_code, case.message = record.error_code, record.error_message[:MATCHED_CHARS_MAX]
            case.unsure, case.reconciled = _unsure(record, run), ""
        _end(state, case, attempt, "failed", f"{record.error_code} again")
        return True
    state.transitions = (Transition("again", case),)
    return True


def _lets_pass(state: WorkflowState, case: Case, record: WorkflowErrorOccurred, run: StepRun | None) -> bool:
    """Whether the error is of a run that a human let pass its intervention point: then the point's case is over."""
    attempt = case.attempt
    if attempt is None or not in_flight(attempt) or run is None or not _belongs(record, run, attempt):
        return False
    return people.point_passed(state, case)


def _case_of_command(state: WorkflowState, record: WorkflowErrorOccurred, run: StepRun | None) -> Case | None:
    """The case whose command failed before its step began, in its alternative, or while it undid another step."""
    if record.command_id is None:
        return None
    for case in (state.cases or {}).values():
        if case.attempt is not None and case.attempt.decision.command_id == record.command_id:
            return case if not record.step_id or case.undoing or _is_instead(state, case, record, run) else None
    return None


def _is_instead(state: WorkflowState, case: Case, record: WorkflowErrorOccurred, run: StepRun | None) -> bool:
    """Whether the step's alternative failed for certain. One that may have taken effect is an error of its own."""
    spec = state.graph.spec(case.step_id)
    if spec is None or record.step_id != spec.alternative:
        return False
    alternative = state.graph.spec(record.step_id)
    return alternative is None or alternative.idempotent or not _unsure(record, run)


def _unsure(record: WorkflowErrorOccurred, run: StepRun | None) -> bool:
    """Whether the run that the error ended may have taken effect: nobody saw its end, or it was found at work."""
    return record.reason == OUTCOME_UNKNOWN or (run is not None and record.detected_by != "service")


def _fail_run(state: WorkflowState, record: WorkflowErrorOccurred) -> StepRun | None:
    number = state.graph.index.get(record.step_id, -1)
    run = (state.runs or {}).get(number)
    if run is None or record.step_run_id not in (None, run.run_id):
        return None
    state.end_run(number)
    state.set_step(number, FAILED)
    return run


def _belongs(record: WorkflowErrorOccurred, run: StepRun | None, attempt: Attempt) -> bool:
    """Whether the error ends this attempt: it names its command, or its run began after the command was sent."""
    if record.command_id is not None:
        return record.command_id == attempt.decision.command_id
    return run is not None and run.started_at_us >= attempt.sent_at_us


def _end(
    state: WorkflowState, case: Case, attempt: Attempt, outcome: str, detail: str, *, answered: bool = True
) -> None:
    """End the attempt in flight. One that no service answered did nothing, so it uses up no try of its rung."""
    case.attempt = None
    case.stage = ""
    if answered:
        _use(state, case, attempt.decision)
    else:
        case.unanswered += 1
    if outcome == "unknown" and answered and attempt.decision.command_type not in ANSWERED:
        case.unsure, case.reconciled = True, ""
    state.transitions = (Transition("ended", case, attempt, outcome, detail),)


def _still_there(state: WorkflowState, checkpoint_id: str | None) -> bool:
    """Whether the checkpoint may be chosen again: one that was rejected on restore is gone from the list anyway."""
    return checkpoint_id is None or state.find_checkpoint(checkpoint_id) is not None


def _leave_rung(case: Case, decision: RecoveryDecided) -> None:
    """Another try of the same kind would fail alike."""
    case.progress = {**(case.progress or {}), _ladder_of(decision): (decision.rung + 1, 0)}


def _ladder_of(decision: RecoveryDecided) -> str:
    """What progress is kept under. Engines before 0.3.0 named no ladder: each error type had one."""
    return decision.ladder or decision.error_type


def _use(state: WorkflowState, case: Case, decision: RecoveryDecided) -> None:
    """Count a try on its rung, and remember what the next one builds on."""
    case.unanswered = 0
    if decision.stage.startswith(UNDO_STAGE):
        case.undo_tries += 1
        return
    case.undoing = ""
    progress = case.progress or {}
    key = _ladder_of(decision)
    rung, count = progress.get(key, (decision.rung, 0))
    case.progress = {**progress, key: (rung, count + 1)}
    if decision.strategy in RESTORING and _still_there(state, decision.checkpoint_id):
        case.restores += 1
    if decision.strategy == "increase_timeout_and_retry":
        case.timeout_ms = decision.timeout_ms


def decided(state: WorkflowState, record: RecoveryDecided, event: Delivered) -> bool:
    """A decision read back. It starts an attempt; one that came too late is finished at once."""
    if not state.first_sight(record.event_id):
        return False
    case = (state.cases or {}).get(record.error_id)
    if case is None:
        late = Attempt(record, "decided", event.timestamp_us, event.timestamp_us)
        state.transitions = (Transition("late", attempt=late),)
        return False
    requests.supersede(state, case, record)
    if case.attempt is not None or record.attempt_number <= case.attempts:
        return False
    at_once = record.execute_after_ms <= 0
    case.attempt = Attempt(
        decision=record,
        status="sent" if at_once else "decided",
        decided_at_us=event.timestamp_us,
        execute_at_us=event.timestamp_us + record.execute_after_ms * 1000,
        sent_at_us=event.timestamp_us if at_once else 0,
    )
    if at_once:
        give_epoch(state, case.attempt)
    case.attempts = record.attempt_number
    case.cost += record.cost
    state.cost += record.cost
    state.attempts += 1
    progress = case.progress or {}
    key = _ladder_of(record)
    rung, count = progress.get(key, (record.rung, 0))
    case.progress = {**progress, key: (record.rung, count if rung == record.rung else 0)}
    # A human may have what is half undone undone further: `requests.supersede` has ended any other undoing.
    if (record.ladder == LADDER) if case.undoing else record.stage.startswith(UNDO_STAGE):
        case.undoing = record.strategy
        case.undo_to = -1 if record.checkpoint_offset is None else record.checkpoint_offset
        case.undo_tries = 0
    if state.deadline_passed:  # the repair gets a workflow deadline of its own
        state.deadline_passed = False
        state.deadline_from_us = event.timestamp_us
    state.transitions = (*state.transitions, Transition("decided", case, case.attempt))
    return False


def acknowledged(state: WorkflowState, record: CommandAcknowledged, event: Delivered) -> bool:
    """A service's answer. Late, repeated and unknown ones change nothing."""
    if record.status == "succeeded" and record.command_id == cancel_id(record.error_id or "", record.step_id or ""):
        _branch_stopped(state, record.step_id or "")
        return True
    case = (state.cases or {}).get(record.error_id or "")
    attempt = None if case is None else case.attempt
    if case is None or attempt is None or not in_flight(attempt):
        return False
    if record.command_id != attempt.decision.command_id:
        return False
    if record.duplicate and record.status == "unknown":
        # It came again to a process that had not received it first. Whether that one accepted it, the log says: when
        # it died before, this answer must not make the engine wait for an outcome that never comes.
        return True
    status = record.status
    if status == "failed":
        _end(state, case, attempt, "failed", record.detail or "the service refused or failed the command")
        _take_reason(case, attempt.decision, record.reason)
    elif status == "succeeded" and attempt.decision.command_type in ANSWERED:
        answered(state, case, attempt, record.result or "")
    elif status == "unknown":
        _end(state, case, attempt, "unknown", record.detail or "the service cannot tell")
    elif attempt.status == "sent":
        attempt.status = "accepted"
        attempt.accepted_at_us = event.timestamp_us
        unpause(state, event.timestamp_us)
        if attempt.decision.command_type in _RUNS_ANEW:
            state.runs = None
            detection.begun_anew(state)
        else:
            state.end_run(state.graph.index.get(attempt.decision.step_id, -1))
    return True


def _take_reason(case: Case, decision: RecoveryDecided, reason: str | None) -> None:
    """What a service says besides that it failed: whether trying again can help."""
    if decision.command_type == "ReconcileStep":
        if reason in _HOPELESS:
            case.reconciled = "cannot_tell"
    elif case.undoing:
        if reason in _HOPELESS:
            case.undo_tries = UNDO_TRIES_MAX
    elif reason in _ENDS_RUNG:
        _leave_rung(case, decision)


def _branch_stopped(state: WorkflowState, step_id: str) -> None:
    """A step was stopped because another failed: it can begin again."""
    number = state.graph.index.get(step_id, -1)
    if state.runs and number in state.runs:
        state.end_run(number)
        state.set_step(number, PENDING)


def step_done(
    state: WorkflowState, step_id: str, command_id: str | None, run: StepRun | None, *, skipped: bool = False
) -> None:
    """A step completed. Its case is recovered, unless a command is out that this completion does not answer; that of a
    loop when any step shows that the workflow has left it."""
    for case in tuple((state.cases or {}).values()):
        if case.step_id == step_id if skipped or not case.loop else detection.loop_left(state, case):
            _done(state, case, command_id, run)


def _done(state: WorkflowState, case: Case, command_id: str | None, run: StepRun | None) -> None:
    attempt = case.attempt
    if attempt is not None and in_flight(attempt) and command_id != attempt.decision.command_id:
        if run is None or run.started_at_us < attempt.sent_at_us:
            return
    state.close_case(case)
    resource = resource_of(case.error_code)
    if case.scaled > 1 and resource is not None:
        state.sizes = {**(state.sizes or {}), resource: case.scaled}
    state.transitions = (*state.transitions, Transition("recovered", case, attempt, "succeeded"))


def close_all(state: WorkflowState, *, recovered: bool, status: str) -> None:
    """The workflow ended: every open case ends with it."""
    outcome = "succeeded" if recovered else "failed"
    kind = "recovered" if recovered else "closed"
    cases = tuple((state.cases or {}).values())
    state.transitions = tuple(
        Transition(kind, case, case.attempt, outcome, f"the workflow was {status}") for case in cases
    )
    state.cases = None


def unpause(state: WorkflowState, now_us: int) -> None:
    """Go on: deadlines are moved by the length of the pause."""
    if state.status != "paused":
        return
    pause_us = max(0, now_us - state.paused_at_us)
    state.status = "running"
    state.paused_at_us = 0
    state.deadline_from_us += pause_us
    for run in (state.runs or {}).values():
        run.started_at_us += pause_us
        run.heard_at_us += pause_us


def timer_fired(state: WorkflowState, record: TimerFired, event: Delivered) -> bool:
    """A moment passed. Only what still waits for exactly this moment is moved, and never before its time."""
    if event.timestamp_us < record.due_at:
        return False  # written by a process whose clock runs ahead of the broker's
    if record.kind in ("step_timeout", "heartbeat_timeout"):
        _run_timed_out(state, record)
    elif record.kind == "workflow_timeout":
        if not state.deadline_passed and record.subject_id == str(state.workflow_timeouts):
            state.deadline_passed = True
            state.workflow_timeouts += 1
            state.transitions = (_overdue(state, "WORKFLOW_TIMEOUT"),)
    elif record.kind == "stall_timeout":
        idle = not state.runs and not state.cases and not state.stalled and state.status == "running"
        if idle and record.subject_id == str(state.heard_offset):
            state.stalled = True
            state.transitions = (_overdue(state, "STALLED"),)
    else:
        _case_timer(state, record, event)
    return False


def _overdue(state: WorkflowState, code: str) -> Transition:
    return Transition("overdue", detail=code, step_id=state.next_step() or "")


def _run_timed_out(state: WorkflowState, record: TimerFired) -> None:
    run = (state.runs or {}).get(state.graph.index.get(record.step_id, -1))
    if run is None or run.run_id != record.subject_id or run.timed_out:
        return
    if record.kind == "heartbeat_timeout":
        if run.heard_at_us + (run.heartbeat_timeout_ms or 0) * 1000 > record.due_at:
            return  # it was heard meanwhile
    run.timed_out = True
    code = "TIMEOUT" if record.kind == "step_timeout" else "HEARTBEAT_TIMEOUT"
    state.transitions = (Transition("overdue", detail=code, step_id=record.step_id, run=run),)


def _case_timer(state: WorkflowState, record: TimerFired, event: Delivered) -> None:
    for case in (state.cases or {}).values():
        attempt = case.attempt
        if record.kind == "intervention_timeout":
            if case.intervention_id == record.subject_id:
                state.transitions = (Transition("expired", case, attempt),)
                return
        elif attempt is not None and attempt.decision.attempt_id == record.subject_id:
            if record.kind == "backoff" and attempt.decision.stage == WAIT:
                waited(state, case, attempt)
            elif record.kind == "backoff" and attempt.status == "decided":
                attempt.status = "sent"
                attempt.sent_at_us = event.timestamp_us
                give_epoch(state, attempt)
                state.transitions = (Transition("send", case, attempt),)
            elif record.kind == "hold_timeout" and attempt.status == "held":
                release(state, case, attempt, event)
            elif record.kind == "acknowledge_timeout" and attempt.status == "sent" and in_flight(attempt):
                _end(state, case, attempt, "unknown", UNANSWERED, answered=False)
            elif record.kind == "attempt_timeout" and attempt.status == "accepted":
                _end(state, case, attempt, "unknown", "accepted, but the step did not complete in time")
            return
