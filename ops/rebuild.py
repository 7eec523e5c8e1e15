"""`kintsugi projections rebuild`: fills a generation from archive and log, keeps it up, and compares it.

Every step can be cut short and begun again: a part's rows and the note that it is done are one transaction, and so is a
batch with its position.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psycopg

from consumers.crash import crash_point
from consumers.history import ranges_of
from consumers.log_reader import LogReader
from consumers.pauses import short_pauses
from projections import filling
from projections import generations as g
from projections.catalog import TABLES, chosen
from projections.fold import Folded
from projections.following import SNAPSHOT, not_applied, park_as_live
from projections.kit import TABLES_VERSION
from projections.reader import snapshot
from projections.references import bridges, empty, validate
from projections.store import GENERATION
from schemas.codec import Codec
from schemas.errors import FatalError
from schemas.registry import Registry
from schemas.topics import EVENTS

from .archive import history_of
from .behind import Behind
from .catching_up import Progress, catch_up, events_of, positions
from .comparing import compare, need_same_columns
from .patience import Tell, patiently, silent
from .sharing import share
from .spool import Spool
from .stack import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a rebuild came to."""

    name: str
    events: int
    rows: int
    seconds: float
    rows_per_second: float
    differing: int


def listed(at: Addresses) -> list[dict[str, Any]]:
    """A row for each generation; `lag_records` is how far it is behind the live tables, `live` which of its tables are
    the live ones."""
    with g.connected(at.postgres) as connection:
        stand = positions(connection, GENERATION)
        found = g.listed(connection)
        live = g.live(found)
        rows = []
        for one in found:
            own = positions(connection, one.name)
            lag = sum(max(0, stand.get(p, 0) - offset) for p, offset in own.items()) if own else None
            rows.append(
                {
                    **asdict(one),
                    "lag_records": lag,
                    "live": live.get(one.name, []),
                    "tables": one.names,
                    "whole": one.tables is None,
                }
            )
        return rows


def plan(at: Addresses) -> list[dict[str, Any]]:
    """What a rebuild would read, by partition."""
    with LogReader(at.kafka) as log, g.connected(at.postgres) as connection:
        live = positions(connection, GENERATION)
        return [
            {"partition": p, "from": b.first, "log_from": b.low, "to": _end(b.end, p, live), "log_to": b.end}
            for p, b in history_of(at, log).bounds().items()
        ]


def rebuild(
    at: Addresses,
    progress: Progress,
    *,
    processes: int,
    actor: str,
    reason: str,
    accept_gap: bool = False,
    tables: Collection[str] | None = None,
    tell: Tell = silent,
) -> Report:
    """Fill a generation, or go on with one that was cut short, until it is caught up and compared. `tables`: which it
    holds, all when None.

    While a server is away it waits, says so with `tell`, and goes on where it was; RetriableError when that takes too
    long. `events`, `rows` and the rate of the report are of what was done since.
    """
    names = None if tables is None or len(chosen(tables)) == len(TABLES) else [table.name for table in chosen(tables)]

    def begin() -> str:
        with g.connected(at.postgres) as connection, g.sole(connection):
            g.need_rights(connection)
            validate(connection, g.NAMES)
            try:
                g.need_nobody_looking(connection, g.NAMES if names is None else names)
            except g.GenerationError as error:  # better to be known before the work than after it
                tell(f"promote will refuse: {error}")
            return _begin(at, connection, names, actor=actor, reason=reason, accept_gap=accept_gap)

    name = patiently(begin, tell)
    crash_point("rebuild_begun")
    return patiently(lambda: _go_on(at, name, progress, processes), tell)


def _go_on(at: Addresses, name: str, progress: Progress, processes: int) -> Report:
    began_s = time.monotonic()
    with g.connected(at.postgres) as connection, g.sole(connection):
        one = g.found(connection, name, "loading", "ready")
        g.need_rights(connection, name)
        events, rows = _fill(at, connection, one, progress, processes)
        seconds = time.monotonic() - began_s
        crash_point("rebuild_filled")
        definitions = filling.definitions(connection, name, one.names)
        for number, _ in enumerate(filling.finish(connection, name, definitions)):
            progress("indexes", number + 1, len(definitions))
        to_others = [key for key in bridges(connection, one.names, g.NAMES) if key.table in one.names]
        empty(connection, to_others, one.names, name)
        filling.analyze(connection, name, one.names)
        place = {"name": name, "topic": EVENTS, "version": TABLES_VERSION}
        with connection.transaction():
            for step in ("positioned", "begun", "hidden"):
                connection.execute(g.QUERIES[step], place)
        crash_point("rebuild_indexed")
        catch_up(at, connection, one, progress)
        crash_point("rebuild_caught_up")
        found = compare(at, one)
        differing = sum(found.rows.values())
        connection.execute(g.QUERIES["state"], {"name": name, "state": "ready", "differing": differing})
    rate = round(rows / seconds, 1) if rows else 0.0
    return Report(
        name=name, events=events, rows=rows, seconds=round(seconds, 2), rows_per_second=rate, differing=differing
    )


def _begin(
    at: Addresses, connection: g.Connection, names: Sequence[str] | None, *, actor: str, reason: str, accept_gap: bool
) -> str:
    going = [one for one in g.listed(connection) if one.state in ("loading", "ready")]
    if going:
        _need_same(going[-1], names)
        return going[-1].name
    with LogReader(at.kafka) as log:
        bounds = history_of(at, log).bounds()
    with connection.transaction():
        connection.execute(SNAPSHOT)  # where the live tables stand, and what waits there, are of one moment
        live = positions(connection, GENERATION)
        cut = {p: b.first for p, b in bounds.items() if b.first > 0}
        if cut and not accept_gap:
            raise g.GenerationError(
                f"neither log nor archive hold the beginning of partitions {sorted(cut)}: their rows would be lost",
                hint="--accept-gap goes on without",
            )
        if names is not None:
            _need_whole(connection, live)
        new = {"state": "loading", "tables": names, "version": TABLES_VERSION, "built_by": "rebuild"}
        row = connection.execute(g.QUERIES["new"], {**new, "actor": actor, "reason": reason}).fetchone()
        assert row is not None
        name = str(row[0])
        one = g.found(connection, name, "loading")
        g.create(connection, name, one.names)
        need_same_columns(connection, one)
        for partition, (first, end) in ranges_of(bounds).items():
            until = _end(end, partition, live)
            place = {"name": name, "partition": partition, "first": first, "end": until}
            connection.execute(g.QUERIES["range"], place)
            park_as_live(connection, name, partition, 0, until)
    return name


def _need_same(going: g.Generation, names: Sequence[str] | None) -> None:
    """GenerationError when the generation that is being built is not the one that is wanted."""
    if going.tables_version != TABLES_VERSION:
        raise g.GenerationError(
            f"{going.name} was begun by another release", hint=f"kintsugi projections drop {going.name}"
        )
    if going.names != [table.name for table in chosen(names)]:
        held = "all tables" if going.tables is None else ", ".join(going.names)
        options = "" if going.tables is None else "".join(f"--table {name} " for name in going.names)
        raise g.GenerationError(
            f"{going.name} is {going.state}, and of {held}: one generation is built at a time",
            hint=f"kintsugi projections rebuild {options}--reason ... goes on with it;"
            f" kintsugi projections drop {going.name} makes room",
        )


def _need_whole(connection: g.Connection, live: Mapping[int, int]) -> None:
    """GenerationError when live tables are not whole ones of this release: what one of them gained could not be proven
    beside the others, whose first rows lack it."""
    if not live:
        raise g.GenerationError("nothing was applied to the live tables yet", hint="kintsugi run projector")
    row = connection.execute(g.QUERIES["begun_by"], {"topic": EVENTS}).fetchone()
    assert row is not None
    if row[0] < TABLES_VERSION:
        raise g.GenerationError(
            f"the first rows of the live tables are of version {row[0]}, this release has {TABLES_VERSION}",
            hint="rebuild all tables once: kintsugi projections rebuild --reason ...",
        )


def _end(end: int, partition: int, live: Mapping[int, int]) -> int:
    """Where the filling ends: where the live tables stand, or the log's end when they hold nothing at all."""
    return min(end, live.get(partition, 0)) if live else end


def _fill(
    at: Addresses, connection: g.Connection, one: g.Generation, progress: Progress, processes: int
) -> tuple[int, int]:
    """Fill what is not filled yet, several partitions at once; events read and rows written by this call."""
    if positions(connection, one.name):
        return 0, 0  # it was filled before
    ranges = [tuple(row) for row in connection.execute(g.QUERIES["ranges"], {"name": one.name}).fetchall()]
    ranges.sort(key=lambda r: r[1] - r[2])  # the longest first
    sizes = [end - first for _, first, end in ranges]

    def begins(number: int) -> None:
        progress("rows", sum(sizes[:number]), sum(sizes))

    done = share(partial(_partitions, at, one), ranges, processes, begins=begins)
    progress("rows", sum(sizes), sum(sizes))
    return sum(events for events, _ in done), sum(rows for _, rows in done)


def _partitions(at: Addresses, one: g.Generation, ranges: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
    """Fill in partitions, one after the other, part by part; events read and rows written."""
    events = 0
    with ExitStack() as stack:
        stack.enter_context(short_pauses())  # nothing of a part is in a cycle, and there is much of it
        connection = stack.enter_context(g.connected(at.postgres))
        writing = stack.enter_context(g.connected(at.postgres))
        written = stack.enter_context(Behind[int]())  # Postgres works while the next part is read and folded
        codec = Codec(stack.enter_context(Registry(at.registry)))
        history = history_of(at, stack.enter_context(LogReader(at.kafka)))
        for partition, first, end in ranges:
            done = {b for (b,) in connection.execute(g.QUERIES["parts"], {"name": one.name, "partition": partition})}
            with snapshot(at.postgres) as tables:
                hidden = tables.redactions().get(partition, [])
            without = not_applied(connection, one.name, partition)
            with Spool(partition, without=done) as spool:
                for record in history.read({partition: (first, end)}):
                    spool.add(record)
                for buckets, records in spool.parts():
                    found = events_of(codec, records, without)  # taken one by one: never all of them in memory
                    folded = filling.fold_part(found, hidden, one.holds)
                    written.put(partial(_write, writing, one, folded, partition, buckets))
                    events += folded.events
        return events, sum(written.end())


def _write(connection: g.Connection, one: g.Generation, folded: Folded, partition: int, buckets: Sequence[int]) -> int:
    try:
        count = filling.write_part(connection, one.name, folded, partition, buckets, one.holds)
        crash_point("rebuild_part")
        return count
    except psycopg.errors.UniqueViolation:
        return 0  # another process, cut off from the one that began it, was faster
    except (psycopg.errors.DataError, psycopg.errors.IntegrityError) as error:
        raise FatalError(
            f"Postgres refuses rows of partition {partition} that the live tables hold: {type(error).__name__}"
        ) from None
