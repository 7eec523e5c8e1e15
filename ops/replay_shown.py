"""How a replay shows events, engine states and the states of services: bounded, redacted, never opened.

What the tables hide, and what the policy of today hides, is hidden. A state that is larger than
`debugging.state_inspection.max_state_size` is shown cut, never left out. What is sealed or lies in object storage is
named, as in the tables.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import orjson

from engine.effects import Append, Coordinate, Effect
from engine.events import Delivered
from engine.state import PENDING, WorkflowState
from projections.kit import redacted
from projections.values import json_text, rejection_of, state_text
from schemas.records import Record
from schemas.records.events import CheckpointCreated, RecoveryDecided, StatePersisted, StateRestored
from schemas.redaction import Redaction

from .hidden import Hidden
from .replay_compare import Compared

#: A text of a service's making, such as a stack trace, beyond which it is cut.
TEXT_CHARS_MAX = 4_000
_STEP_STATUSES = ("pending", "running", "completed", "failed", "skipped", "compensated")
#: Fields of a record that hold JSON or bytes of a service.
_JSON = frozenset({"context", "metadata", "config", "results", "result"})
_BYTES = frozenset({"state", "sealed"})
_CUT = "cut"
#: orjson writes 254 levels; a document has fewer than the latter around a value of a service.
_DEPTH_SURE, _DEPTH_AROUND = 200, 32


def at(timestamp_us: int) -> str:
    """A broker time as people read it."""
    moment = datetime.fromtimestamp(timestamp_us / 1e6, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cut(value: Any, size_bytes_max: int) -> Any:
    """The value, or the beginning of its JSON with a word that it is only that."""
    data = orjson.dumps(value)
    if len(data) <= size_bytes_max and _fits(value, data):
        return value
    text = data[:size_bytes_max].decode("utf-8", "ignore")
    return {"$kintsugi": _CUT, "size_bytes": len(data), "text": text}


def _fits(value: Any, data: bytes) -> bool:
    """Whether a document can hold it: what is nested deeper is refused by the writer of JSON."""
    if data.count(b"[") + data.count(b"{") <= _DEPTH_SURE:
        return True
    for _ in range(_DEPTH_AROUND):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


class Shown:
    """Shows with these redactions and this bound on a state."""

    def __init__(self, hidden: Hidden, paths: tuple[str, ...], size_bytes_max: int, *, states: bool = True) -> None:
        """`paths`: what the policy hides beside what the tables do. `states`: whether services' states are shown."""
        self._hidden = hidden
        self._paths = paths
        self._size_bytes_max = size_bytes_max
        self._states = states

    def record(self, event: Delivered) -> dict[str, Any]:
        """An event's own fields; a state is shown by `state`."""
        redaction = self._redaction(event)
        shown: dict[str, Any] = {}
        for f in fields(event.record):
            value = getattr(event.record, f.name)
            if value is None:
                continue
            if f.name in _BYTES:
                value = f"{len(value)} bytes"
            elif f.name in _JSON and isinstance(value, str):
                value = cut(orjson.loads(json_text(value, redaction) or "null"), self._size_bytes_max)
            shown[f.name] = _plain(value)
        return shown

    def state(self, event: Delivered) -> Any:
        """The state that an event brings; None when it brings none."""
        record = event.record
        if not isinstance(record, CheckpointCreated | StatePersisted | StateRestored):
            return None
        if not self._states:
            return {"$kintsugi": "hidden", "reason": "debugging.state_inspection.enabled is false in the policy"}
        rejected = rejection_of(event)
        text, _ = state_text(record, rejected=rejected, redaction=self._redaction(event))
        return cut(orjson.loads(text), self._size_bytes_max)

    def hidden(self, event: Delivered) -> Delivered:
        """The event, whose rows do not have what nobody is shown."""
        return redacted((event,), self._redaction(event))[0]

    def _redaction(self, event: Delivered) -> Redaction:
        found = self._hidden.from_people(event.partition, event.offset)
        if not self._paths:
            return found
        return Redaction(tuple(dict.fromkeys((*found.paths, *self._paths))))


def engine_state(state: WorkflowState | None) -> dict[str, Any] | None:
    """What the engine knows of a workflow, in words."""
    if state is None:
        return None
    steps = {
        spec.step_id: _STEP_STATUSES[state.steps[number] if number < len(state.steps) else PENDING]
        for number, spec in enumerate(state.graph.steps)
    }
    names = [spec.step_id for spec in state.graph.steps]
    return {
        "status": state.status,
        "steps": steps,
        "runs": {names[n]: {"run_id": r.run_id, "command_id": r.command_id} for n, r in (state.runs or {}).items()},
        "cases": [
            {
                "error_id": case.error_id,
                "step_id": case.step_id,
                "error_type": case.error_type,
                "occurrences": case.occurrences,
                "attempts": case.attempts,
                "attempt": None
                if case.attempt is None
                else {"strategy": case.attempt.decision.strategy, "status": case.attempt.status},
                "intervention_id": case.intervention_id,
            }
            for case in (state.cases or {}).values()
        ],
        "checkpoints": [
            {"checkpoint_id": ref.checkpoint_id, "offset": ref.offset, "sequence": ref.sequence}
            for ref in state.all_checkpoints()
        ],
        "attempts": state.attempts,
        "epoch": state.epoch,
        "cost": state.cost,
    }


def effect(found: Effect) -> dict[str, Any]:
    """What follows from an event, shortly."""
    record: Record = found.command if not isinstance(found, Append | Coordinate) else found.record
    does = "append" if isinstance(found, Append) else "tell" if isinstance(found, Coordinate) else "command"
    shown = {"does": does, "record": type(record).__name__, "event_id": record.event_id}
    for name in ("strategy", "step_id", "attempt_number", "command_type", "rule", "outcome", "disposition"):
        value = getattr(record, name, None)
        if value is not None:
            shown[name] = _plain(value)
    return shown


def decision(found: Compared) -> dict[str, Any]:
    """A decision with its verdict."""
    d = found.record
    assert isinstance(d, RecoveryDecided)
    shown = {
        "place": f"{found.partition}:{found.offset}",
        "at": at(found.timestamp_us),
        "workflow_id": d.workflow_id,
        "error_id": d.error_id,
        "attempt": d.attempt_number,
        "error_type": d.error_type,
        "step_id": d.step_id,
        "strategy": d.strategy,
        "rung": d.rung,
        "command": d.command_type,
        "wait_ms": d.execute_after_ms,
        "checkpoint_id": d.checkpoint_id,
        "policy_version": d.policy_version,
        "rule": d.rule,
        "evidence": _said(d.evidence),
        "alternatives": _said(d.alternatives),
        "verdict": found.verdict,
    }
    return {**shown, "recorded": {name: before for name, (before, _) in sorted(found.fields.items())}}


def difference(found: Compared) -> dict[str, Any]:
    """A fact that differs, by field."""
    return {
        "verdict": found.verdict,
        "place": f"{found.partition}:{found.offset}",
        "at": at(found.timestamp_us),
        "record": type(found.record).__name__,
        "event_id": found.record.event_id,
        "workflow_id": found.record.workflow_id,
        "fields": {name: {"recorded": _text(b), "now": _text(n)} for name, (b, n) in sorted(found.fields.items())},
    }


def _said(text: str) -> Any:
    """What the engine wrote as JSON."""
    return cut(orjson.loads(json_text(text) or "null"), TEXT_CHARS_MAX)


def _text(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= TEXT_CHARS_MAX else f"{text[:TEXT_CHARS_MAX]}... ({len(text)} characters)"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value
