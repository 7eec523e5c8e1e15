"""The one door: what every consumer asks of a record before it is folded.

A record that passes can be folded, decided on and written to Postgres without a further check of its shape.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from .catalog import shipped
from .codec import Codec, Unknown
from .errors import AdmissionError
from .ids import check_uuid, is_uuid
from .records import Record
from .records.events import CheckpointsExpired, StateMigrated, StepSpec, WorkflowStarted

#: 9999-12-31T23:59:59Z, the last moment Postgres and `datetime` agree on.
_TIME_MAX_US = 253_402_300_799_000_000
#: Widths of the story's VARCHAR columns, in characters.
_WIDTHS = {
    "step_id": 255,
    "checkpoint_type": 50,
    "state_version": 50,
    "version": 50,
    "status": 20,
    "strategy": 100,
    "error_type": 100,
    "severity": 20,
    "session_type": 50,
    "error_code": 100,
    "command_type": 100,
    "workflow_type": 255,
    "external_id": 255,
    "producer": 255,
    "digest": 64,
    "chain_digest": 64,
    "fingerprint": 64,
    "protection": 20,
    "resource_id": 255,
    "lease_id": 255,
    "breaker": 600,
    "key": 600,
    "dependency": 255,
    "ladder": 255,
    "stage": 100,
    "channel": 50,
    "kind": 50,
    "owner": 255,
    "policy_text": 1024 * 1024,
}
UUIDS = ("event_id", "checkpoint_id", "error_id", "root_error_id", "attempt_id", "command_id", "intervention_id",
          "session_id", "step_run_id", "request_id", "incident_id", "notification_id", "plan_id", "wait_id",
          "awaited_id")  # fmt: skip
STEPS_MAX = 10_000
#: A JSON Schema goes with every start of a workflow: one of more than a few pages belongs into code.
STATE_SCHEMA_CHARS_MAX = 64 * 1024
#: Checkpoints that one CheckpointsExpired names.
EXPIRED_MAX = 1_000
#: A time plus such a duration, in microseconds, still is a 64-bit number.
_DURATION_MS_MAX = 2**53
_INT_MAX = 2**31 - 1
_DOUBLE_MAX = sys.float_info.max


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is checked of one record type. Bounds are (field, lowest, highest, reason). All values of one kind are read
    by one call: this is done for every record, in every role."""

    ids: Callable[[Record], tuple[str | None, ...]]
    texts: Callable[[Record], tuple[str | None, ...]]
    widths: tuple[tuple[str, int], ...]
    numbers: Callable[[Record], tuple[float | None, ...]]
    bounds: tuple[tuple[str, float, float, str], ...]


_plans: dict[type[Record], _Plan] = {}


def admit(codec: Codec, key: bytes | None, value: bytes | None) -> Record | Unknown:
    """Decode and check one record of the event or command topic.

    Raises DecodeError or AdmissionError (poison), or RetriableError when the schema registry is away.
    """
    record = codec.decode(value)
    if isinstance(record, Unknown):
        return record
    check(record)
    if key is None:
        raise AdmissionError("null_key", "the key is null; it must be the workflow_id")
    if key != record.workflow_id.encode():
        raise AdmissionError("wrong_key", f"key {key[:64]!r} is not workflow_id {record.workflow_id}")
    return record


def check(record: Record) -> None:
    """AdmissionError when a field breaks a rule: ids are UUIDs, texts and numbers fit columns, times are times."""
    kind = type(record)
    plan = _plans.get(kind)
    if plan is None:
        plan = _plans[kind] = _plan_of(kind)
    for value in plan.ids(record):
        if value is not None and not is_uuid(value):
            raise AdmissionError("bad_id", f"{kind.__name__}: not a canonical UUID: {value[:64]!r}")
    for text, (name, width) in zip(plan.texts(record), plan.widths, strict=True):
        if text is not None and len(text) > width:
            raise AdmissionError("too_long", f"{kind.__name__}.{name}: {len(text)} characters, {width} allowed")
    for number, (name, low, high, reason) in zip(plan.numbers(record), plan.bounds, strict=True):
        if number is not None and not low <= number <= high:  # so written, NaN is out of bounds too
            raise AdmissionError(reason, f"{kind.__name__}.{name}: {number} is not within {low}..{high}")
    if isinstance(record, WorkflowStarted):
        _check_steps(record.steps)
        _check_state_schema(record.state_schema)
    elif isinstance(record, StateMigrated):
        _check_state_schema(record.state_schema)
    elif isinstance(record, CheckpointsExpired):
        _check_expired(record)


def _check_state_schema(text: str | None) -> None:
    if text is not None and len(text) > STATE_SCHEMA_CHARS_MAX:
        raise AdmissionError("too_long", f"state_schema: {len(text)} characters, {STATE_SCHEMA_CHARS_MAX} allowed")


def _check_expired(record: CheckpointsExpired) -> None:
    if not len(record.checkpoint_ids) == len(record.event_ids) <= EXPIRED_MAX:
        raise AdmissionError(
            "bad_id",
            f"{len(record.checkpoint_ids)} checkpoints and {len(record.event_ids)} events, {EXPIRED_MAX} allowed",
        )
    try:
        for text in (*record.checkpoint_ids, *record.event_ids):
            check_uuid(text)
    except ValueError as error:
        raise AdmissionError("bad_id", f"CheckpointsExpired: {error}") from None


def _check_steps(steps: tuple[StepSpec, ...]) -> None:
    if len(steps) > STEPS_MAX:
        raise AdmissionError("too_many_steps", f"{len(steps)} steps, {STEPS_MAX} allowed")
    for step in steps:
        if not 1 <= len(step.step_id) <= _WIDTHS["step_id"]:
            raise AdmissionError("too_long", f"a step_id must have 1 to {_WIDTHS['step_id']} characters")
        for number in (step.timeout_ms, step.heartbeat_timeout_ms):
            if number is not None and not 0 <= number <= _DURATION_MS_MAX:
                raise AdmissionError("bad_time", f"step {step.step_id}: {number} ms is no duration")


def _plan_of(kind: type[Record]) -> _Plan:
    types = {f["name"]: f["type"] for f in json.loads(shipped()[kind.__name__].text)["fields"]}
    found = [(name, *_bounds(name, type_[-1] if isinstance(type_, list) else type_)) for name, type_ in types.items()]
    bounds = tuple(bound for bound in found if bound[3])
    widths = tuple((name, width) for name, width in _WIDTHS.items() if name in types)
    return _Plan(
        ids=_values(["workflow_id", *(name for name in UUIDS if name in types)]),
        texts=_values([name for name, _ in widths]),
        widths=widths,
        numbers=_values([bound[0] for bound in bounds]),
        bounds=bounds,
    )


def _values(names: Sequence[str]) -> Callable[[Record], tuple[Any, ...]]:
    """Reads fields of a record. Every record has ids, texts and a time; two of one kind are read as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _bounds(name: str, avro: object) -> tuple[float, float, str]:
    """Lowest, highest and reason; no reason when every value will do."""
    if avro == "int":  # fastavro reads 64 bits into an int
        return -_INT_MAX - 1, _INT_MAX, "bad_number"
    if avro == "double":
        return -_DOUBLE_MAX, _DOUBLE_MAX, "bad_number"
    if avro == "long" and name.endswith("_at"):
        return 0, _TIME_MAX_US, "bad_time"
    if avro == "long" and name.endswith("_ms"):
        return 0, _DURATION_MS_MAX, "bad_time"
    return 0, 0, ""
