"""Debugging sessions: that somebody replays, and what came of it, written to the log outside of the process that
replays, and read from the tables."""

from __future__ import annotations

import json
import time
from typing import Any

from projections.reader import snapshot
from projections.sql import blocks
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

_QUERIES = blocks("ops", "replay.sql")
_PRODUCER = "kintsugi-cli"
#: Whose session it is when a range holds many workflows.
OF_RANGE = derive_id(EVENTS, "replay")


class Session:
    """One session, begun when it is made."""

    def __init__(self, at: Addresses, session_id: str, config: dict[str, Any], workflow_id: str | None) -> None:
        """RetriableError when it cannot be written down; then nothing is replayed."""
        self.session_id = session_id
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


def sessions(postgres: str, limit: int) -> list[dict[str, Any]]:
    """Sessions as the tables have them, newest first."""
    with snapshot(postgres) as tables:
        return [_row(found) for found in tables.query(_QUERIES["sessions"], {"limit": limit, "id": None})]


def session(postgres: str, session_id: str) -> dict[str, Any] | None:
    """One session; None when the tables do not know it."""
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["sessions"], {"limit": 1, "id": session_id})
        return _row(found[0]) if found else None


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Config and results are JSON of whatever wrote the session: each part may be missing."""
    config, results = (found[name] if isinstance(found[name], dict) else {} for name in ("config", "results"))
    ended = found["end_time"]
    return {
        "session": str(found["id"]),
        "type": found["session_type"],
        "status": found["status"],
        "started_at": found["start_time"],
        "seconds": None if ended is None else round((ended - found["start_time"]).total_seconds(), 1),
        "actor": found["actor"],
        "workflow": config.get("workflow_id"),
        "ranges": _ranges(config.get("ranges")),
        "into": config.get("into"),
        "kept": results.get("kept"),
        "sha256": results.get("sha256"),
    }


def _ranges(value: Any) -> list[dict[str, Any]]:
    found = value if isinstance(value, list) else []
    return [r for r in found if isinstance(r, dict) and {"partition", "start", "end"} <= r.keys()]
