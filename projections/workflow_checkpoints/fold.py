"""Every checkpoint in the log, verified or not: one row each, written once."""

from __future__ import annotations

from typing import Any

from engine.events import Delivered
from projections.kit import Table, Touch, columns, once
from projections.values import json_text, state_text, text
from schemas.records.events import CheckpointCreated


def _made(event: Delivered) -> tuple[Any, ...]:
    r = event.record
    assert isinstance(r, CheckpointCreated)
    rejection = None if event.rejection is None else f"{event.rejection[0]}: {event.rejection[1]}"
    verified = rejection is None and not r.evidence
    state = state_text(
        r.state, codec=r.codec, size_bytes=r.size_bytes, digest=r.digest, rejected=rejection, proven=verified
    )
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
        json_text(r.metadata),
        event.timestamp_us,
        r.sequence,
        verified,
        None if rejection is None else text(rejection),
        r.evidence,
        text(r.chain_digest),
        event.partition,
        event.offset,
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
    ),
    touches={CheckpointCreated: Touch(_key, once(_made))},
    written_once=True,
)
