"""The one door: what every consumer asks of a record before it is folded.

A record that passes can be folded, decided on and written to Postgres without a further check of its shape.
"""

from __future__ import annotations

from .codec import Codec, Unknown
from .errors import AdmissionError
from .ids import uuid_bytes
from .records import Command, Record

#: 9999-12-31T23:59:59Z, the last moment Postgres and `datetime` agree on.
_OCCURRED_AT_MAX = 253_402_300_799_000_000
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
    "workflow_type": 255,
    "external_id": 255,
    "producer": 255,
    "digest": 64,
    "chain_digest": 64,
}
_UUIDS = ("event_id", "checkpoint_id", "error_id", "root_error_id", "attempt_id", "command_id", "intervention_id",
          "session_id", "step_run_id")  # fmt: skip
STEPS_MAX = 10_000
_plans: dict[type[Record], tuple[tuple[str, ...], tuple[tuple[str, int], ...]]] = {}


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
    """AdmissionError when a field breaks a rule: ids are UUIDs, texts fit their columns, times are times."""
    kind = type(record)
    plan = _plans.get(kind)
    if plan is None:
        fields = kind.__dataclass_fields__
        plan = _plans[kind] = (
            tuple(n for n in _UUIDS if n in fields),
            tuple((n, w) for n, w in _WIDTHS.items() if n in fields),
        )
    try:
        uuid_bytes(record.workflow_id)
        for name in plan[0]:
            value = getattr(record, name)
            if value is not None:
                uuid_bytes(value)
    except ValueError as error:
        raise AdmissionError("bad_id", f"{kind.__name__}: {error}") from None
    for name, width in plan[1]:
        text = getattr(record, name)
        if text is not None and len(text) > width:
            raise AdmissionError("too_long", f"{kind.__name__}.{name}: {len(text)} characters, {width} allowed")
    if not 0 <= record.occurred_at <= _OCCURRED_AT_MAX:
        raise AdmissionError("bad_time", f"{kind.__name__}.occurred_at: {record.occurred_at} is no time")
    if isinstance(record, Command):
        return
    steps = getattr(record, "steps", ())
    if len(steps) > STEPS_MAX:
        raise AdmissionError("too_many_steps", f"{len(steps)} steps, {STEPS_MAX} allowed")
    if any(len(s.step_id) > _WIDTHS["step_id"] or not s.step_id for s in steps):
        raise AdmissionError("too_long", f"a step_id must have 1 to {_WIDTHS['step_id']} characters")
