"""A checkpoint that does not verify: its bytes, its place in the chain, its structure or its schema are not right.

What is wrong was found when it was folded (`engine.inspection`, `engine.chain`). It is never restored; whether it is an
error too, the policy says.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.records import Record
from schemas.records.events import CheckpointCreated, CheckpointRejected

from ..effects import fact
from ..events import Delivered
from ..policy.model import Policy
from .base import found

NAME = "state_corruption"


def state_corruption(event: Delivered, policy: Policy, reason: str, detail: str) -> Iterator[Record]:
    """The rejection of the checkpoint just folded, and the error."""
    record = event.record
    assert isinstance(record, CheckpointCreated)
    yield fact(
        CheckpointRejected,
        event,
        "rejected",
        checkpoint_id=record.checkpoint_id,
        step_id=record.step_id,
        reason=reason,
        detail=detail,
    )
    if not policy.corruption.enabled:
        return
    yield found(
        event,
        NAME,
        "corrupt",
        step_id=record.step_id,
        error_code="STATE_CORRUPTION",
        error_message=f"checkpoint {record.checkpoint_id} does not verify: {reason}: {detail}",
        checkpoint_id=record.checkpoint_id,
        reason=reason,
    )
