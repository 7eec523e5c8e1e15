"""A record that nobody could read or apply, as it is passed around."""

from __future__ import annotations

from dataclasses import dataclass

from .headers import Headers

#: Where a record failed, in Kafka Connect's words: it could not be read, or it could not be applied.
STAGE_DECODE = "VALUE_CONVERTER"
STAGE_APPLY = "TASK_PUT"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """The record untouched, where it stands, and why it was set aside. `timestamp_us` is the broker's."""

    topic: str
    partition: int
    offset: int
    timestamp_us: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    stage: str
    reason: str
    detail: str
