"""Incidents: questions to the table, and what an operator does with one, written to the log and followed there."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from typing import Any

import click

from consumers.log_reader import LogReader, record_of
from projections.reader import snapshot
from projections.sql import blocks
from schemas.admission import admit
from schemas.codec import Codec
from schemas.errors import ConfigError, PoisonError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records.coordination import IncidentNoted
from schemas.records.events import IncidentChanged
from schemas.registry import Registry
from schemas.topics import COORDINATION, EVENTS

from .audit import REASON_CHARS_MAX, actor
from .output import CONFLICT, NotFoundError
from .publish import publish
from .stack import Addresses

#: As long as a reason.
NOTE_CHARS_MAX = REASON_CHARS_MAX
#: As long as an actor of the audit log.
OWNER_CHARS_MAX = 255
#: Between two looks at the end of the log.
_LOOK_EVERY_S = 0.2

Row = dict[str, Any]
_QUERIES = blocks("ops", "incidents.sql")


class RefusedError(click.ClickException):
    """Nothing can be done with this incident any more."""

    exit_code = CONFLICT


def incidents(postgres: str, *, state: str | None, limit: int) -> list[Row]:
    """Incidents: those that are not resolved first, and of them the ones that changed last."""
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["incidents"], {"state": state, "limit": limit})


def incident(postgres: str, incident_id: str) -> Row:
    """One incident, and some of the workflows it hits. NotFoundError when the table does not know it."""
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["incident"], {"id": incident_id})
        if not found:
            raise NotFoundError(f"no incident {incident_id}; kintsugi incidents list shows those that are there")
        return {**found[0], "affected": tables.query(_QUERIES["affected"], {"id": incident_id})}


def breaker_of(row: Row) -> str:
    """What is done with the repairs of an incident, in words."""
    if row["state"] == "resolved":
        return "repairs go out as always"
    if row["state"] == "recovering":
        return "held repairs go out in growing waves"
    if row["kind"] == "intervention":
        return "no breaker opened this incident: workflows wait for people"
    return "repairs are held while its breaker is open; a few canaries go out after growing pauses"


class Note:
    """One action on an incident: written to the log, then followed there. Use as a context manager."""

    def __init__(
        self, at: Addresses, row: Row, action: str, reason: str, *, owner: str | None = None, note: str | None = None
    ) -> None:
        for name, value, most in (
            ("reason", reason, REASON_CHARS_MAX),
            ("owner", owner, OWNER_CHARS_MAX),
            ("note", note, NOTE_CHARS_MAX),
        ):
            if value is not None and not 1 <= len(value.strip()) <= len(value) <= most:
                raise ConfigError(f"the {name} has {len(value)} characters; 1 to {most} are allowed, not all blank")
        if row["state"] == "resolved":
            raise RefusedError(f"incident {row['id']} is resolved since {row['resolved_at']}")
        self._at = at
        self._partition: int = row["log_partition"]
        self._incident_id = str(row["id"])
        self.record = IncidentNoted(
            event_id=derive_id(str(uuid.uuid4()), "IncidentNoted"),
            workflow_id=self._incident_id,
            workflow_type="kintsugi.incident",
            occurred_at=time.time_ns() // 1000,
            producer="kintsugi-cli",
            incident_id=self._incident_id,
            action=action,
            owner=owner,
            note=note,
            reason=reason,
            actor=actor(),
        )
        self._position = 0
        self._stack = ExitStack()

    def __enter__(self) -> Note:
        self._log = self._stack.enter_context(LogReader(self._at.kafka))
        self._codec = Codec(self._stack.enter_context(Registry(self._at.registry)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self) -> None:
        """Write it and wait until the broker has it. RetriableError when it has not."""
        self._position = self._log.bounds(EVENTS)[self._partition][1]
        publish(
            self._at.kafka,
            COORDINATION,
            self._incident_id,
            self._codec.encode(self.record),
            headers=headers_for(self.record),
        )

    def follow(self, timeout_s: float) -> IncidentChanged | None:
        """The incident as it is after it; None when that is not seen in time. RefusedError when it was resolved by
        somebody else first."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for record in self._news():
                if record.causation_id == self.record.event_id:
                    return record
                if record.state == "resolved":
                    by = f" by {record.actor}" if record.actor else ""
                    raise RefusedError(f"incident {self._incident_id} was resolved{by} first: {record.reason}")
            if time.monotonic() >= deadline_s:
                return None
            time.sleep(_LOOK_EVERY_S)

    def _news(self) -> list[IncidentChanged]:
        """What came of this incident since the last look."""
        end = self._log.bounds(EVENTS)[self._partition][1]
        found = []
        for message in self._log.read(EVENTS, {self._partition: (self._position, end)}):
            stored = record_of(message)
            if stored.key != self._incident_id.encode():
                continue
            try:
                record = admit(self._codec, stored.key, stored.value)
            except PoisonError:
                continue
            if isinstance(record, IncidentChanged):
                found.append(record)
        self._position = max(end, self._position)
        return found
