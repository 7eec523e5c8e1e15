"""What all detectors write: an error, like one that a service reports, that says which of them found it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.events import WorkflowErrorOccurred

from ..effects import fact
from ..events import Delivered
from ..policy.model import Policy
from ..state import WorkflowState

_BY = "detector:"


class Detector(Protocol):
    """Looks at a state and the event that was folded into it last; pure."""

    def __call__(self, state: WorkflowState, event: Delivered, policy: Policy, /) -> Iterator[Record]:
        """The facts to append."""


def found(
    event: Delivered,
    detector: str,
    label: str,
    *,
    error_code: str,
    error_message: str,
    step_id: str = "",
    error: str = "error",
    context: dict[str, Any] | None = None,
    **fields: Any,
) -> WorkflowErrorOccurred:
    """The error that `detector` found at `event`. `label` and `error` tell it from others found at the same event."""
    return fact(
        WorkflowErrorOccurred,
        event,
        label,
        error_id=derive_id(event.record.event_id, error),
        step_id=step_id,
        error_code=error_code,
        error_message=error_message,
        context=None if context is None else json.dumps(context, sort_keys=True),
        detected_by=_BY + detector,
        **fields,
    )


def found_by(record: WorkflowErrorOccurred, detector: str) -> bool:
    """Whether this detector found the error."""
    return record.detected_by == _BY + detector
