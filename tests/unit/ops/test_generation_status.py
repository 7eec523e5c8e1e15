"""How far a rebuild is, from what its parts say."""

from __future__ import annotations

from ops.generation_status import Filled, filled
from ops.spool import BUCKETS


def test_partitions_add_up_by_their_parts() -> None:
    half, whole = BUCKETS // 2, BUCKETS
    found = filled([(1_000, half, half, 70, 70), (200, whole, 0, 50, 0), (0, 0, 0, 0, 0)])
    assert found == Filled(events=700, events_total=1_200, events_since=500, rows=120, rows_since=70)
    assert not found.whole
    assert found.rates(10.0) == (50.0, 7.0, 10.0)


def test_a_rate_is_told_when_there_is_one() -> None:
    assert filled([(1_000, 0, 0, 0, 0)]).rates(60.0) == (None, None, None)
    assert filled([(1_000, BUCKETS, BUCKETS, 9, 9)]).rates(0.0) == (None, None, None)
    done = filled([(1_000, BUCKETS, BUCKETS, 9, 9)])
    assert done.whole
    assert done.rates(10.0) == (100.0, 0.9, 0.0)
