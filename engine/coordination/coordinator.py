"""The coordinator: its components, each record folded once, and the policy in force.

Folding the same records again, in a new process or from a snapshot, gives the same effects with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine.effects import CoordinatorEffect
from engine.events import Delivered
from engine.inforce import InForce
from engine.policy import Policy
from schemas.records import Record
from schemas.records.coordination import CoordinationTimerFired
from schemas.records.events import PolicyChanged

from . import Component
from .breakers import Breakers
from .incidents import Incidents
from .leases import Leases
from .waits import Waits

#: Layout of `dump`; a snapshot of another one is not read.
VERSION = 1
#: Ids of records remembered. The same record comes twice when a partition's batch was done again, which is soon; one
#: that comes later than so many others finds components that do not mind.
SEEN_MAX = 50_000


def components() -> tuple[Component, ...]:
    """All parts of the coordinator, in the order in which they see a record."""
    leases, breakers = Leases(), Breakers()
    return leases, Waits(leases), breakers, Incidents(breakers)


class Coordinator:
    """Folds `workflow.coordination`."""

    def __init__(self, components: Sequence[Component], policy: Policy) -> None:
        self.components = tuple(components)
        self.in_force = InForce(policy)
        self._seen: dict[str, None] = {}

    def fold(self, record: Record, timestamp_us: int) -> list[CoordinatorEffect]:
        """What follows from a record that the broker wrote at `timestamp_us`. Nothing from one folded before."""
        if record.event_id in self._seen:
            return []
        self._seen[record.event_id] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        if isinstance(record, PolicyChanged):
            self.in_force.take(Delivered(record, 0, 0, timestamp_us))
        policy = self.in_force.policy
        return [effect for part in self.components for effect in part.fold(record, timestamp_us, policy)]

    def due(self, now_us: int) -> Iterable[CoordinationTimerFired]:
        """Facts for the moments that have passed. One that is due may be named again until it is read back."""
        for part in self.components:
            yield from part.due(now_us)

    @property
    def next_due_us(self) -> int | None:
        """When `due` has something next; None for never."""
        return min((at for part in self.components if (at := part.next_due_us()) is not None), default=None)

    def dump(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold."""
        return {
            "version": VERSION,
            "policy": self.in_force.text,
            "sequence": self.in_force.sequence,
            "seen": list(self._seen),
            "components": {part.name: part.dump() for part in self.components},
        }

    def load(self, value: Any) -> None:
        """Take over what `dump` gave. KeyError, TypeError or ValueError when it is of another layout, or of other
        components: it is to be folded from the log then."""
        if value["version"] != VERSION or value["components"].keys() != {part.name for part in self.components}:
            raise ValueError("made by another version of the coordinator")
        self.in_force.restore(value["policy"], value["sequence"])
        self._seen = dict.fromkeys(value["seen"])
        for part in self.components:
            part.load(value["components"][part.name])
