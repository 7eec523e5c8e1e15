"""Everything that happened to one workflow, read from archive and log: the tables keep only what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from consumers.history import History
from schemas.admission import admit
from schemas.archive_format import Gap
from schemas.codec import Codec, Unknown
from schemas.errors import PoisonError, StateError
from schemas.keystore import Keystore
from schemas.log_record import LogRecord
from schemas.records import Record
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CommandAcknowledged,
    ErrorClassified,
    InterventionClaimed,
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    RecoveryAttemptFinished,
    RecoveryDecided,
    RecoveryRefused,
    RecoveryRequested,
    RepairHeld,
    RepairReleased,
    RestoreRequested,
    StateRestored,
    StepCompleted,
    StepProgressed,
    StepStarted,
    TimerFired,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from schemas.sealing import unseal_fields

#: Events follow a workflow's end for a while: late answers, a repair that closes.
AFTER_END_MS = 3_600_000
_TEXT_MAX = 200

Row = dict[str, Any]
_Described = Callable[[Any], str]


def _decided(r: RecoveryDecided) -> str:
    wait = f" in {r.execute_after_ms} ms" if r.execute_after_ms else ""
    return f"attempt {r.attempt_number}: {r.strategy} -> {r.command_type or 'no command'}{wait} ({r.rule})"


def _acknowledged(r: CommandAcknowledged) -> str:
    again = " (repeated)" if r.duplicate else ""
    return f"{r.status}{again}{f': {r.detail}' if r.detail else ''}"


def _finished(r: RecoveryAttemptFinished) -> str:
    after = f" after {r.duration_ms} ms{f': {r.error_message}' if r.error_message else ''}"
    return f"attempt {r.attempt_number} {r.outcome}: {r.strategy}{after}"


_DETAILS: dict[type[Record], _Described] = {
    WorkflowStarted: lambda r: f"version {r.workflow_version}, {len(r.steps)} steps",
    StepStarted: lambda r: "for a command" if r.command_id else "",
    StepProgressed: lambda r: "" if r.progress is None else f"{r.progress:.0%} {r.message or ''}",
    StepCompleted: lambda r: f"{r.duration_ms} ms",
    CheckpointCreated: lambda r: f"{r.checkpoint_type} {r.sequence}, {r.size_bytes} bytes",
    CheckpointRejected: lambda r: f"{r.reason}: {r.detail}",
    RestoreRequested: lambda r: f"checkpoint {r.checkpoint_id} by {r.actor}: {r.reason}",
    StateRestored: lambda r: f"restore {r.restore_count}, from checkpoint {r.checkpoint_id}",
    WorkflowErrorOccurred: lambda r: f"{r.error_code}: {r.error_message} ({r.detected_by})",
    ErrorClassified: lambda r: f"{r.error_type}, {r.severity} ({r.rule})",
    RecoveryDecided: _decided,
    CommandAcknowledged: _acknowledged,
    RecoveryAttemptFinished: _finished,
    InterventionRequested: lambda r: f"{r.trigger}: {r.reason}",
    InterventionResolved: lambda r: f"{r.decision} by {r.actor}: {r.reason}",
    InterventionClaimed: lambda r: f"by {r.actor}{f': {r.reason}' if r.reason else ''}",
    InterventionPointReached: lambda r: r.reason or "",
    RecoveryRequested: lambda r: f"{r.strategy} by {r.actor}: {r.reason}",
    RecoveryRefused: lambda r: f"{r.strategy}: {r.reason}",
    RepairHeld: lambda r: r.reason,
    RepairReleased: lambda r: f"{'canary' if r.canary else f'wave {r.wave}'} of {r.breaker}",
    TimerFired: lambda r: r.kind,
}


def timeline(
    history: History,
    codec: Codec,
    workflow_id: str,
    *,
    partition: int,
    first_offset: int,
    ended_ms: int | None,
    keystore: Keystore | None = None,
) -> Iterator[Row]:
    """Rows in log order, from the workflow's first event to an hour after its end, or to the end of the log.

    What is neither in the log nor in the archive is a row too. With a keystore sealed texts are opened; without, they
    stay as they are. Raises as `History` and `Keystore` do.
    """
    end = history.bounds()[partition].end
    if ended_ms is not None:
        end = history.offset_at(partition, ended_ms + AFTER_END_MS) or end
    key = workflow_id.encode()
    began_ms: int | None = None
    gaps: list[Gap] = []
    for record in history.read({partition: (first_offset, end)}, on_gap=gaps.append):
        while gaps:
            yield _missing(gaps.pop(0))
        at_ms = record.timestamp_ms
        if ended_ms is not None and at_ms > ended_ms + AFTER_END_MS:
            break
        if record.key != key:
            continue
        began_ms = at_ms if began_ms is None else began_ms
        place = {"offset": record.offset, "at": datetime.fromtimestamp(at_ms / 1000, UTC)}
        yield {**place, "after_ms": at_ms - began_ms, **_told(codec, record, keystore)}
    yield from map(_missing, gaps)


def _missing(gap: Gap) -> Row:
    what = f"offsets {gap.first} to {gap.next - 1}: {gap.reason}"
    return {
        "offset": gap.first,
        "at": None,
        "after_ms": None,
        "event": "(missing)",
        "step": "",
        "detail": what,
        "producer": "",
    }


def _told(codec: Codec, found: LogRecord, keystore: Keystore | None) -> Row:
    try:
        record = admit(codec, found.key, found.value)
    except PoisonError as error:
        return {"event": "(set aside)", "step": "", "detail": f"{error.reason}: {error}"[:_TEXT_MAX], "producer": ""}
    if isinstance(record, Unknown):
        return {"event": record.name, "step": "", "detail": "unknown to this version", "producer": ""}
    closed = ""
    if keystore is not None:
        try:
            record = unseal_fields(record, keystore.keys_of(record.workflow_id))
        except StateError as error:
            closed = f" [{error.reason}]"
    describe = _DETAILS.get(type(record))
    detail = str(getattr(record, "reason", "") or "") if describe is None else describe(record)
    return {
        "event": type(record).__name__,
        "step": getattr(record, "step_id", None) or "",
        "detail": (detail.strip() + closed)[:_TEXT_MAX],
        "producer": record.producer,
    }
