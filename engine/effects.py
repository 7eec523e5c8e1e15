"""What the engine wants done. Both kinds carry derived ids, so doing one twice changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from schemas.ids import derive_id
from schemas.records import Command, Record

from .events import Delivered

PRODUCER = "kintsugi-engine"


@dataclass(frozen=True, slots=True)
class Append:
    """Append a fact to `workflow.events`."""

    record: Record


@dataclass(frozen=True, slots=True)
class Send:
    """Send a command on `workflow.commands`."""

    command: Command


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Tell the coordinator: append to `workflow.coordination`."""

    record: Record


@dataclass(frozen=True, slots=True)
class AppendTo:
    """The coordinator's: append a fact to this partition of `workflow.events`; to that of its key when it is None."""

    record: Record
    partition: int | None


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The coordinator's: append a fact to every partition of `workflow.events`."""

    record: Record


#: What follows from an event of a workflow.
Effect = Append | Send | Coordinate
#: What follows from a record of `workflow.coordination`.
CoordinatorEffect = AppendTo | Broadcast

R = TypeVar("R", bound=Record)


def fact(kind: type[R], cause: Delivered, label: str, number: int = 0, /, **fields: object) -> R:
    """A record caused by `cause`: its id is derived from the cause, its time is the cause's broker time."""
    source = cause.record
    return kind(
        event_id=derive_id(source.event_id, label, number),
        workflow_id=source.workflow_id,
        workflow_type=source.workflow_type,
        external_id=source.external_id,
        correlation_id=source.correlation_id,
        causation_id=source.event_id,
        occurred_at=cause.timestamp_us,
        producer=PRODUCER,
        **fields,
    )
