"""How far the tables are behind the log. What deletes by what the tables say asks here first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from schemas.errors import RetriableError
from schemas.log_record import LogRecord

from .places import Places
from .tables import Tables

_LOOK_S = 0.25
#: Looks until the tables have had half a minute to reach what was in the log.
_LOOKS_MAX = 120
#: Offsets without a record in a row are rare: transaction markers, which nobody of ours writes.
_OFFSETS_LOOKED_AT = 10


class TablesLagError(RetriableError):
    """The tables do not know yet what the log says. Nothing was done."""


def caught_up(places: Places, tables: Tables) -> Iterator[float]:
    """Steps until the tables have applied all that is in the log now; TablesLagError when they do not get there."""
    ends = {partition: high for partition, (low, high) in places.bounds().items() if high > low}
    for _ in range(_LOOKS_MAX):
        missing = {p: end for p, end in ends.items() if tables.positions().get(p, 0) < end}
        if not missing:
            return
        yield _LOOK_S
    raise TablesLagError(
        f"the tables have not reached the log's end in partitions {sorted(missing)}", hint="does the projector run?"
    )


def lag_s(places: Places, positions: Mapping[int, int], now_ms: int) -> float:
    """Age of the oldest record that the tables have not applied; 0 without one.

    TablesLagError when it is in the log no more, or the tables were made from another log.
    """
    oldest_ms = now_ms
    for partition, (low, high) in places.bounds().items():
        position = positions.get(partition, low)
        if position > high:
            raise TablesLagError(
                f"the tables stand at {position} of partition {partition}, the log ends at {high}: another log?",
                hint="kintsugi verify",
            )
        if position == high:
            continue
        if position < low:
            raise TablesLagError(f"the tables stand at {position} of partition {partition}, the log begins at {low}")
        # There may be no record at this very offset; then what lies behind it is no older than it would be.
        for offset in range(position, min(high, position + _OFFSETS_LOOKED_AT)):
            ((_, found),) = places.read([(partition, offset)])
            if isinstance(found, LogRecord):
                oldest_ms = min(oldest_ms, found.timestamp_ms)
                break
        else:
            raise TablesLagError(f"no record behind {position} of partition {partition} can be read to tell its age")
    return (now_ms - oldest_ms) / 1000
