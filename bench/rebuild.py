"""A rebuild of all tables against the live projector, and two processes against one: same log, same rows."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from consumers.log_reader import LogReader
from ops import promotion, rebuild
from ops.stack import Addresses
from projections import generations as g
from projections.kit import TABLES_VERSION
from projections.migrate import migrate
from projections.store import GENERATION
from schemas.codec import Codec
from schemas.registry import Registry
from schemas.topics import EVENTS

from .figures import Benchmark, Figure, Setup, median
from .processes import Ready, Role, ready, write
from .workload import history

#: 23.7 events each, so 200,000 and more.
WORKFLOWS, WORKFLOWS_QUICK = 8_700, 400
REPEATS, REPEATS_QUICK = 2, 1
TIMEOUT_S = 180.0
_GOAL_PERCENT = 100.0
_POLL_S = 0.02
#: Of this benchmark alone, so that nobody's live tables are compared with or written.
_DATABASE = "bench_rebuild"

Ranges = Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Built:
    """Of one rebuild, from its call on: until the rows were there, until they might be read, until they were proven;
    and the CPU of all its processes."""

    filled_s: float
    indexed_s: float
    proven_s: float
    cpu_s: float
    rows: int


def _measure(setup: Setup) -> list[Figure]:
    repeats = REPEATS_QUICK if setup.quick else REPEATS
    ranges = _written(setup)
    count = sum(end - first for first, end in ranges.values())
    live: list[float] = []
    built: dict[int, list[Built]] = {1: [], 2: []}
    for number in range(repeats):
        with _own_database(setup.stack) as at:
            setup.say(f"{count:,} events by the live projector: {number + 1} of {repeats}")
            live.append(_live(setup, at, ranges))
            for processes in sorted(built, reverse=bool(number % 2)):  # so that none always comes first
                setup.say(f"{count:,} events by a rebuild, {processes} at once: {number + 1} of {repeats}")
                built[processes].append(_built(at, ranges, processes))
    return _figures(count, live, built)


def _figures(count: int, live: list[float], built: Mapping[int, list[Built]]) -> list[Figure]:
    one, two = (median([b.indexed_s for b in built[n]]) for n in (1, 2))
    rate = max(live)
    rows = built[1][0].rows
    return [
        Figure(
            name="rebuild, one process, against live",
            measured=100 * count / one / rate,
            unit="%",
            at_least=_GOAL_PERCENT,
            note="with indexes and keys, and its own start; live without its start",
        ),
        Figure(
            name="rebuild, two processes, against one",
            measured=100 * one / two,
            unit="%",
            at_least=_GOAL_PERCENT,
            note="on two cores, which Postgres and Kafka use as well",
        ),
        Figure(
            name="live projector",
            measured=rate,
            unit="events/s",
            note=f"the role's process, {count:,} events; best of {len(live)}, as the others",
        ),
        *(
            figure
            for n in (1, 2)
            for figure in (
                Figure(name=f"rebuild, {n} at once", measured=count / (one, two)[n - 1], unit="events/s"),
                Figure(
                    name=f"rebuild, {n} at once: rows until they are there",
                    measured=rows / median([b.filled_s for b in built[n]]),
                    unit="rows/s",
                    note=f"{rows:,} rows, before indexes",
                ),
                Figure(
                    name=f"rebuild, {n} at once: with the proof against the live tables",
                    measured=count / median([b.proven_s for b in built[n]]),
                    unit="events/s",
                ),
                Figure(
                    name=f"rebuild, {n} at once: CPU of its processes",
                    measured=1e6 * median([b.cpu_s for b in built[n]]) / count,
                    unit="us/event",
                ),
            )
        ),
    ]


def _written(setup: Setup) -> Ranges:
    """Write the events; where they are in the log."""
    at = setup.stack
    log = history(WORKFLOWS_QUICK if setup.quick else WORKFLOWS)
    with Registry(at.registry) as registry, LogReader(at.kafka) as reader:
        codec = Codec(registry)
        records: list[Ready] = [ready(codec, event.record) for event in log]
        before = reader.bounds(EVENTS)
        write(at.kafka, records)
        return {p: (before[p][1], high) for p, (_, high) in reader.bounds(EVENTS).items()}


@contextmanager
def _own_database(at: Addresses) -> Iterator[Addresses]:
    """The stack with an empty database in its Postgres."""
    name = sql.Identifier(_DATABASE)
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name)
    url = urlunsplit(urlsplit(at.postgres)._replace(path=f"/{_DATABASE}"))
    with psycopg.connect(at.postgres, autocommit=True) as connection:
        try:
            connection.execute(drop)
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        except psycopg.errors.InsufficientPrivilege:
            raise RuntimeError("a database of its own is needed, which this role may not create") from None
        try:
            migrate(url)
            yield replace(at, postgres=url)
        finally:
            connection.execute(drop)


def _live(setup: Setup, at: Addresses, ranges: Ranges) -> float:
    """Events per second of `kintsugi run projector`, from its first batch to the end of the ranges."""
    end = sum(last for _, last in ranges.values())
    with g.connected(at.postgres) as connection:
        for partition, (first, _) in ranges.items():
            connection.execute(
                "INSERT INTO positions (generation, topic, log_partition, next_offset, owner_epoch, updated_at)"
                " VALUES (%s, %s, %s, %s, 1, now())",
                [GENERATION, EVENTS, partition, first],
            )
        begun = _position(connection)
        role = Role(at, setup.folder, "projector", group=f"bench-{uuid.uuid4()}")
        try:
            role.wait("first batch", lambda _: _position(connection) > begun)
            began_s, begun = time.monotonic(), _position(connection)
            while (now := _position(connection)) < end:
                if time.monotonic() - began_s > TIMEOUT_S or role.process.poll() is not None:
                    raise RuntimeError(f"the live projector stands at {now} of {end}")
                time.sleep(_POLL_S)
            return (end - begun) / (time.monotonic() - began_s)
        finally:
            role.end()


def _position(connection: g.Connection) -> int:
    row = connection.execute("SELECT sum(next_offset)::bigint FROM positions WHERE generation = %s", [GENERATION])
    found = row.fetchone()
    assert found is not None
    return int(found[0])


def _built(at: Addresses, ranges: Ranges, processes: int) -> Built:
    """Rebuild these ranges as the command does, compare with the live tables, and drop it again."""
    with g.connected(at.postgres) as connection, connection.transaction():
        new = {"state": "loading", "tables": None, "version": TABLES_VERSION}
        who = {"built_by": "bench", "actor": "bench", "reason": "bench"}
        row = connection.execute(g.QUERIES["new"], {**new, **who}).fetchone()
        assert row is not None
        name = str(row[0])
        g.create(connection, name)
        for partition, (first, end) in ranges.items():
            connection.execute(g.QUERIES["range"], {"name": name, "partition": partition, "first": first, "end": end})
    last_s: dict[str, float] = {}

    def progress(phase: str, done: int, total: int) -> None:
        last_s[phase] = time.monotonic()

    cpu_s, began_s = _cpu_s(), time.monotonic()
    report = rebuild.rebuild(at, progress, processes=processes, actor="bench", reason="bench")
    proven_s = time.monotonic() - began_s
    if report.name != name or report.differing:
        raise RuntimeError(f"{report.name} instead of {name}: {report.differing} rows differ from the live tables")
    promotion.drop(at, name)
    filled_s, indexed_s = last_s["rows"] - began_s, last_s["indexes"] - began_s
    return Built(filled_s, indexed_s, proven_s, _cpu_s() - cpu_s, report.rows)


def _cpu_s() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


BENCHMARK = Benchmark(
    name="rebuild",
    measures="events per second of kintsugi projections rebuild, from the log to indexed rows equal to the live ones",
    compared_to="the live projector on the same log, in the same run; two processes and one",
    run=_measure,
)
