"""Keeps a generation of the tables near the live ones: reads what these have applied since, from archive and log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack

from consumers.crash import crash_point
from consumers.history import History
from consumers.log_reader import LogReader
from engine.events import Delivered
from engine.inspection import Inspector
from projections import generations as g
from projections.following import Following
from projections.store import GENERATION
from schemas.codec import Codec
from schemas.errors import PoisonError
from schemas.log_record import LogRecord
from schemas.registry import Registry
from schemas.topics import EVENTS

from .archive import history_of
from .stack import Addresses
from .tables_proof import event_of

#: A generation this near to the live tables may be compared and promoted: about a second of a busy log.
LAG_RECORDS_MAX = 5_000
#: Rounds of catching up. Live tables that stay ahead for longer are written faster than a generation follows.
ROUNDS_MAX = 1_000
_BATCH_RECORDS = 1_000

#: Called with (what is being done, done, in all).
Progress = Callable[[str, int, int], None]


def positions(connection: g.Connection, name: str) -> dict[int, int]:
    """Next offset of the log to apply, by partition; those of which nothing was applied are left out."""
    rows = connection.execute(
        "SELECT log_partition, next_offset FROM positions WHERE generation = %s AND topic = %s AND next_offset >= 0",
        [name, EVENTS],
    )
    return dict(rows.fetchall())


def lag_of(connection: g.Connection, name: str) -> int:
    """Records that the live tables have applied, and this generation has not."""
    live, own = positions(connection, GENERATION), positions(connection, name)
    return sum(max(0, offset - own.get(p, 0)) for p, offset in live.items())


def events_of(codec: Codec, records: Iterable[LogRecord], without: Collection[int]) -> Iterator[Delivered]:
    """What the projector applied of these records of one partition; `without`: offsets of what it did not."""
    inspector = Inspector(keep_states=False)
    for found in records:
        if found.offset in without:
            continue
        try:
            record = event_of(codec, found)
        except PoisonError:
            continue
        if record is not None:
            yield inspector.deliver(record, found.partition, found.offset, found.timestamp_ms * 1000)


def catch_up(at: Addresses, connection: g.Connection, one: g.Generation, progress: Progress) -> None:
    """Apply what the live tables have applied since, until few records are left."""
    with ExitStack() as stack:
        history, codec, tables = _open(at, one, stack)
        for _ in range(ROUNDS_MAX):
            begun = lag_of(connection, one.name)
            _step_all(connection, one.name, history, codec, tables)
            left = lag_of(connection, one.name)
            progress("catching up", max(0, begun - left), begun)
            if left <= LAG_RECORDS_MAX:
                return
    raise g.GenerationError(f"{one.name} does not catch up: the live tables are written faster than it follows")


def catch_up_whole(at: Addresses, one: g.Generation) -> None:
    """To exactly where the live tables stand, whose writers wait meanwhile."""
    with ExitStack() as stack:
        connection = stack.enter_context(g.connected(at.postgres))
        history, codec, tables = _open(at, one, stack)
        _step_all(connection, one.name, history, codec, tables)


def _open(at: Addresses, one: g.Generation, stack: ExitStack) -> tuple[History, Codec, Following]:
    history = history_of(at, stack.enter_context(LogReader(at.kafka)))
    codec = Codec(stack.enter_context(Registry(at.registry)))
    tables = Following(at.postgres, generation=one.name, tables=one.holds)
    stack.callback(tables.close)
    return history, codec, tables


def _step_all(connection: g.Connection, name: str, history: History, codec: Codec, tables: Following) -> None:
    """Bring every partition to where the live tables stand now."""
    live, own = positions(connection, GENERATION), positions(connection, name)
    waiting = {p for (p,) in connection.execute(g.QUERIES["parking"], {"name": name, "topic": EVENTS}).fetchall()}
    for partition, end in sorted(live.items()):
        if own.get(partition, 0) < end or partition in waiting:
            _step(partition, history, codec, tables)
            crash_point("rebuild_applied")


def _step(partition: int, history: History, codec: Codec, tables: Following) -> None:
    def read(record: LogRecord) -> Delivered:
        for event in events_of(codec, [record], ()):
            return event
        raise PoisonError("not_readable", "this release cannot read it")

    step = tables.step(partition, read)
    start = step.start
    batch: list[LogRecord] = []

    def apply(end: int) -> None:
        tables.follow(partition, list(events_of(codec, batch, step.without)), start=start, end=end)

    if start >= step.end:
        return
    for record in history.read({partition: (start, step.end)}):
        batch.append(record)
        if len(batch) >= _BATCH_RECORDS:
            apply(record.offset + 1)
            start, batch = record.offset + 1, []
    if start < step.end:
        apply(step.end)
