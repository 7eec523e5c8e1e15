"""Proves tables: the pure fold of the log up to their positions, against the rows in one database snapshot (I4).

A JSON column is compared by value through a digest, as jsonb keeps no key order and writes numbers its own way. A
reference whose target came later in the log, or never, may be empty in the table: that is what `statements` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.events import Delivered
from schemas.records.events import WorkflowStarted
from schemas.redaction import NOTHING, Redaction

from .catalog import TABLES
from .fold import Folded
from .kit import TABLES_VERSION, Table, redacted

_INTEGER_MAX = 2**53
_SHOWN_MAX = 200
#: Version of the tables from which on a projector deletes what has expired.
_REMOVING_SINCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A row or column in which a table differs from the log. `column` is empty when a row is missing or extra."""

    table: str
    key: str
    column: str
    expected: str
    found: str


class TableCheck:
    """Folds events one by one, then compares table by table. Holds all rows, JSON as digests: about 1 KB each.

    `beginnings`, as `Snapshot.beginnings` tells them: rows that a projector of an earlier version of the tables made
    are compared without the columns it did not know. None: all were made by this version. `redactions`, as
    `Snapshot.redactions` tells them: what the projector hid in the rows it made.
    """

    def __init__(
        self,
        tables: Sequence[Table] = TABLES,
        *,
        beginnings: Mapping[tuple[int, int], int] | None = None,
        redactions: Mapping[int, Sequence[tuple[int, Sequence[str]]]] | None = None,
    ) -> None:
        self._tables = {table.name: table for table in tables}
        self._folded = Folded(tables)
        self._rows = self._folded.rows
        self._digested = {t.name: [i for i, c in enumerate(t.columns) if c.kind in ("jsonb", "bytea")] for t in tables}
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
        """Fold the next event of its partition."""
        if self._cut:
            self._note_beginning(event)
        if self._redactions:
            event = self._redacted(event)
        version = self._version_at(event)
        if version >= _REMOVING_SINCE:
            self._folded.remove(event)
        later = [name for name, table in self._tables.items() if table.since > version]
        for name, changed in self._folded.add(event, passing_over=later).items():
            for key, row in changed.items():
                if self._tables[name].written_once:  # no fold looks into it again
                    self._rows[name][key] = self._reduced(name, row)
                if version < TABLES_VERSION:
                    self._earlier[name].setdefault(key, version)

    def _redacted(self, event: Delivered) -> Delivered:
        hidden = NOTHING
        for offset, redaction in self._redactions.get(event.partition, ()):
            if offset <= event.offset:
                hidden = redaction
        return redacted((event,), hidden)[0]

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

    def compare(self, table: str, found: Iterable[Sequence[Any]]) -> Iterator[Drift]:
        """Every difference between the fold and the rows of the table, which are those of `statements.read_all`."""
        expected, columns = self._rows[table], self._tables[table].columns
        unseen = set(expected)
        for values in found:
            key = values[0]
            row = expected.get(key)
            unseen.discard(key)
            if not self._provable(table, values):
                self.unproven += 1
                continue
            if row is None:
                yield Drift(table=table, key=key, column="", expected="no row", found="a row")
                continue
            wanted = row if self._tables[table].written_once else self._reduced(table, row)
            version = self._earlier[table].get(key, TABLES_VERSION)
            for index, (want, have) in enumerate(zip(wanted, self._reduced(table, values), strict=True)):
                if columns[index].since > version:
                    continue
                if want != have and not (have is None and (table, key, index) in self._folded.loose):
                    yield Drift(
                        table=table, key=key, column=columns[index].name, expected=_shown(want), found=_shown(have)
                    )
        for key in sorted(k for k in unseen if self._provable(table, expected[k])):
            yield Drift(table=table, key=key, column="", expected="a row", found="no row")

    def _reduced(self, name: str, row: Sequence[Any]) -> tuple[Any, ...]:
        values = list(row)
        for index in self._digested[name]:
            value = values[index]
            if value is not None:
                values[index] = json_digest(value) if isinstance(value, str) else _digest(value)
        return tuple(values)


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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."
