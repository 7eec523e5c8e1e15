"""Headers of every record: W3C trace context, and CloudEvents 1.0 in binary mode for Kafka.

`traceparent` is carried from event to decision to command to the service's next events, so one trace shows a repair.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache

from .records import Record
from .records.events import WorkflowErrorOccurred

Headers = list[tuple[str, bytes]]
#: Header of errors: what they have in common with others, so that it can be told without decoding them.
LANE = "kintsugi_lane"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Ids of zeros alone are invalid by the W3C's text.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def trace_of(headers: Headers | None) -> str | None:
    """The valid `traceparent` among headers; None when there is none."""
    for key, value in headers or ():
        if key == "traceparent" and value is not None:
            text = value.decode("ascii", "replace")
            return text if _TRACEPARENT.fullmatch(text) else None
    return None


def child_trace(parent: str | None, event_id: str, workflow_id: str) -> str:
    """`traceparent` for a record: the parent's trace, or the workflow's own; the span is the record itself.

    Both ids are derived, so a record sent twice carries the same headers twice.
    """
    if parent is not None:
        trace, flags = parent[3:35], parent[53:55]
    else:
        trace, flags = hashlib.blake2b(workflow_id.encode(), digest_size=16).hexdigest(), "01"
    span = hashlib.blake2b(event_id.encode(), digest_size=8).hexdigest()
    return f"00-{trace}-{span}-{flags}"


def lane_of(workflow_type: str, error_code: str, dependency: str | None) -> bytes:
    """What errors have in common that fail for one reason: recovery takes such lanes in turn. 16 hex digits."""
    text = f"dependency:{dependency}" if dependency else f"code:{workflow_type}:{error_code}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest().encode()


def lane_in(headers: Headers | None) -> bytes | None:
    """The lane that a producer named; None when it named none. A false one costs fairness, and nothing else."""
    for key, value in headers or ():
        if key == LANE and value is not None and len(value) == 16:
            return value
    return None


def headers_for(record: Record, *, parent: str | None = None) -> Headers:
    """All headers of one record."""
    headers = _common(record, parent)
    if type(record) is WorkflowErrorOccurred:
        headers.append((LANE, lane_of(record.workflow_type, record.error_code, record.dependency)))
    return headers


def _common(record: Record, parent: str | None) -> Headers:
    return [
        ("traceparent", child_trace(parent, record.event_id, record.workflow_id).encode()),
        ("ce_specversion", b"1.0"),
        ("ce_id", record.event_id.encode()),
        ("ce_source", record.producer.encode()),
        ("ce_type", _type(type(record).__name__)),
        ("ce_time", _time(record.occurred_at)),
        ("content-type", b"application/avro"),
    ]


@lru_cache(maxsize=64)  # what follows from one event bears the same time
def _time(occurred_at: int) -> bytes:
    return (_EPOCH + timedelta(microseconds=occurred_at)).isoformat().replace("+00:00", "Z").encode()


@cache
def _type(name: str) -> bytes:
    return b"kintsugi." + name.encode()
