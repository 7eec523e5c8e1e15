"""Proves tables: the pure fold of the log up to their positions, against the rows in one database snapshot (I4).

Rows are compared by their digests (`digest`), which Postgres makes on its side; only rows that may differ are read. A
reference whose target came later in the log, or never, may be empty in the table: that is what `statements` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson

from engine.events import Delivered
from schemas.records.events import WorkflowStarted
from schemas.redaction import Redaction

from .catalog import TABLES
from .choice import ALL, Choice
from .digest import BUCKETS, Drift, bucket_of, reduced, reduced_digest, shown
from .fold import Folded
from .kit import TABLES_VERSION, Table, hidden_from

_INTEGER_MAX = 2**53
#: Version of the tables from which on a projector deletes what has expired.
_REMOVING_SINCE = 2


#: Rows that may differ, read at once.
_READ_ROWS = 500
#: What a row takes beside its texts: a tuple of 25 values, its numbers, its place by its key.
_ROW_BYTES = 700


class TableCheck:
    """Folds events one by one, then compares table by table. Holds all rows, JSON as digests: about 1 KB each.

    `beginnings`, as `Snapshot.beginnings` tells them: rows that a projector of an earlier version of the tables made
    are compared without the columns it did not know. None: all were made by this version. `redactions`, as
    `Snapshot.redactions` tells them: what the projector hid in the rows it made. `choice`: the workflows to be proven.
    With `memory_bytes_max` rows take about so much memory: when there are more, half of the workflows are put off,
    again and again (`put_off`), down to one bucket of them, which is taken whatever its size.
    """

    def __init__(
        self,
        tables: Sequence[Table] = TABLES,
        *,
        beginnings: Mapping[tuple[int, int], int] | None = None,
        redactions: Mapping[int, Sequence[tuple[int, Sequence[str]]]] | None = None,
        choice: Choice = ALL,
        memory_bytes_max: int | None = None,
    ) -> None:
        self._tables = {table.name: table for table in tables}
        self._folded = Folded(tables)
        self._rows = self._folded.rows
        self.choice = choice
        #: Workflows that found no room: each is a check of its own.
        self.put_off: list[Choice] = []
        self._memory_bytes_max = memory_bytes_max
        #: Not less than what the rows take.
        self._bytes_at_most = 0
        #: Events folded, by the bucket of their workflow.
        self._events = [0] * BUCKETS
        self._beginnings = beginnings
        self._redactions = {
            partition: [(offset, Redaction(paths)) for offset, paths in found]
            for partition, found in (redactions or {}).items()
        }
        #: Rows made by projectors of earlier versions, by table: the earliest.
        self._earlier: dict[str, dict[str, int]] = {table.name: {} for table in tables}
        self._cut: set[int] = set()
        #: Workflows that the log holds from their start on, in partitions whose beginning is gone.
        self._from_start: set[str] = set()
        self._in_whole: set[str] = set()
        #: Rows of workflows whose beginning the log no longer holds: they cannot be compared.
        self.unproven = 0

    def begins_late(self, partition: int) -> None:
        """Retention has removed the beginning of this partition."""
        self._cut.add(partition)

    def add(self, event: Delivered) -> None:
        """Fold the next event of its partition, if its workflow is one of those to be proven."""
        workflow_id = event.record.workflow_id
        if not self.choice.wants(workflow_id):
            return
        self._events[bucket_of(workflow_id)] += 1
        if self._cut:
            self._note_beginning(event)
        if self._redactions:
            event = hidden_from(event, self._redactions.get(event.partition, ()))
        version = self._version_at(event)
        if version >= _REMOVING_SINCE:
            self._folded.remove(event)
        later = [name for name, table in self._tables.items() if table.since > version]
        for name, changed in self._folded.add(event, passing_over=later).items():
            for key, row in changed.items():
                if self._tables[name].written_once:  # no fold looks into it again
                    row = self._rows[name][key] = reduced(self._tables[name], row)
                self._bytes_at_most += _ROW_BYTES + sum(len(value) for value in row if type(value) is str)
                if version < TABLES_VERSION:
                    self._earlier[name].setdefault(key, version)
        if self._memory_bytes_max is not None and self._bytes_at_most > self._memory_bytes_max:
            self._make_room(self._memory_bytes_max)

    @property
    def events(self) -> int:
        """Events of the workflows to be proven."""
        return sum(self._events[self.choice.first : self.choice.end])

    def _make_room(self, bytes_max: int) -> None:
        """Count anew, and put off workflows until half of the room is free: this is not to come at every event."""
        while (taken := self._taken()) > bytes_max // 2:
            halves = self.choice.halves()
            if halves is None:
                break
            self.choice, later = halves
            self.put_off.append(later)
            self._folded.keep(self.choice.wants)
            for name, keys in self._earlier.items():
                self._earlier[name] = {key: version for key, version in keys.items() if key in self._rows[name]}
            self._from_start = set(filter(self.choice.wants, self._from_start))
            self._in_whole = set(filter(self.choice.wants, self._in_whole))
        self._bytes_at_most = min(taken, bytes_max // 2)

    def _taken(self) -> int:
        return sum(
            _ROW_BYTES + sum(len(value) for value in row if type(value) is str)
            for rows in self._rows.values()
            for row in rows.values()
        )

    def _version_at(self, event: Delivered) -> int:
        """Version of the projector that applied an event: each wrote down where it began in a partition."""
        if self._beginnings is None:
            return TABLES_VERSION
        began = (
            version
            for (partition, version), offset in self._beginnings.items()
            if partition == event.partition and offset <= event.offset
        )
        return max(began, default=1)

    def _note_beginning(self, event: Delivered) -> None:
        if event.partition not in self._cut:
            self._in_whole.add(event.record.workflow_id)
        elif type(event.record) is WorkflowStarted:
            self._from_start.add(event.record.workflow_id)

    def _provable(self, table: str, row: Sequence[Any]) -> bool:
        workflow_id = row[self._tables[table].owner]
        return not self._cut or workflow_id in self._from_start or workflow_id in self._in_whole

    def rows(self, table: str) -> int:
        """How many rows the log gives a table."""
        return len(self._rows[table])

    def prove(
        self,
        table: Table,
        digests: Iterable[tuple[str, bytes]],
        read: Callable[[Table, Sequence[str]], Iterable[Sequence[Any]]],
    ) -> Iterator[Drift]:
        """Every difference between the fold and a table, of whose chosen rows these are keys and digests. `read` gets
        rows by key, as folds have them; only those that may differ are asked for."""
        unseen, found = set(self._rows[table.name]), iter(digests)
        while batch := list(islice(found, _READ_ROWS)):
            unseen.difference_update(key for key, _ in batch)
            doubtful = [key for key, digest in batch if not self._proven(table, key, digest)]
            for row in sorted(read(table, doubtful), key=lambda row: str(row[0])) if doubtful else ():
                yield from self._differences(table, row)
        # An id that two workflows use is a row of the one that came first; of the other nothing is missing.
        rows, left = iter(sorted(unseen)), set(unseen)
        while keys := list(islice(rows, _READ_ROWS)):
            left.difference_update(row[0] for row in read(table, keys))
        yield from self._missing(table, left)

    def compare(self, table: str, found: Iterable[Sequence[Any]]) -> Iterator[Drift]:
        """Every difference between the fold and the rows of the table, which are those of `statements.read_all`."""
        unseen = set(self._rows[table])
        for values in found:
            unseen.discard(values[0])
            yield from self._differences(self._tables[table], values)
        yield from self._missing(self._tables[table], unseen)

    def _proven(self, table: Table, key: str, digest: bytes) -> bool:
        """Whether the digest shows that a row is right. What it does not show is looked at by column."""
        row = self._rows[table.name].get(key)
        if row is None or key in self._earlier[table.name] or not self._provable(table.name, row):
            return False
        return reduced_digest(row if table.written_once else reduced(table, row)) == digest

    def _differences(self, table: Table, values: Sequence[Any]) -> Iterator[Drift]:
        name, key = table.name, values[0]
        row = self._rows[name].get(key)
        if not self._provable(name, values):
            self.unproven += 1
            return
        if row is None:
            yield Drift(table=name, key=key, column="", expected="no row", found="a row")
            return
        wanted = row if table.written_once else reduced(table, row)
        version = self._earlier[name].get(key, TABLES_VERSION)
        for index, (want, have) in enumerate(zip(wanted, reduced(table, values), strict=True)):
            column = table.columns[index]
            if column.since > version:
                continue
            if want != have and not (have is None and (name, key, index) in self._folded.loose):
                yield Drift(table=name, key=key, column=column.name, expected=shown(want), found=shown(have))

    def _missing(self, table: Table, unseen: Iterable[str]) -> Iterator[Drift]:
        rows = self._rows[table.name]
        for key in sorted(k for k in unseen if self._provable(table.name, rows[k])):
            yield Drift(table=table.name, key=key, column="", expected="a row", found="no row")


def json_digest(text: str) -> str:
    """A digest that is equal for JSON texts of equal value."""
    return _digest(orjson.dumps(_plain(orjson.loads(text)), option=orjson.OPT_SORT_KEYS))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """Numbers in one form: jsonb writes 1e3 as 1000, and -0.0 as 0.0."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return int(value) if abs(value) < _INTEGER_MAX and value == int(value) else float(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
