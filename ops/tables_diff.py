"""`kintsugi projections diff`: two generations of the tables against each other, while both are written.

Both are seen at one moment, at which they rarely stand at the same place of the log. Workflows with a record between
the two places, and those that are parked in one of them, cannot be equal: they are left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.log_reader import LogReader
from projections.digest import Differences
from projections.reader import Snapshot, snapshot
from schemas.errors import FatalError
from schemas.ids import uuid_bytes
from schemas.topics import EVENTS

from .archive import history_of
from .stack import Addresses
from .tables_proof import Progress, counted, key_of

#: Records between two generations. With more one of them is still being filled, and little would be compared.
GAP_RECORDS_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs. `left_out`: workflows that were not compared."""

    differences: Differences
    left_out: int
    gap_records: int


def diff(at: Addresses, first: str, second: str, progress: Progress) -> Difference:
    """Compare the tables that both hold. FatalError when a generation is not there or far behind, RetriableError
    without a server."""
    with LogReader(at.kafka) as log, snapshot(at.postgres, generation=first) as one:
        other = one.beside(second)
        gap = _between(one, other, (first, second))
        records = sum(end - start for start, end in gap.values())
        if records > GAP_RECORDS_MAX:
            raise FatalError(
                f"{records} records lie between {first} and {second}; at most {GAP_RECORDS_MAX} may",
                hint="wait until both have caught up: kintsugi projections list",
            )
        read = history_of(at, log).read(gap)
        moved = {key_of(found) for found in counted("records between them", read, gap, progress)}
        left_out = sorted(filter(_is_id, moved | one.parked() | other.parked()))
        progress("tables", 0, 1)
        in_both = [table for table in one.tables() if table in other.tables()]
        found = one.differences(other, in_both, leaving_out=left_out)
        progress("tables", 1, 1)
        return Difference(differences=found, left_out=len(left_out), gap_records=records)


def _between(one: Snapshot, other: Snapshot, names: tuple[str, str]) -> dict[int, tuple[int, int]]:
    places = [tables.positions() for tables in (one, other)]
    for name, found in zip(names, places, strict=True):
        if not found:
            raise FatalError(f"generation {name} stands nowhere in {EVENTS}", hint="kintsugi projections list")
    here, there = places
    gap: dict[int, tuple[int, int]] = {}
    for partition in here.keys() | there.keys():
        start, end = sorted((here.get(partition, 0), there.get(partition, 0)))
        if start < end:
            gap[partition] = (start, end)
    return gap


def _is_id(key: str) -> bool:
    """Records that nobody can read have any key, and no rows."""
    try:
        uuid_bytes(key)
    except ValueError:
        return False
    return True
