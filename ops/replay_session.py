"""A debugging session in the log: that somebody replays, and what came of it. Outside of the process that replays."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from schemas.codec import Codec
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.events import DebugSessionFinished, DebugSessionStarted
from schemas.registry import Registry
from schemas.topics import EVENTS

from .audit import actor
from .publish import publish
from .stack import Addresses

_PRODUCER = "kintsugi-cli"
#: Whose session it is when a range holds many workflows.
OF_RANGE = derive_id(EVENTS, "replay")


class Session:
    """One session, begun when it is made."""

    def __init__(self, at: Addresses, config: dict[str, Any], workflow_id: str | None) -> None:
        """RetriableError when it cannot be written down; then nothing is replayed."""
        self.session_id = str(uuid.uuid4())
        self._at = at
        self._common: dict[str, Any] = {
            "workflow_id": workflow_id or OF_RANGE,
            "workflow_type": "kintsugi",
            "producer": _PRODUCER,
            "session_id": self.session_id,
        }
        self._started = derive_id(self.session_id, "started")
        self._write(
            DebugSessionStarted(
                event_id=self._started,
                occurred_at=time.time_ns() // 1000,
                session_type="replay",
                config=json.dumps(config),
                actor=actor(),
                **self._common,
            )
        )

    def finish(self, status: str, results: dict[str, Any]) -> None:
        """Write down how it ended."""
        self._write(
            DebugSessionFinished(
                event_id=derive_id(self.session_id, "finished"),
                causation_id=self._started,
                occurred_at=time.time_ns() // 1000,
                status=status,
                results=json.dumps(results),
                **self._common,
            )
        )

    def _write(self, record: Record) -> None:
        with Registry(self._at.registry) as registry:
            value = Codec(registry).encode(record)
        publish(self._at.kafka, EVENTS, record.workflow_id, value, headers=headers_for(record))
