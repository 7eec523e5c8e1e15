"""What services cannot see themselves: each detector a pure function of a state and the event folded into it last.

Some verdicts fall where the event is folded, for they need no policy: a deadline that passed, a checkpoint that does
not verify, a lease that was lost. `overdue`, `state_corruption` and `lost_lease` write what follows. The others look
when the fold says that there is something to see (`Transition("look")`), so any other event costs nothing. Deadlocks
take more than one workflow to see: the coordinator finds them.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.records import Record
from schemas.records.events import ResourceUsageReported, StepCompleted, StepStarted

from ..events import Delivered
from ..policy.model import Policy
from ..state import WorkflowState
from .base import Detector
from .dependency import failed_dependency, lost_lease
from .infinite_loop import infinite_loop
from .resource_exhaustion import resource_exhaustion
from .state_corruption import state_corruption
from .timeouts import overdue
from .unknown import fingerprint

_DETECTORS: dict[type, Detector] = {
    StepStarted: failed_dependency,
    StepCompleted: infinite_loop,
    ResourceUsageReported: resource_exhaustion,
}


def detect(state: WorkflowState, event: Delivered, policy: Policy) -> Iterator[Record]:
    """The facts that follow for the detector of this kind of event."""
    detector = _DETECTORS.get(type(event.record))
    if detector is not None:
        yield from detector(state, event, policy)


__all__ = ["detect", "fingerprint", "lost_lease", "overdue", "state_corruption"]
