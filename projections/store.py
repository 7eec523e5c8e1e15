"""The tables in Postgres: batches of events become rows, and the position moves in the same transaction.

Guarantees: a batch is written whole or not at all; a process that has lost its partition writes nothing
(compare-and-set on next offset and owner epoch); a record that cannot be applied is found by halving the batch and its
workflow parked (`parking`), the others are written. A lost connection, a full disk or a COMMIT without an answer raise
RetriableError: claim again, which reads where the tables really stand. A batch in which something expired and then came
again is written as several, one after the other. No error quotes a row: Postgres would, in its details.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from engine.events import Delivered
from schemas.dead_letters import DeadLetter
from schemas.errors import FatalError, FencedError
from schemas.log_record import LogRecord
from schemas.redaction import NOTHING, Redaction
from schemas.topics import EVENTS

from . import copying, parking, statements
from .catalog import TABLES
from .connection import PatientConnection
from .fold import Rows, fold, keys_of, touched
from .kit import TABLES_VERSION, redacted
from .parking import Parked, Parking, Queued, is_poison, said, trouble
from .sql import blocks
from .wire import KINDS, Array, ArrayDumper, array

#: Postgres schema of the live tables, and the generation that positions belong to.
GENERATION = "kintsugi"
#: Shared by every transaction that writes the live tables, from its beginning; a promotion takes it whole.
GATE = 0x6B676174
#: Rows of one table kept in memory, so that a row touched again need not be read back.
CACHE_ROWS_MAX = 20_000
#: A row that was there already is seldom alone: so many batches are then written without COPY, which would fail again.
CAREFUL_BATCHES = 100
CONNECT_TIMEOUT_S = 10
_STATEMENT_TIMEOUT_MS = 60_000
_DETAIL_MAX = 1000
#: Position of a partition of which nothing was applied yet.
_UNSET = -1

_QUERIES = blocks("projections", "queries.sql")
#: Tables whose rows change; those written once are `copying`'s.
_KEPT = tuple(table for table in TABLES if not table.written_once)
_PLAN = touched(_KEPT)
_TABLES = {table.name: table for table in _KEPT}
#: Tables that refer to rows which may be deleted.
_REFERRING = [t.name for t in _KEPT if {c.references for c in t.columns} & {x.name for x in TABLES if x.removes}]


class Store:
    """One connection and the rows it touched last. Not for use by several threads."""

    def __init__(self, url: str, *, generation: str = GENERATION, redaction: Redaction = NOTHING) -> None:
        """`redaction`: fields of states and contexts that the rows hide."""
        self._url = url
        self._redaction = redaction
        self._generation = generation
        self._connection: psycopg.Connection[Any] | None = None
        self._epochs: dict[int, int] = {}
        self._parking = Parking()
        #: Batches to come that are written without COPY.
        self._careful = 0
        self._cache: dict[str, OrderedDict[str, Any]] = {t.name: OrderedDict() for t in _KEPT}
        self._write = {t.name: statements.write(t) for t in _KEPT}
        self._read = {t.name: statements.read(t) for t in _KEPT}

    def claim(self, partition: int) -> int | None:
        """Become the owner of a partition; its position, or None when nothing was applied yet."""
        with self._transaction() as connection:
            found = connection.execute(_QUERIES["claim"], self._place(partition)).fetchone()
            assert found is not None
            next_offset, epoch = found
            place = {**self._place(partition), "next_offset": next_offset}
            connection.execute(_QUERIES["begin"], {**place, "version": TABLES_VERSION})
            connection.execute(_QUERIES["redact"], {**place, "paths": list(self._redaction.paths)})
            self._parking.load(connection, place)
        self._epochs[partition] = epoch
        return None if next_offset == _UNSET else int(next_offset)

    def apply(
        self,
        partition: int,
        events: Sequence[Delivered],
        dead: Sequence[DeadLetter],
        *,
        start: int,
        end: int,
        raw: Callable[[Delivered], LogRecord] = parking.encoded,
    ) -> list[DeadLetter]:
        """Write a batch and its position. FencedError when the partition is another's, RetriableError when Postgres
        is away; in both nothing was written, or (COMMIT without an answer) `claim` tells. ParkingFullError when the
        batch was written up to an event that may not be parked any more. Returns the records that could not be
        applied: their workflows are parked. `raw`: an event's record as the log has it."""
        if partition not in self._epochs:
            raise FencedError(f"partition {partition} was not claimed")
        refused: list[DeadLetter] = []
        events = redacted(events, self._redaction)
        try:
            parts = copying.parts(events)
        except Exception as error:
            if not is_poison(error):
                raise
            parts = [events[place : place + 1] for place in range(len(events))]  # one has no key: it will be found
        *before, last = parts
        for part in before:
            cut = part[-1].offset + 1
            early, dead = _split(dead, cut)
            refused += self._apply_part(partition, part, early, raw, start=start, end=cut)
            start = cut
        return refused + self._apply_part(partition, last, dead, raw, start=start, end=end)

    def parked(self, partition: int) -> Parked:
        """How much of a partition is parked."""
        return self._parking.of(partition)

    def _apply_part(
        self,
        partition: int,
        events: Sequence[Delivered],
        dead: Sequence[DeadLetter],
        raw: Callable[[Delivered], LogRecord],
        *,
        start: int,
        end: int,
    ) -> list[DeadLetter]:
        flowing, waiting = self._parking.split(partition, events)
        queued = [Queued(event, raw(event)) for event in waiting]
        try:
            try:
                self._apply(partition, flowing, dead, queued, start=start, end=end)
            except psycopg.errors.UniqueViolation:  # an event that came again, or an id that two workflows use
                self._forget_rows()
                self._careful = CAREFUL_BATCHES
                self._apply(partition, flowing, dead, queued, start=start, end=end)
            return []
        except Exception as error:
            if not is_poison(error) or not flowing:
                raise
            self._forget_rows()
            if len(events) == 1:
                return self._park(partition, flowing[0], dead, raw, start=start, end=end)
            middle = len(events) // 2
            cut = events[middle].offset
            early, late = _split(dead, cut)
            return [
                *self._apply_part(partition, events[:middle], early, raw, start=start, end=cut),
                *self._apply_part(partition, events[middle:], late, raw, start=cut, end=end),
            ]

    def _park(
        self,
        partition: int,
        event: Delivered,
        dead: Sequence[DeadLetter],
        raw: Callable[[Delivered], LogRecord],
        *,
        start: int,
        end: int,
    ) -> list[DeadLetter]:
        """Try an event that failed once more by itself: what others did at that moment parks nobody."""
        try:
            self._apply(partition, [event], dead, start=start, end=end)
            return []
        except Exception as error:
            if not is_poison(error):
                raise
            self._forget_rows()
            queued = Queued(event, raw(event))
            letter = parking.letter_of(queued, *parking.why(event, error))
        self._apply(partition, [], dead, [queued], letter, start=start, end=end)
        return [letter]

    def release(self, partitions: Sequence[int]) -> None:
        """Forget partitions; rows in memory may now be changed by others."""
        for partition in partitions:
            self._epochs.pop(partition, None)
            self._parking.forget(partition)
        self._forget_rows()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _apply(
        self,
        partition: int,
        events: Sequence[Delivered],
        dead: Sequence[DeadLetter],
        queued: Sequence[Queued] = (),
        letter: DeadLetter | None = None,
        *,
        start: int,
        end: int,
    ) -> None:
        if queued:
            self._parking.check(partition, queued)
        place = self._place(partition)
        with self._transaction() as connection:
            changed, removed, parameters = self._write_rows(connection, events)
            with connection.pipeline():  # one answer for all statements
                for table in _KEPT:
                    if table.name in changed:
                        connection.execute(self._write[table.name], parameters[table.name])
                for found in dead:
                    connection.execute(_QUERIES["dead_letter"], _letter_values(found))
                for statement, values in parking.statements(place, queued, letter) if queued else ():
                    connection.execute(statement, values)
                moved = connection.execute(
                    _QUERIES["advance"],
                    {**place, "start": start, "end": end, "unset": _UNSET, "epoch": self._epochs[partition]},
                )
            if moved.rowcount != 1:
                raise FencedError(
                    f"partition {partition} is owned by another process, or stands elsewhere than {start}"
                )
        self._parking.add(partition, queued)
        self._remember(changed)
        if removed:
            self._forget_rows(_REFERRING)  # what they referred to may be gone

    def _write_rows(
        self, connection: psycopg.Connection[Any], events: Sequence[Delivered]
    ) -> tuple[Rows, bool, dict[str, dict[str, Array]]]:
        """Write and delete the rows of tables written once. Returns the other rows that changed, still to be written,
        whether any were deleted, and the parameters of their statements."""
        rows = self._load(connection, events)
        changed: Rows = {}
        parameters: dict[str, dict[str, Array]] = {}

        def meanwhile() -> None:
            for name, found in fold(rows, events, _PLAN).items():
                changed[name] = found
                parameters[name] = statements.parameters(_TABLES[name], found.values())

        if self._careful:
            self._careful -= 1
            copying.insert(connection, events)
            meanwhile()
        else:
            copying.copy(connection, events, meanwhile)
        return changed, copying.remove(connection, events), parameters

    def _load(self, connection: psycopg.Connection[Any], events: Sequence[Delivered]) -> Rows:
        """The rows that these events touch, from memory or from the tables."""
        rows: Rows = {}
        missing: dict[str, list[str]] = {}
        for name, keys in keys_of(events, _PLAN).items():
            cache = self._cache[name]
            rows[name] = {key: cache[key] for key in keys if key in cache}
            if len(rows[name]) < len(keys):
                missing[name] = [key for key in keys if key not in cache]
        if missing:
            with connection.pipeline():
                found = {
                    name: connection.execute(self._read[name], {"ids": array(KINDS["uuid"], ids)})
                    for name, ids in missing.items()
                }
            for name, cursor in found.items():
                for values in cursor:
                    rows[name][values[0]] = _TABLES[name].row(*values)
        return rows

    def _remember(self, changed: Rows) -> None:
        for name, cache in self._cache.items():
            for key, row in changed.get(name, {}).items():
                cache[key] = row
                cache.move_to_end(key)
            while len(cache) > CACHE_ROWS_MAX:
                cache.popitem(last=False)

    def _forget_rows(self, tables: Iterable[str] = _TABLES) -> None:
        for name in tables:
            self._cache[name].clear()

    def _place(self, partition: int) -> dict[str, Any]:
        return {"generation": self._generation, "topic": EVENTS, "partition": partition}

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """One transaction; what is wrong with the connection or the server becomes RetriableError."""
        try:
            connection = self._connect()
            with connection.transaction():
                if self._generation == GENERATION:
                    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [GATE])
                yield connection
        except psycopg.errors.InsufficientPrivilege as error:
            raise FatalError(
                f"the database role lacks a right: {said(error)}", hint="GRANT it, or use the owner"
            ) from None
        except psycopg.ProgrammingError as error:
            raise FatalError(
                f"the tables are not as they should be: {said(error)}", hint="run: kintsugi db migrate"
            ) from None
        except psycopg.Error as error:
            self._forget_rows()
            if is_poison(error):
                raise
            if self._connection is not None and (self._connection.closed or self._connection.broken):
                self._connection = None
            raise trouble(error) from None
        except BaseException:
            self._forget_rows()
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = PatientConnection.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                # Positions and dead letters of all generations are in the live schema.
                options=f"-c search_path={self._generation},{GENERATION} -c statement_timeout={_STATEMENT_TIMEOUT_MS}",
                application_name="kintsugi-projector",
                keepalives_idle=10,
                tcp_user_timeout=30_000,
            )
            self._connection.adapters.register_dumper(Array, ArrayDumper)
        return self._connection


def _split(dead: Sequence[DeadLetter], cut: int) -> tuple[list[DeadLetter], list[DeadLetter]]:
    return [x for x in dead if x.offset < cut], [x for x in dead if x.offset >= cut]


def _letter_values(letter: DeadLetter) -> dict[str, Any]:
    return {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "key": letter.key,
        "value": letter.value,
        "headers": parking.headers_json(letter.headers),
        "stage": letter.stage,
        "reason": letter.reason,
        "detail": letter.detail[:_DETAIL_MAX].replace("\x00", "\ufffd"),
        "timestamp_us": letter.timestamp_us,
    }
