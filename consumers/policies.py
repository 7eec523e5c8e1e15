"""Policies that were applied: `workflow.policies` as a chain, and which one was in force where.

The topic holds an entry for each application, keyed `name@version/operation`, and beside it, under the same key with
`/offsets`, where in the partitions of the event topic it came into force. An entry's offset is its sequence. Each
entry names the one it supersedes; of two that name the same one the first counts and the other is void, whatever its
writer did after that. So two people cannot apply at once without one of them being told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from schemas.canonical import canonical_bytes
from schemas.topics import POLICIES

from .dead_letter import raw
from .log_reader import LogReader

#: The one policy there is; it holds for all workflow types.
NAME = "recovery"
OFFSETS = "/offsets"
#: `supersedes` of the first entry.
NOTHING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One application of a policy. `offsets`: where it came into force, by partition of the event topic."""

    key: str
    sequence: int
    version: str
    text: str
    actor: str
    reason: str
    at: str
    supersedes: int
    written_ms: int
    void: bool = False
    offsets: Mapping[int, int] = field(default_factory=dict)
    #: Whether `workflow.coordination` has it too.
    coordinated: bool = False

    def value(self) -> bytes:
        """As it stands in the topic."""
        parts = ("version", "text", "actor", "reason", "at", "supersedes")
        return canonical_bytes({"name": NAME, **{part: getattr(self, part) for part in parts}})

    def offsets_value(self) -> bytes:
        """Where it came into force, as it stands in the topic."""
        offsets = {str(partition): offset for partition, offset in sorted(self.offsets.items())}
        return canonical_bytes({"sequence": self.sequence, "offsets": offsets, "coordinated": self.coordinated})


class Applied:
    """All entries, in the order in which they were written."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: list[Entry] = []
        newest = NOTHING
        for entry in entries:
            void = entry.supersedes != newest
            self.entries.append(replace(entry, void=void))
            newest = newest if void else entry.sequence

    @property
    def newest(self) -> Entry | None:
        """The one applied last."""
        return next((entry for entry in reversed(self.entries) if not entry.void), None)

    def at(self, sequence: int) -> Entry | None:
        """The entry with this sequence."""
        return next((entry for entry in self.entries if entry.sequence == sequence), None)

    def of_version(self, version: str) -> list[Entry]:
        """Entries whose version begins so."""
        return [entry for entry in self.entries if entry.version.startswith(version)]

    def before(self, partition: int, offset: int) -> Entry | None:
        """What was in force in a partition before this offset; None when nothing had been applied there."""
        found = [e for e in self.entries if not e.void and e.offsets.get(partition, offset) < offset]
        return max(found, key=lambda e: e.sequence, default=None)


class AppliedPolicies(Protocol):
    """What the recovery role asks."""

    def before(self, partition: int, offset: int) -> Entry | None:
        """What was in force in a partition before this offset. RetriableError when that cannot be told now."""


class PolicyLog:
    """The topic, read whole each time: a person's entries, and few."""

    def __init__(self, servers: str) -> None:
        self._servers = servers

    def before(self, partition: int, offset: int) -> Entry | None:
        """What was in force in a partition before this offset. RetriableError when Kafka is away."""
        with LogReader(self._servers) as log:
            return read_policies(log).before(partition, offset)

    def newest(self) -> Entry | None:
        """The one applied last. RetriableError when Kafka is away."""
        with LogReader(self._servers) as log:
            return read_policies(log).newest


def read_policies(log: LogReader) -> Applied:
    """Every entry. RetriableError when Kafka is away. What is no entry of this policy is passed over."""
    entries: dict[str, Entry] = {}
    places: dict[str, dict[str, Any]] = {}
    for message in log.read(POLICIES, log.bounds(POLICIES)):
        key, value = (raw(message.key()) or b"").decode("utf-8", "replace"), _value(raw(message.value()))
        if value is None:
            continue
        if key.endswith(OFFSETS):
            places[key.removesuffix(OFFSETS)] = value
        else:
            entry = _entry(key, message.offset() or 0, message.timestamp()[1], value)
            if entry is not None:
                entries[key] = entry
    ordered = sorted(entries.values(), key=lambda entry: entry.sequence)
    return Applied(_placed(entry, places.get(entry.key)) for entry in ordered)


def _value(data: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(data or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _entry(key: str, sequence: int, written_ms: int, value: dict[str, Any]) -> Entry | None:
    texts = {name: value.get(name) for name in ("version", "text", "actor", "reason", "at")}
    supersedes = value.get("supersedes")
    if value.get("name") != NAME or type(supersedes) is not int or not all(isinstance(t, str) for t in texts.values()):
        return None
    return Entry(
        key=key,
        sequence=sequence,
        supersedes=supersedes,
        written_ms=written_ms,
        **texts,  # type: ignore[arg-type]
    )


def _placed(entry: Entry, place: dict[str, Any] | None) -> Entry:
    if place is None or place.get("sequence") != entry.sequence:
        return entry
    offsets = place.get("offsets")
    if not isinstance(offsets, dict):
        return entry
    numbers = {int(p): offset for p, offset in offsets.items() if p.isdigit() and type(offset) is int}
    return replace(entry, offsets=numbers, coordinated=place.get("coordinated") is True)
