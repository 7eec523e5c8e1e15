"""The tables under a replay, in memory: every fold runs, and what it makes and changes is counted.

Of tables that are written once no later event reads a row, so no more is kept of one than that it is there: checkpoints
hold whole states, and a range may hold a million of them. On request the rows that the range made or changed go to a
scratch schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from engine.events import Delivered
from projections.catalog import TABLES
from projections.fold import Folded
from projections.kit import Table, Touch

#: Records shown of those that a fold refuses; all are counted.
SHOWN_MAX = 1_000
_ERROR_CHARS_MAX = 500


class Sink(Protocol):
    """Where rows go that are to be looked at."""

    def add(self, name: str, row: Sequence[Any], place: str) -> None:
        """A row that no later record changes."""

    def remove(self, name: str, keys: Sequence[str]) -> None:
        """Rows that a record deletes."""

    def close(self, changed: Iterator[tuple[str, Sequence[Any], str]]) -> None:
        """Rows of the other tables, as they are at the end."""


def _note(table: Table, owner: str) -> Any:
    """What is kept of a row that nobody reads again: that it is there, and whose it is."""
    values: list[Any] = [None] * len(table.columns)
    values[table.owner] = owner
    return table.row(*values)


def _noted(table: Table) -> Table:
    """A table of which no row is made that nobody reads: a checkpoint's would unpack its state. Such folds refuse
    nothing, so nothing that they would say is lost."""
    if not table.written_once:
        return table

    def noting(touch: Touch) -> Touch:
        before = (None,) * table.owner
        after = (None,) * (len(table.columns) - table.owner - 1)

        def note(row: Any, event: Delivered) -> Any:
            return (*before, event.record.workflow_id, *after) if row is None else row

        return Touch(touch.key, note)

    return replace(table, touches={kind: noting(touch) for kind, touch in table.touches.items()})


class Tables:
    """Rows of all tables, as far as folds and deletions read them."""

    def __init__(self, sink: Sink | None = None) -> None:
        """`sink`: gets the rows that records of the range make or change."""
        #: By table: rows made, and times that a row was made or changed, inside the range.
        self.counted = {table.name: [0, 0] for table in TABLES}
        #: Places of records that could not be applied, and why: the projector would park their workflows.
        self.refused: list[dict[str, str]] = []
        self.refused_count = 0
        self._folded = Folded(TABLES if sink is not None else [_noted(table) for table in TABLES])
        self._removing = {kind for table in TABLES for kind in table.removes}
        self._once = {} if sink is None else {table.name: table for table in TABLES if table.written_once}
        self._sizes = dict.fromkeys(self.counted, 0)
        self._sink = sink
        #: Of tables whose rows change: (table, key) to the place of the last event of the range that changed it.
        self._changed: dict[tuple[str, str], str] = {}

    def add(self, event: Delivered, *, inside: bool) -> None:
        """Fold an event. `inside` the range it counts; before it, it only makes the rows that later ones change."""
        folded, sizes = self._folded, self._sizes
        if type(event.record) in self._removing:
            if self._sink is not None and inside:
                self._remove(self._sink, event)
            folded.remove(event)
            sizes.update((name, len(rows)) for name, rows in folded.rows.items())
        try:
            changes = folded.add(event)
        except Exception as error:  # the projector sets such a record aside
            self._refuse(event, error, inside=inside)
            return
        for name, changed in changes.items():
            rows = folded.rows[name]
            if inside:
                counted = self.counted[name]
                counted[0] += len(rows) - sizes[name]
                counted[1] += len(changed)
            sizes[name] = len(rows)
            if self._sink is not None and inside:
                self._keep(self._sink, name, changed, f"{event.partition}:{event.offset}")
            once = self._once.get(name)
            if once is not None:
                for key, row in changed.items():
                    rows[key] = _note(once, row[once.owner])

    def close(self) -> None:
        """The range has ended: what is to be looked at goes where it is looked at."""
        if self._sink is not None:
            rows = self._folded.rows
            self._sink.close((n, rows[n][key], place) for (n, key), place in self._changed.items())

    def rows(self, name: str) -> Mapping[str, Any]:
        """What is kept of a table's rows."""
        return self._folded.rows[name]

    def document(self) -> list[dict[str, Any]]:
        """What was counted."""
        return [{"table": name, "rows": made, "changes": changed} for name, (made, changed) in self.counted.items()]

    def _keep(self, sink: Sink, name: str, changed: Mapping[str, Any], place: str) -> None:
        if name in self._once:
            for row in changed.values():
                sink.add(name, row, place)
        else:
            self._changed.update(((name, key), place) for key in changed)

    def _remove(self, sink: Sink, event: Delivered) -> None:
        for table in TABLES:
            if type(event.record) in table.removes:
                rows, owner = self._folded.rows[table.name], event.record.workflow_id
                keys = table.removes[type(event.record)](event.record)
                gone = [key for key in keys if key in rows and rows[key][table.owner] == owner]
                if gone:
                    sink.remove(table.name, gone)

    def _refuse(self, event: Delivered, error: Exception, *, inside: bool) -> None:
        self._sizes.update((name, len(rows)) for name, rows in self._folded.rows.items())
        if not inside:
            return
        self.refused_count += 1
        if len(self.refused) < SHOWN_MAX:
            said = f"{type(error).__name__}: {error}"[:_ERROR_CHARS_MAX]
            self.refused.append({"place": f"{event.partition}:{event.offset}", "error": said})
