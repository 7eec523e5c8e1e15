"""What a projected table is: a row type, the columns it is written to, and a pure fold.

A fold sees the events of its table's key in log order and nothing else. Times are integers (microseconds since the
epoch), ids and JSON are text; the database's types are given by the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.events import Delivered
from schemas.redaction import NOTHING, Redaction

#: Version of the tables; a column or table that came later than the first says since which. See `0002_states.sql`.
TABLES_VERSION = 3

#: Fold of one record type: the row before (None: none yet) and the event to the row after (None: still none).
Fold = Callable[[Any, Delivered], Any]


class Touch(NamedTuple):
    """What a record type does to a table: which row it concerns (None: none), and how."""

    key: Callable[[Delivered], str | None]
    fold: Fold


@dataclass(frozen=True, slots=True)
class Column:
    """`kind`: text, uuid, jsonb, bytea, time, int, bigint, bool; `uuid->table` for a reference that may be missing."""

    name: str
    kind: str
    since: int = 1

    @property
    def references(self) -> str | None:
        """Table a reference points to."""
        return self.kind.split("->")[1] if "->" in self.kind else None


@dataclass(frozen=True, slots=True)
class Redacted(Delivered):
    """An event whose rows hide what the policy names."""

    redaction: Redaction = NOTHING


def redacted(events: Sequence[Delivered], redaction: Redaction) -> Sequence[Delivered]:
    """The events, to be folded into rows that hide these fields. Without any they are what they were."""
    if not redaction:
        return events
    return [
        Redacted(e.record, e.partition, e.offset, e.timestamp_us, e.rejection, e.state, e.unreadable, redaction)
        for e in events
    ]


def hidden_from(event: Delivered, places: Sequence[tuple[int, Redaction]]) -> Delivered:
    """An event without what is hidden at its place; `places`: from which offsets on what is, in order."""
    redaction = NOTHING
    for offset, found in places:
        if offset <= event.offset:
            redaction = found
    return redacted((event,), redaction)[0]


def redaction_of(event: Delivered) -> Redaction:
    """What the rows of this event hide."""
    return event.redaction if isinstance(event, Redacted) else NOTHING


def _plain(*values: Any) -> tuple[Any, ...]:
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A projected table. Rows are tuples in the order of `columns`; the first column is the key, and named `id`.

    `row` makes a row from its values as they are read back. `written_once`: the first event of a key makes the row and
    no later one changes it, so rows are neither read back nor kept in memory. `twin`: a table before this one, in which
    an event that makes a row of both puts the same `state_data`. `removes`, of tables written once: the keys of rows
    that a record deletes, if they belong to its workflow; what referred to them refers to nothing from then on.
    """

    name: str
    columns: tuple[Column, ...]
    touches: Mapping[type, Touch]
    row: Callable[..., Any] = _plain
    written_once: bool = False
    twin: str | None = None
    removes: Mapping[type, Callable[[Any], Sequence[str]]] = field(default_factory=dict)
    since: int = 1

    @property
    def owner(self) -> int:
        """Place of the column that names the workflow a row belongs to; an incident is the workflow of its records."""
        names = [c.name for c in self.columns]
        return next((names.index(name) for name in ("workflow_id", "incident_id") if name in names), 0)


def columns(since: int = 1, /, **kinds: str) -> tuple[Column, ...]:
    """Columns in order, as keyword arguments."""
    return tuple(Column(name, kind, since) for name, kind in kinds.items())


def once(make: Callable[[Delivered], Any]) -> Fold:
    """A fold in which the first event makes the row."""
    return lambda row, event: make(event) if row is None else row


def change(update: Callable[[Any, Delivered], Any]) -> Fold:
    """A fold that changes a row that is there, and makes none. A workflow changes no row of another workflow."""

    def fold(row: Any, event: Delivered) -> Any:
        if row is None or row.workflow_id != event.record.workflow_id:
            return row
        return update(row, event)

    return fold
