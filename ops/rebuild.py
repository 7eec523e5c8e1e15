"""`kintsugi projections`: fills a generation from archive and log, keeps it up, compares it, and changes over.

Every step can be cut short and begun again: a part's rows and the note that it is done are one transaction, and so is a
batch with its position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psycopg

from consumers.crash import crash_point
from consumers.history import ranges_of
from consumers.log_reader import LogReader
from projections import digest, filling
from projections import generations as g
from projections.catalog import TABLES
from projections.fold import Folded
from projections.following import SNAPSHOT, not_applied, park_as_live
from projections.kit import TABLES_VERSION
from projections.reader import snapshot
from projections.store import GENERATION
from schemas.codec import Codec
from schemas.errors import FatalError, RetriableError
from schemas.registry import Registry
from schemas.topics import EVENTS

from .archive import history_of
from .catching_up import LAG_RECORDS_MAX, Progress, catch_up, catch_up_whole, events_of, lag_of, positions
from .sharing import share
from .spool import Spool
from .stack import Addresses

#: Tries to get past readers when the tables change places.
SWAP_TRIES_MAX = 60
_SWAP_PAUSE_S = 0.5
#: How long a rebuild waits for a server that is away before it ends, to be begun again: longer than a restart with
#: recovery takes.
WAIT_S_MAX = 900.0
_PAUSE_S_MIN, _PAUSE_S_MAX = 1.0, 15.0
#: Who worked for so long since the last wait was not in vain: the next wait begins anew.
_WORKED_S = 60.0


class DiffersError(g.GenerationError):
    """Rows of a generation differ from the live ones; the first of them are in `shown`."""

    def __init__(self, message: str, shown: Sequence[digest.Drift], *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.shown = shown


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
    """A row for each generation; `lag_records` is how far it is behind the live tables."""
    with g.connected(at.postgres) as connection:
        live = positions(connection, GENERATION)
        rows = []
        for one in g.listed(connection):
            own = positions(connection, one.name)
            lag = sum(max(0, live.get(p, 0) - offset) for p, offset in own.items()) if own else None
            rows.append({**asdict(one), "lag_records": lag})
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
    tell: Callable[[str], None] = lambda message: None,
) -> Report:
    """Fill a generation, or go on with one that was cut short, until it is caught up and compared.

    While a server is away that was there at the beginning, it waits, says so with `tell`, and goes on where it was;
    RetriableError when that takes too long. `events`, `rows` and the rate of the report are of what was done since.
    """
    with g.connected(at.postgres) as connection, g.sole(connection):
        g.need_rights(connection)
        name = _begin(at, connection, actor=actor, reason=reason, accept_gap=accept_gap)
    crash_point("rebuild_begun")
    waited_s, pause_s = 0.0, _PAUSE_S_MIN
    while True:
        began_s = time.monotonic()
        try:
            return _go_on(at, name, progress, processes)
        except (RetriableError, g.BusyError) as error:
            if time.monotonic() - began_s > _WORKED_S:
                waited_s, pause_s = 0.0, _PAUSE_S_MIN
            # Busy is also who waited: the server may not have noticed yet that its connection is gone.
            if waited_s >= WAIT_S_MAX or (not waited_s and isinstance(error, g.BusyError)):
                raise
            tell(f"waits {pause_s:.0f} s, {WAIT_S_MAX - waited_s:.0f} s at most in all: {error}")
            time.sleep(pause_s)
            waited_s, pause_s = waited_s + time.monotonic() - began_s, min(2 * pause_s, _PAUSE_S_MAX)


def _go_on(at: Addresses, name: str, progress: Progress, processes: int) -> Report:
    began_s = time.monotonic()
    with g.connected(at.postgres) as connection, g.sole(connection):
        g.found(connection, name, "loading", "ready")
        events, rows = _fill(at, connection, name, progress, processes)
        seconds = time.monotonic() - began_s
        crash_point("rebuild_filled")
        definitions = filling.definitions(connection, name)
        for number, _ in enumerate(filling.finish(connection, name, definitions)):
            progress("indexes", number + 1, len(definitions))
        connection.execute("ANALYZE")
        place = {"name": name, "topic": EVENTS, "version": TABLES_VERSION}
        with connection.transaction():
            for step in ("positioned", "begun", "hidden"):
                connection.execute(g.QUERIES[step], place)
        crash_point("rebuild_indexed")
        catch_up(at, connection, name, progress)
        crash_point("rebuild_caught_up")
        found = _compare(at, name)
        differing = sum(found.rows.values())
        connection.execute(g.QUERIES["state"], {"name": name, "state": "ready", "differing": differing})
    rate = round(rows / seconds, 1) if rows else 0.0
    return Report(
        name=name, events=events, rows=rows, seconds=round(seconds, 2), rows_per_second=rate, differing=differing
    )


def promote(at: Addresses, name: str, progress: Progress, *, actor: str, reason: str, accept: bool) -> str:
    """Make a generation that is ready the live tables; the name under which the old ones stay."""
    with g.connected(at.postgres) as connection, g.sole(connection):
        g.need_rights(connection)
        g.need_no_views(connection)
        g.found(connection, name, "ready")
        _same_columns(connection, name)
        lag = lag_of(connection, name)
        if lag > LAG_RECORDS_MAX:
            raise g.GenerationError(
                f"{name} is {lag} records behind the live tables, {LAG_RECORDS_MAX} allowed",
                hint="kintsugi projections rebuild --reason ... goes on with it until it has caught up",
            )
        catch_up(at, connection, name, progress)
        found = _compare(at, name)
        differing = sum(found.rows.values())
        if differing and not accept:
            raise DiffersError(
                f"{differing} rows of {name} differ from the live tables: {found.rows}",
                found.shown,
                hint="look at them; --accept-differences if they are what the rebuild was for",
            )
        return _swap(at, connection, name, actor=actor, reason=reason, progress=progress)


def rollback(at: Addresses, name: str, progress: Progress, *, actor: str, reason: str) -> str:
    """Make retired tables live again, up to date; the name under which those before stay."""
    with g.connected(at.postgres) as connection, g.sole(connection):
        g.need_rights(connection)
        g.need_no_views(connection)
        g.found(connection, name, "retired")
        _same_columns(connection, name)
        catch_up(at, connection, name, progress)
        return _swap(at, connection, name, actor=actor, reason=reason, progress=progress)


def drop(at: Addresses, name: str) -> None:
    """Delete a generation that is not live."""
    with g.connected(at.postgres) as connection, g.sole(connection):
        g.found(connection, name, "loading", "ready", "retired")
        with connection.transaction():
            g.forget(connection, name)


def _begin(at: Addresses, connection: g.Connection, *, actor: str, reason: str, accept_gap: bool) -> str:
    going = [one for one in g.listed(connection) if one.state in ("loading", "ready")]
    if going:
        if going[-1].tables_version != TABLES_VERSION:
            raise g.GenerationError(
                f"{going[-1].name} was begun by another release", hint=f"kintsugi projections drop {going[-1].name}"
            )
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
        new = {"state": "loading", "version": TABLES_VERSION, "built_by": "rebuild", "actor": actor, "reason": reason}
        row = connection.execute(g.QUERIES["new"], new).fetchone()
        assert row is not None
        name = str(row[0])
        g.create(connection, name)
        _same_columns(connection, name)
        for partition, (first, end) in ranges_of(bounds).items():
            until = _end(end, partition, live)
            place = {"name": name, "partition": partition, "first": first, "end": until}
            connection.execute(g.QUERIES["range"], place)
            park_as_live(connection, name, partition, 0, until)
    return name


def _same_columns(connection: g.Connection, name: str) -> None:
    altered = g.altered(connection, name)
    if altered:
        raise g.GenerationError(
            f"live tables and those of {name} have other columns: {'; '.join(altered[:10])}",
            hint="undo what was altered by hand, or run kintsugi db migrate, and rebuild",
        )


def _end(end: int, partition: int, live: Mapping[int, int]) -> int:
    """Where the filling ends: where the live tables stand, or the log's end when they hold nothing at all."""
    return min(end, live.get(partition, 0)) if live else end


def _fill(at: Addresses, connection: g.Connection, name: str, progress: Progress, processes: int) -> tuple[int, int]:
    """Fill what is not filled yet, several partitions at once; events read and rows written by this call."""
    if positions(connection, name):
        return 0, 0  # it was filled before
    ranges = [tuple(row) for row in connection.execute(g.QUERIES["ranges"], {"name": name}).fetchall()]
    ranges.sort(key=lambda r: r[1] - r[2])  # the longest first
    sizes = [end - first for _, first, end in ranges]

    def begins(number: int) -> None:
        progress("rows", sum(sizes[:number]), sum(sizes))

    done = share(partial(_partitions, at, name), ranges, processes, begins=begins)
    progress("rows", sum(sizes), sum(sizes))
    return sum(events for events, _ in done), sum(rows for _, rows in done)


def _partitions(at: Addresses, name: str, ranges: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
    """Fill in partitions, one after the other, part by part; events read and rows written."""
    events = rows = 0
    with ExitStack() as stack:
        connection = stack.enter_context(g.connected(at.postgres))
        codec = Codec(stack.enter_context(Registry(at.registry)))
        history = history_of(at, stack.enter_context(LogReader(at.kafka)))
        for partition, first, end in ranges:
            done = {b for (b,) in connection.execute(g.QUERIES["parts"], {"name": name, "partition": partition})}
            with snapshot(at.postgres) as tables:
                hidden = tables.redactions().get(partition, [])
            without = not_applied(connection, name, partition)
            with Spool(partition, without=done) as spool:
                for record in history.read({partition: (first, end)}):
                    spool.add(record)
                for buckets, records in spool.parts():
                    found = list(events_of(codec, records, without))
                    rows += _write(connection, name, filling.fold_part(found, hidden), partition, buckets)
                    events += len(found)
                    crash_point("rebuild_part")
    return events, rows


def _write(connection: g.Connection, name: str, folded: Folded, partition: int, buckets: Sequence[int]) -> int:
    try:
        return filling.write_part(connection, name, folded, partition, buckets)
    except psycopg.errors.UniqueViolation:
        return 0  # another process, cut off from the one that began it, was faster
    except (psycopg.errors.DataError, psycopg.errors.IntegrityError) as error:
        raise FatalError(
            f"Postgres refuses rows of partition {partition} that the live tables hold: {type(error).__name__}"
        ) from None


def _compare(at: Addresses, name: str) -> digest.Differences:
    """Hold a generation against the live tables, at one moment, without the workflows of records between the two, and
    those parked in one of them."""
    with LogReader(at.kafka) as log, psycopg.connect(at.postgres, options=f"-c search_path={GENERATION}") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        live, own = positions(connection, GENERATION), positions(connection, name)
        if not live:
            return digest.Differences()  # nothing was ever applied to the live tables: there is nothing to lose
        between = {p: (own.get(p, 0), end) for p, end in live.items() if own.get(p, 0) < end}
        keys = {r.key for r in history_of(at, log).read(between) if r.key is not None} if between else set()
        place = {"name": name, "topic": EVENTS}
        parked = {found for (found,) in connection.execute(g.QUERIES["parked_differently"], place).fetchall()}
        without = sorted(parked | {text for key in keys if (text := _uuid(key)) is not None})
        return digest.differences(connection, GENERATION, name, TABLES, leaving_out=without)


def _uuid(key: bytes) -> str | None:
    from schemas.ids import uuid_bytes

    text = key.decode("utf-8", "replace").lower()
    try:
        uuid_bytes(text)
    except ValueError:
        return None
    return text


def _swap(at: Addresses, connection: g.Connection, name: str, *, actor: str, reason: str, progress: Progress) -> str:
    """Hold live writers, apply the last records, change places. Tried again while readers are in the way."""
    for number in range(SWAP_TRIES_MAX):
        catch_up(at, connection, name, progress)
        try:
            with connection.transaction():
                g.close_gate(connection)
                catch_up_whole(at, name)
                retired = g.swap(connection, name, state="promoted", actor=actor, reason=reason)
                crash_point("rebuild_swapped")
            return retired
        except psycopg.errors.LockNotAvailable:
            progress("waits for readers", number, SWAP_TRIES_MAX)
            time.sleep(_SWAP_PAUSE_S)
    raise g.SwapTimeoutError("readers held the tables all the time", hint="end long transactions, then try again")
