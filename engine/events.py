"""An event as the engine sees it: the record, where it stands in the log, and when the broker wrote it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.records import Record


@dataclass(frozen=True, slots=True)
class Delivered:
    """A record read from the log.

    Of a checkpoint also what `engine.inspection` found: `rejection` (reason, detail) when it does not verify, `state`
    its proven state, `unreadable` why that could not be looked into.
    """

    record: Record
    partition: int
    offset: int
    timestamp_us: int
    rejection: tuple[str, str] | None = None
    state: dict[str, Any] | None = None
    unreadable: str | None = None
