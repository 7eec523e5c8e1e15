"""Every checkpoint in the log, verified or not: one row each, written once, until its retention ends.

`verified` is what the record itself says; what was found later, or with keys, is in `workflow_checkpoint_rejections`.
A checkpoint that comes again after it expired has its row again, with its place in the log.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from engine.events import Delivered
from projections.kit import Table, Touch, columns, once, redaction_of
from projections.values import json_text, rejection_of, state_text, text, text_or_none
from schemas.records.events import CheckpointCreated, CheckpointsExpired


def _made(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointCreated)
    rejection = rejection_of(event)
    verified = rejection is None and not r.evidence
    proven = verified and event.unreadable is None
    state, hidden = state_text(r, rejected=rejection, proven=proven, redaction=redaction_of(event))
    return (
        r.checkpoint_id,
        r.workflow_id,
        text(r.step_id),
        text(r.checkpoint_type),
        r.occurred_at,
        state,
        text(r.state_version),
        text(r.digest),
        r.size_bytes,
        r.codec != "identity",
        json_text(r.metadata, redaction_of(event)),
        event.timestamp_us,
        r.sequence,
        verified,
        None if rejection is None else text(rejection),
        r.evidence,
        text(r.chain_digest),
        event.partition,
        event.offset,
        r.epoch,
        text(r.codec),
        text(r.protection),
        text_or_none(r.claim_uri),
        hidden,
    )


def _key(event: Delivered) -> str:
    return event.record.checkpoint_id  # type: ignore[attr-defined, no-any-return]


TABLE = Table(
    name="workflow_checkpoints",
    columns=columns(
        id="uuid",
        workflow_id="uuid",
        step_id="text",
        checkpoint_type="text",
        timestamp="time",
        state_data="jsonb",
        state_version="text",
        checksum="text",
        size_bytes="int",
        compressed="bool",
        metadata="jsonb",
        created_at="time",
        sequence="bigint",
        verified="bool",
        rejection="text",
        evidence="bool",
        chain_digest="text",
        log_partition="int",
        log_offset="bigint",
    )
    + columns(2, epoch="int", codec="text", protection="text", claim_uri="text", redacted="bool"),
    touches={CheckpointCreated: Touch(_key, once(_made))},
    removes={CheckpointsExpired: attrgetter("checkpoint_ids")},
    written_once=True,
)
