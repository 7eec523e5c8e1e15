"""What the keeper writes into a workflow's own partition. Ids are derived: several keepers, restarts and repeated
passes say each thing once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from schemas.admission import EXPIRED_MAX
from schemas.ids import derive_id
from schemas.records.events import CheckpointCreated, CheckpointRejected, CheckpointsExpired, WorkflowErrorOccurred

from .tables import Target

PRODUCER = "kintsugi-keeper"
#: As long as what the engine says of a checkpoint.
_DETAIL_CHARS_MAX = 500


def rejected(
    target: Target, record: CheckpointCreated | None, reason: str, detail: str, now_us: int, *, error: bool
) -> Iterator[CheckpointRejected | WorkflowErrorOccurred]:
    """A checkpoint does not verify: that it is never to be restored from, and, with `error`, that this is an error.

    `record` is None when it cannot be read any more; the checkpoint's own id then stands for that of its event.
    """
    cause = target.checkpoint_id if record is None else record.event_id
    common = {
        "workflow_id": target.workflow_id,
        "workflow_type": target.workflow_type,
        "external_id": target.external_id,
        "correlation_id": None if record is None else record.correlation_id,
        "causation_id": None if record is None else record.event_id,
        "occurred_at": now_us,
        "producer": PRODUCER,
        "checkpoint_id": target.checkpoint_id,
        "step_id": target.step_id,
        "reason": reason,
    }
    detail = detail[:_DETAIL_CHARS_MAX]
    yield CheckpointRejected(
        event_id=derive_id(cause, f"scrub|rejected|{reason}"),
        detail=detail,
        detected_by="scrub",
        **common,  # type: ignore[arg-type]
    )
    if error:
        yield WorkflowErrorOccurred(
            event_id=derive_id(cause, f"scrub|corrupt|{reason}"),
            error_id=derive_id(cause, f"scrub|error|{reason}"),
            error_code="STATE_CORRUPTION",
            error_message=f"checkpoint {target.checkpoint_id} does not verify any more: {reason}: {detail}",
            detected_by="detector:scrub",
            **common,  # type: ignore[arg-type]
        )


def expired(records: Sequence[CheckpointCreated], reason: str, now_us: int) -> Iterator[CheckpointsExpired]:
    """Checkpoints of one workflow whose retention is over, for one reason; in parts that a record can hold."""
    for first in range(0, len(records), EXPIRED_MAX):
        part = sorted(records[first : first + EXPIRED_MAX], key=lambda record: record.event_id)
        named = hashlib.sha256("".join(record.event_id for record in part).encode()).hexdigest()
        yield CheckpointsExpired(
            event_id=derive_id(part[0].workflow_id, f"expired|{reason}|{named}"),
            workflow_id=part[0].workflow_id,
            workflow_type=part[0].workflow_type,
            external_id=part[0].external_id,
            correlation_id=part[0].correlation_id,
            causation_id=None,
            occurred_at=now_us,
            producer=PRODUCER,
            checkpoint_ids=tuple(record.checkpoint_id for record in part),
            event_ids=tuple(record.event_id for record in part),
            reason=reason,
        )
