"""The loop is not held up by Python's collector looking through every state."""

from __future__ import annotations

import gc

from consumers.pauses import short_pauses


def test_growing_memory_starts_no_full_collection_and_what_forms_cycles_still_goes() -> None:
    before = gc.get_threshold()
    with short_pauses():
        full = gc.get_stats()[2]["collections"]
        young = gc.get_stats()[0]["collected"] + gc.get_stats()[1]["collected"]
        kept: list[list[object]] = []
        for _ in range(300_000):
            kept.append([len(kept)])
            cycle: list[object] = []
            cycle.append(cycle)
        assert gc.get_stats()[2]["collections"] == full
        assert gc.get_stats()[0]["collected"] + gc.get_stats()[1]["collected"] > young + 200_000
    assert gc.get_threshold() == before
