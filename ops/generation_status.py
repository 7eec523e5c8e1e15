"""`kintsugi projections status`: how far a generation is, from what is in the database, whoever builds it and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from projections import generations as g
from projections.filling import definitions, present

from .catching_up import lag_of, positions
from .spool import BUCKETS
from .stack import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One generation. `phase`: rows, indexes, catching up, or its state when nothing is left to be built.

    `running`: somebody is at work on generations. Rates are of the events and rows since that one began; `eta_s` is how
    long the rows still take at this rate, None when that cannot be told.
    """

    name: str
    state: str
    phase: str
    running: bool
    since: datetime | None
    events: int
    events_total: int
    rows: int
    events_per_second: float | None
    rows_per_second: float | None
    eta_s: float | None
    indexes: int
    indexes_total: int
    lag_records: int | None
    differing: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """How far the rows are. The events of a partition are taken to be spread evenly over its buckets."""

    events: int = 0
    events_total: int = 0
    events_since: int = 0
    rows: int = 0
    rows_since: int = 0

    @property
    def whole(self) -> bool:
        """Whether all rows are there."""
        return self.events >= self.events_total

    def rates(self, seconds: float) -> tuple[float | None, float | None, float | None]:
        """Events and rows a second, and the seconds that are left, after so many of work."""
        if seconds <= 0 or not self.events_since:
            return None, None, None
        rate = self.events_since / seconds
        return round(rate, 1), round(self.rows_since / seconds, 1), round((self.events_total - self.events) / rate, 1)


def filled(partitions: Iterable[tuple[int, int, int, int, int]]) -> Filled:
    """From (events to fill in, parts done, of these since, rows, of these since) of each partition."""
    found = Filled()
    for total, done, since, rows, rows_since in partitions:
        found = Filled(
            events=found.events + total * done // BUCKETS,
            events_total=found.events_total + total,
            events_since=found.events_since + total * since // BUCKETS,
            rows=found.rows + rows,
            rows_since=found.rows_since + rows_since,
        )
    return found


def status(at: Addresses, name: str | None = None) -> list[dict[str, Any]]:
    """A row for the generation named; without a name for all that are being built or wait to be promoted."""
    with g.connected(at.postgres) as connection:
        if name is None:
            wanted = [one for one in g.listed(connection) if one.state in ("loading", "ready")]
        else:
            wanted = [g.found(connection, name, "loading", "ready", "promoted", "retired", "dropped")]
        return [asdict(_status(connection, one)) for one in wanted]


def _status(connection: g.Connection, one: g.Generation) -> Status:
    worker = g.worker(connection)
    since = None if worker is None else worker[3]
    now = connection.execute(g.QUERIES["now"]).fetchone()
    assert now is not None
    place = {"name": one.name, "since": since or now[0]}
    done = filled(connection.execute(g.QUERIES["progress"], place).fetchall())
    wanted = definitions(connection, one.name, one.names) if one.state == "loading" else []
    made = sum(present(connection, one.name, key) for key, _ in wanted)
    stands = bool(positions(connection, one.name))
    seconds = 0.0 if since is None else (now[0] - since).total_seconds()
    events_rate, rows_rate, eta_s = done.rates(seconds) if one.state == "loading" else (None, None, None)
    phase = one.state
    if one.state == "loading":
        phase = "catching up" if stands else "indexes" if done.whole else "rows"
    return Status(
        name=one.name,
        state=one.state,
        phase=phase,
        running=worker is not None,
        since=since,
        events=done.events,
        events_total=done.events_total,
        rows=done.rows,
        events_per_second=events_rate,
        rows_per_second=rows_rate,
        eta_s=eta_s,
        indexes=made,
        indexes_total=len(wanted),
        lag_records=lag_of(connection, one.name) if stands else None,
        differing=one.differing,
    )
