"""Fields that older records lack, where the schema's default would say something false of them.

Avro gives every field that a writer did not know its default. Mostly that is true of old records: nobody sealed
anything before states could be sealed. Where it is not, the value follows from what the record does say, by a pure
function of its other fields. `Codec.decode` is the one place that asks, so that recovery, projector, replay, rebuild,
verification and clients all read the same. Records whose writer has the field are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

#: A record's fields as Avro gives them, absent ones with their defaults, to the value of one of these.
Fill = Callable[[Mapping[str, Any]], Any]

#: What a person decided is outside the ladder's budgets; so these decisions' rules begin.
_BY_HAND = "operator "
_ASK = "manual_intervention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcaster:
    """How a field is read in records of writers that lack it: those `before` this release, which brought the field."""

    record: str
    field: str
    before: str
    fill: Fill


def _cost(decision: Mapping[str, Any]) -> float:
    """An attempt costs what its rung says, else 1, and no rung could say anything; to ask a human costs nothing."""
    return 0.0 if decision["strategy"] == _ASK or decision["rule"].startswith(_BY_HAND) else 1.0


def _options(request: Mapping[str, Any]) -> list[str]:
    """No option means that nothing can be done; these three could always be answered."""
    return ["retry", "restart", "cancel"]


UPCASTERS = (
    Upcaster(record="RecoveryDecided", field="cost", before="0.3.0", fill=_cost),
    Upcaster(record="InterventionRequested", field="options", before="0.3.0", fill=_options),
)


def fills(record: str, written: Collection[str]) -> tuple[tuple[str, Fill], ...]:
    """What is to be filled in for a writer with these fields: field, and how. Mostly nothing."""
    return tuple((u.field, u.fill) for u in UPCASTERS if u.record == record and u.field not in written)
