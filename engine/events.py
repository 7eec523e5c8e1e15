"""An event as the engine sees it: the record, where it stands in the log, and when the broker wrote it there."""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from schemas.canonical import DEPTH_MAX, parse_state, verify_stored
from schemas.errors import StateError
from schemas.records import Record
from schemas.records.events import CheckpointCreated

#: What orjson writes differently from RFC 8785, or takes and a state may not hold: fractions, exponents, integers of 16
#: digits and more. Found inside a text it only costs the slower way. One pattern for each byte that can stand before a
#: number: what begins with one certain byte is found three times as fast.
_NUMBER = rb"-?(?:\d+[.eE]|\d{16})"
_UNUSUAL = tuple(re.compile(before + _NUMBER).search for before in (rb":", rb",", rb"\["))


@dataclass(frozen=True, slots=True)
class Delivered:
    """A record read from the log. `rejection` is (reason, detail) when it is a checkpoint that does not verify."""

    record: Record
    partition: int
    offset: int
    timestamp_us: int
    rejection: tuple[str, str] | None = None


def deliver(record: Record, partition: int, offset: int, timestamp_us: int) -> Delivered:
    """Wrap a record; a checkpoint's bytes are verified here, once, for all who fold it."""
    rejection = _inspect(record) if type(record) is CheckpointCreated else None
    return Delivered(record, partition, offset, timestamp_us, rejection)


def _inspect(record: CheckpointCreated) -> tuple[str, str] | None:
    if record.evidence:
        return None  # evidence of an error needs no validity; it is never restored from
    if record.state is None:
        return ("claim", "the state lies in object storage, which this version does not read")
    try:
        data = verify_stored(record.state, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
        value = _parse(data)
    except StateError as error:
        return (error.reason, str(error)[:500])
    if value.get("workflow_id") != record.workflow_id:
        return ("structure", "the state is that of another workflow, or names none")
    if not value.get("step_id") or not value.get("status"):
        return ("structure", "the state lacks step_id or status")
    return None


def _parse(data: bytes) -> dict[str, object]:
    """The state in verified canonical bytes. The fast path proves the form by writing it again."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StateError("structure", f"not JSON: {error}") from None
    plain = data.isascii() and b"\\u0000" not in data and not any(search(data) for search in _UNUSUAL)
    plain = plain and orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == data
    if not plain:
        value = parse_state(data)
    if not isinstance(value, dict):
        raise StateError("structure", f"a state is a JSON object, not {type(value).__name__}")
    # What opens at most so many objects and lists cannot nest deeper: most states need no walk.
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and _deeper_than(value, DEPTH_MAX):
        raise StateError("limit", f"nested deeper than {DEPTH_MAX}")
    return value


def _deeper_than(value: object, depth_max: int) -> bool:
    level: list[object] = [value]
    for _ in range(depth_max + 1):
        level = [
            item
            for node in level
            for item in (node.values() if type(node) is dict else node if type(node) is list else ())
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True
