"""Defects that are planted in the real code or in what stands for Postgres, to see that the simulation finds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from consumers import recovery
from consumers.intake import Intake
from consumers.memory import Memory
from consumers.outbox import Outbox


def _durable_too_early(self: Outbox, cause: int) -> int | None:
    """What was handed over counts as arrived."""
    batches, found = self._batches.get(cause, ()), None
    while batches and batches[0].next_offset is not None:
        found = batches.popleft().next_offset
    return found


def _unsuppressed(*args: Any, effects_from: int, next_offset: int) -> Memory:
    """Effects of what was done before are done again."""
    return Memory(*args, effects_from=next_offset, next_offset=next_offset)


def _forgetful(self: Any, found: dict[int, Any]) -> dict[int, Any]:
    """A batch whose effects were lost is told, but its states are kept."""
    for partition in found:
        self._outbox.forget(partition)
    return {}


def _nothing_waits(self: Intake, partition: int, end: int) -> int:
    """What was taken in counts as handled."""
    return end


#: Of the tables: applied together with the position, or only if nobody else went on.
OF_TABLES = ("no_compare_and_set", "position_apart")
#: Of recovery: what is replaced by what.
OF_RECOVERY = {
    "committed_before_arrival": (Outbox, "durable", _durable_too_early),
    "committed_before_its_turn": (Intake, "frontier", _nothing_waits),
    "effects_not_suppressed": (recovery, "Memory", _unsuppressed),
    "loss_not_told": (recovery.Recovery, "_emptied", _forgetful),
}
ALL = (*OF_TABLES, *OF_RECOVERY)


@contextmanager
def planted(name: str | None) -> Iterator[frozenset[str]]:
    """Plant a defect, or none; what is left to the tables' stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        if name in OF_RECOVERY:
            patch.setattr(*OF_RECOVERY[name])
        yield frozenset({name} if name in OF_TABLES else ())
