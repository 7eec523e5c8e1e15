"""The live projection's rate against raw COPY of the same rows into identical tables, in the same run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from consumers.projector import BATCH_RECORDS_MAX
from engine.events import Delivered
from projections.catalog import TABLES
from projections.migrate import migrate
from projections.store import Store

from .figures import Benchmark, Figure, Setup, median
from .workload import history

WORKFLOWS, WORKFLOWS_QUICK = 1_500, 150
REPEATS, REPEATS_QUICK = 5, 2
_GOAL_PERCENT = 80.0
_LIVE, _COPY = "bench_live", "bench_copy"
_BLOCK_BYTES = 64 * 1024

Connection = psycopg.Connection[Any]


def _measure(setup: Setup) -> list[Figure]:
    url = setup.stack.postgres
    log = history(WORKFLOWS_QUICK if setup.quick else WORKFLOWS)
    repeats = REPEATS_QUICK if setup.quick else REPEATS
    live_s, copy_s, rows = [], [], 0
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            for number in range(repeats):
                setup.say(
                    f"{len(log):,} events in batches of {BATCH_RECORDS_MAX}, then COPY: {number + 1} of {repeats}"
                )
                _fresh(connection, url)
                live_s.append(_live(url, log))
                data = {table.name: _taken(connection, table.name) for table in TABLES}
                _settle(connection)
                copy_s.append(_copied(connection, data))
                rows = _compared(connection)
        finally:
            _drop(connection)
    live, copy = rows / median(live_s), rows / median(copy_s)
    note = f"{rows:,} rows of {len(TABLES)} tables, median of {repeats}"
    return [
        Figure(
            name="live projection against COPY",
            measured=100 * live / copy,
            unit="%",
            at_least=_GOAL_PERCENT,
            note="same rows, same tables and indexes",
        ),
        Figure(name="live projection", measured=live, unit="rows/s", note=note),
        Figure(name="raw binary COPY", measured=copy, unit="rows/s", note="one COPY for each table"),
        Figure(name="live projection, events", measured=len(log) / median(live_s), unit="events/s"),
    ]


def _live(url: str, log: Sequence[Delivered]) -> float:
    """Seconds to apply the log: fold, write, and move the position, batch by batch."""
    store = Store(url, generation=_LIVE)
    try:
        store.claim(0)
        began_s = time.perf_counter()
        for first in range(0, len(log), BATCH_RECORDS_MAX):
            batch = log[first : first + BATCH_RECORDS_MAX]
            store.apply(0, batch, [], start=batch[0].offset, end=batch[-1].offset + 1)
        return time.perf_counter() - began_s
    finally:
        store.close()


def _taken(connection: Connection, table: str) -> bytes:
    """A live table's rows as COPY writes them."""
    command = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(_LIVE, table))
    with connection.cursor() as cursor, cursor.copy(command) as copy:
        return b"".join(bytes(block) for block in copy)


def _copied(connection: Connection, data: dict[str, bytes]) -> float:
    """Seconds to copy the same rows into the other tables, with nothing to compute on this side."""
    began_s = time.perf_counter()
    for table, rows in data.items():
        command = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(_COPY, table))
        with connection.cursor() as cursor, cursor.copy(command) as copy:
            for first in range(0, len(rows), _BLOCK_BYTES):
                copy.write(rows[first : first + _BLOCK_BYTES])
    return time.perf_counter() - began_s


def _compared(connection: Connection) -> int:
    """Number of rows, which must be the same on both sides in every column."""
    count = 0
    for table in TABLES:
        names = {"live": sql.Identifier(_LIVE, table.name), "copy": sql.Identifier(_COPY, table.name)}
        query = sql.SQL(
            "SELECT (SELECT count(*) FROM {live}), (SELECT count(*) FROM {copy}),"
            " (SELECT count(*) FROM (TABLE {live} EXCEPT TABLE {copy}) AS other)"
        ).format(**names)
        row = connection.execute(query).fetchone()
        assert row is not None
        if row[0] != row[1] or row[2]:
            raise RuntimeError(f"{table.name}: {row[0]} rows live, {row[1]} copied, {row[2]} differ")
        count += row[0]
    return count


def _fresh(connection: Connection, url: str) -> None:
    _drop(connection)
    for generation in (_LIVE, _COPY):
        migrate(url, generation=generation)
    _settle(connection)


def _settle(connection: Connection) -> None:
    """Let what was written before be on disk, so that it is not paid for by what is measured next."""
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute("CHECKPOINT")


def _drop(connection: Connection) -> None:
    for generation in (_LIVE, _COPY):
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(generation)))


BENCHMARK = Benchmark(
    name="projection",
    measures="rows per second that the live projection writes to Postgres, position included, batch by batch",
    compared_to="raw binary COPY of exactly these rows into identical tables with the same indexes, in the same run",
    run=_measure,
)
