"""What is known across workflows: who holds what, who waits for whom, what fails together.

A pure fold of `workflow.coordination`, which has one partition, so that its records have one order. Each component
folds every record into a state of its own and says what follows; nothing here reads a clock or writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from engine.effects import CoordinatorEffect
from engine.policy import Policy
from schemas.records import Record
from schemas.records.coordination import CoordinationTimerFired

PRODUCER = "kintsugi-coordinator"

R = TypeVar("R", bound=Record)


class Component(Protocol):
    """A part of the coordinator. `Coordinator` leaves out records that were folded before."""

    #: Under this name its state stands in a snapshot.
    name: ClassVar[str]

    def fold(self, record: Record, now_us: int, policy: Policy) -> Iterable[CoordinatorEffect]:
        """Fold a record that the broker wrote at `now_us`. A PolicyChanged comes here too: `policy` is the new one."""

    def due(self, now_us: int) -> Iterable[CoordinationTimerFired]:
        """Facts for the moments that have passed; they do nothing until they are read back and folded. One that is due
        may be named again until then."""

    def next_due_us(self) -> int | None:
        """When `due` has something next; None for never."""

    def dump(self) -> Any:
        """The whole state as values that JSON can hold."""

    def load(self, value: Any) -> None:
        """Take over what `dump` gave; KeyError, TypeError or ValueError when it is something else."""


@dataclass(frozen=True, slots=True)
class Addressee:
    """A workflow that is told something: its names, and the partition of `workflow.events` that holds it."""

    workflow_id: str
    workflow_type: str
    external_id: str | None
    correlation_id: str | None
    partition: int

    @classmethod
    def of(cls, record: Any) -> Addressee:
        """Whoever a record of `workflow.coordination` is about."""
        return cls(
            record.workflow_id, record.workflow_type, record.external_id, record.correlation_id, record.partition
        )


def fact_for(kind: type[R], to: Addressee, cause: Record, event_id: str, now_us: int, **fields: object) -> R:
    """A fact for a workflow's own partition. `event_id` is derived by the caller: what causes a grant may be another
    workflow's record, and the grant is the same whichever it was."""
    return kind(
        event_id=event_id,
        workflow_id=to.workflow_id,
        workflow_type=to.workflow_type,
        external_id=to.external_id,
        correlation_id=to.correlation_id,
        causation_id=cause.event_id,
        occurred_at=now_us,
        producer=PRODUCER,
        **fields,
    )
