"""Records that were set aside, in the tables and in the topic, and what an operator does with parked workflows.

Lists say nothing of what a record holds: its type, place, size and the reason. What it says is shown less what rows
hide (`dlq_content`). Its bytes leave with an export alone (`dlq_export`).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from consumers.dead_letter import said_in
from consumers.log_reader import LogReader, record_of
from engine.events import Delivered
from engine.inspection import Inspector
from projections.reader import snapshot
from projections.release import Released, Releasing
from projections.sql import blocks
from projections.store import GENERATION
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import PoisonError
from schemas.log_record import LogRecord
from schemas.registry import Registry
from schemas.topics import DEAD_LETTERS

from .audit import audited
from .dlq_content import Contents
from .hidden import Hidden
from .output import NotFoundError
from .stack import Addresses

if TYPE_CHECKING:
    from engine.policy import Policy

Row = dict[str, Any]
_SQL = blocks("ops", "dlq.sql")
KEY_CHARS_MAX = 64


def parked(postgres: str, *, workflow_id: str | None, limit: int) -> list[Row]:
    """Parked workflows, the newest first."""
    with snapshot(postgres) as tables:
        wanted = {"generation": GENERATION, "workflow_id": workflow_id, "limit": limit}
        return tables.query(_SQL["parked"], wanted)


def queue(postgres: str, workflow_id: str) -> list[Row]:
    """What waits of one workflow, in order."""
    with snapshot(postgres) as tables:
        return tables.query(_SQL["waiting"], {"generation": GENERATION, "workflow_id": workflow_id})


def contents(at: Addresses, workflow_id: str, policy: Policy, limit: int) -> list[Row]:
    """What the first records that wait of one workflow say. RetriableError when the registry is away."""
    place = {"generation": GENERATION, "workflow_id": workflow_id}
    with Registry(at.registry) as registry, snapshot(at.postgres) as tables:
        shown = Contents(Codec(registry), Hidden(tables.redactions()), policy)
        found: list[Row] = []
        for topic, partition, offset, _ in islice(tables.stream(_SQL["parked_places"], place), limit):
            one = {**place, "topic": topic, "partition": partition, "offsets": [offset]}
            (row,) = tables.query(_SQL["parked_records"], one)
            key, value, timestamp_us = row["record_key"], row["record_value"], row["timestamp_us"]
            record = LogRecord(partition, offset, timestamp_us // 1000, 2, key, value, ())
            found.append({"log_partition": partition, "log_offset": offset, **shown.of(record, timestamp_us)})
        return found


def letters(postgres: str, *, workflow_id: str | None, limit: int) -> list[Row]:
    """Records that the projector could not read, or that somebody discarded; the newest first."""
    with snapshot(postgres) as tables:
        key = None if workflow_id is None else workflow_id.encode()
        found = tables.query(_SQL["letters"], {"key": key, "limit": limit})
    return [{**row, "key": (row["key"] or "")[:KEY_CHARS_MAX]} for row in found]


def topic_letters(kafka: str, *, workflow_id: str | None, limit: int) -> list[Row]:
    """Records that the recovery role and the coordinator set aside; the newest first. Copies are told once."""
    found: dict[tuple[str, ...], Row] = {}
    with LogReader(kafka) as log:
        for record in map(record_of, log.read(DEAD_LETTERS, log.bounds(DEAD_LETTERS))):
            key = (record.key or b"").decode("utf-8", "replace")[:KEY_CHARS_MAX]
            if workflow_id is not None and key != workflow_id:
                continue
            told = said_in(record.headers)
            place = tuple(told.get(name, "") for name in ("topic", "partition", "offset"))
            found[place] = {
                "key": key,
                "topic": place[0],
                "log_partition": place[1],
                "log_offset": place[2],
                "stage": told.get("stage", ""),
                # What follows the reason may quote the record.
                "reason": told.get("exception.message", "").split(":")[0],
                "bytes": len(record.value or b""),
                "timestamp_ms": record.timestamp_ms,
            }
    return sorted(found.values(), key=lambda row: -int(row["timestamp_ms"]))[:limit]


class Desk:
    """Lets parked workflows go: applies what waits, or passes over it."""

    def __init__(self, at: Addresses, registry: Registry) -> None:
        self._at = at
        self._codec = Codec(registry)
        self._tables = Releasing(at.postgres)
        # As the projector does: rows are made without keys.
        self._inspector = Inspector(keep_states=False)

    def close(self) -> None:
        """Let go of the connection."""
        self._tables.close()

    def release(
        self, workflow_id: str, reason: str, *, discard: int | None = 0, dry_run: bool = False
    ) -> list[Released]:
        """Pass over the first `discard` events (None: all), apply the others. NotFoundError when it is not parked."""
        places = parked(self._at.postgres, workflow_id=workflow_id, limit=1_000)
        if not places:
            raise NotFoundError(f"workflow {workflow_id} is not parked; kintsugi dlq list shows those that are")
        if dry_run:
            return self._release(workflow_id, places, discard, reason, dry_run=True)
        action = "dlq.retry" if discard == 0 else "dlq.discard"
        with audited(self._at.kafka, action, subject=workflow_id, reason=reason) as detail:
            done = self._release(workflow_id, places, discard, reason, dry_run=False)
            detail["partitions"] = [
                {"partition": d.partition, "applied": d.applied, "discarded": d.discarded, "waiting": d.waiting}
                for d in done
            ]
            return done

    def _release(
        self, workflow_id: str, places: list[Row], discard: int | None, why: str, *, dry_run: bool
    ) -> list[Released]:
        found = [
            self._tables.release_workflow(
                place["log_partition"], workflow_id, self._read, discard=discard, why=why, dry_run=dry_run
            )
            for place in places
        ]
        return [released for released in found if released is not None]

    def _read(self, record: LogRecord) -> Delivered:
        found = admit(self._codec, record.key, record.value)
        if isinstance(found, Unknown):
            raise PoisonError("unknown_type", f"{found.name} is not known to this release")
        return self._inspector.deliver(found, record.partition, record.offset, record.timestamp_ms * 1000)


def checked_reason(reason: str) -> str:
    """A reason that says something."""
    if not reason.strip():
        raise click.UsageError("the reason is empty")
    return reason.strip()
