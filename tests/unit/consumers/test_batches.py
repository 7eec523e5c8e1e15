"""How many records a role takes at once: no more than its bound, in records and in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from consumers import loop as loops
from consumers.clock import BrokerClock
from consumers.loop import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Loop
from consumers.projector import BATCH_RECORDS_MAX as PROJECTED_MAX


class Plenty:
    """A client that always has more records, each of this size."""

    size_bytes = 100

    def __init__(self, settings: dict[str, Any]) -> None:
        self._records: Iterator[bytes] = iter(lambda: b"x" * self.size_bytes, b"")

    def poll(self, timeout_s: float) -> bytes:
        return next(self._records)

    def consume(self, most: int, timeout_s: float) -> list[bytes]:
        return [next(self._records) for _ in range(most)]


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "Consumer", Plenty)


def _taken(**bounds: int) -> int:
    handler: Any = object()
    return len(Loop("any", "topic", {"group.protocol": "consumer"}, handler, BrokerClock(), **bounds)._fetch(0.0))


@pytest.mark.usefixtures("plenty")
def test_a_role_takes_a_batch_of_its_own_size() -> None:
    assert _taken() == BATCH_RECORDS_MAX
    assert _taken(batch_records_max=PROJECTED_MAX) == PROJECTED_MAX
    assert _taken(batch_records_max=10) == 10


@pytest.mark.usefixtures("plenty")
def test_large_records_end_a_batch_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plenty, "size_bytes", BATCH_BYTES_MAX // 100)
    # What was asked for when the bound was not reached yet comes along.
    assert _taken(batch_records_max=PROJECTED_MAX) <= 100 + 64
