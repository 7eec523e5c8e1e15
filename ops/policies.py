"""Applying a policy while everything runs: an entry in `workflow.policies`, then a fact in each partition.

The entry comes first and names the one it supersedes, which makes it a compare-and-set (`consumers.policies`). Then
each partition of the event topic, and the coordination topic, get a `PolicyChanged`: from there on it is in force
there. Whatever is cut short is finished by `finish`: a partition that has the fact already is found and left alone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from consumers.log_reader import LogReader, record_of
from consumers.policies import NAME, NOTHING, OFFSETS, Applied, Entry, read_policies
from engine.policy import default_text
from schemas.codec import Codec
from schemas.errors import KintsugiError, PoisonError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records.events import PolicyChanged
from schemas.registry import Registry
from schemas.topics import COORDINATION, EVENTS, POLICIES

from .audit import actor, now
from .output import CONFLICT, PARTIAL, NotFoundError, printable
from .policy_diff import Side
from .publish import Publisher
from .stack import Addresses

PRODUCER = "kintsugi-cli"
#: What a policy is of, where a workflow's type would stand.
SUBJECT = "kintsugi.policy"
APPLIED, SHIPPED = "applied", "default"
#: A version is told apart by its first characters.
_VERSION_CHARS_MIN = 4
#: Clocks of two brokers: a fact may bear an earlier time than the entry it follows.
_SKEW_MS = 60_000

#: Called with (what is being done, done, in all).
Progress = Callable[[str, int, int], None]


class ConflictError(click.ClickException):
    """Somebody else applied a policy in between."""

    exit_code = CONFLICT


class UnfinishedError(click.ClickException):
    """The entry is in the log, and not all partitions have the policy yet."""

    exit_code = PARTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far an entry came: partitions of the event topic that have it, of how many, and the coordination topic."""

    partitions: tuple[int, ...]
    all: int
    coordinated: bool

    @property
    def whole(self) -> bool:
        """Whether it is in force everywhere."""
        return len(self.partitions) == self.all and self.coordinated


def applied(at: Addresses) -> Applied:
    """Every entry. RetriableError when Kafka is away."""
    with LogReader(at.kafka) as log:
        return read_policies(log)


def reach_of(entry: Entry, partitions: int) -> Reach:
    """How far an entry came, by what was written down about it."""
    had = tuple(sorted(p for p in entry.offsets if p < partitions))
    return Reach(partitions=had, all=partitions, coordinated=entry.coordinated)


def partitions_of(at: Addresses) -> int:
    """Partitions of the event topic."""
    with LogReader(at.kafka) as log:
        return len(log.bounds(EVENTS))


def side_of(name: str, found: Callable[[], Applied]) -> Side:
    """A policy by a file's path, `applied` (what was applied last), `default` (what ships) or a version.

    NotFoundError when there is none, ConfigError when it does not load.
    """
    if name == SHIPPED:
        return Side.of(default_text(), "the policy that ships")
    if name == APPLIED:
        newest = found().newest
        if newest is None:
            raise NotFoundError("no policy has been applied; each process has the one it was started with")
        return Side.of(newest.text, f"applied {newest.version}")
    path = Path(name)
    if path.is_file():
        return Side.of(read_text(path), name)
    entries = found().of_version(name) if len(name) >= _VERSION_CHARS_MIN else []
    versions = {entry.version for entry in entries}
    if len(versions) == 1:
        return Side.of(entries[-1].text, f"version {entries[-1].version}")
    if versions:
        raise NotFoundError(f"{name}: versions that begin so: {', '.join(sorted(versions))}")
    raise NotFoundError(f"{name}: no such file, and no version of `kintsugi policy history`")


def read_text(path: Path) -> str:
    """A policy file's text. ConfigError when it is no text."""
    from schemas.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from None


def enter(at: Addresses, side: Side, *, supersedes: Entry | None, reason: str) -> Entry:
    """Write the entry. ConflictError when another one came between `supersedes` and it: it is void then.

    RetriableError or FatalError when what comes after the entry could not be written anyway.
    """
    entry = Entry(
        key=f"{NAME}@{side.policy.version}/{uuid.uuid4()}",
        sequence=NOTHING,
        version=side.policy.version,
        text=side.text,
        actor=actor(),
        reason=reason,
        at=now(),
        supersedes=NOTHING if supersedes is None else supersedes.sequence,
        written_ms=time.time_ns() // 1_000_000,
    )
    with Registry(at.registry) as registry:
        Codec(registry).encode(_fact(entry, EVENTS, 0))  # an entry that no partition can get is not written
    sequence = Publisher(at.kafka).publish(POLICIES, entry.key, entry.value())
    found = applied(at)
    mine = found.at(sequence)
    if mine is None or mine.void:
        winner = found.newest
        who = "somebody" if winner is None else printable(f"{winner.actor} ({winner.reason})")
        version = "another policy" if winner is None else f"version {winner.version}"
        raise ConflictError(
            f"{who} applied {version} in between; yours was not applied. "
            "Look at it (kintsugi policy history, kintsugi policy diff applied FILE), then apply again"
        )
    return mine


def finish(at: Addresses, entry: Entry, progress: Progress, *, again: bool) -> Entry:
    """Bring an entry into force wherever it is not yet; the entry with all its places.

    `again`: it was begun before, so partitions are searched for the fact first. UnfinishedError when a part of it could
    not be written; calling again goes on from there.
    """
    out = Publisher(at.kafka)
    with LogReader(at.kafka) as log, Registry(at.registry) as registry:
        codec = Codec(registry)
        partitions = sorted(log.bounds(EVENTS))
        total = len(partitions) + 1
        try:
            for done, partition in enumerate(partitions):
                progress("partitions", done, total)
                if partition in entry.offsets:
                    continue
                offset = _place_of(log, codec, partition, entry) if again else None
                if offset is None:
                    offset = _send(out, codec, EVENTS, partition, entry)
                entry = replace(entry, offsets={**entry.offsets, partition: offset})
            if not entry.coordinated:
                _send(out, codec, COORDINATION, 0, entry)  # twice is no harm: the sequence is the same
                entry = replace(entry, coordinated=True)
        except KintsugiError as error:
            with suppress(KintsugiError):  # the next try finds the places in the partitions themselves
                _note(out, entry)
            raise UnfinishedError(
                f"in force in {len(entry.offsets)} of {len(partitions)} partitions: {error}; "
                "finish it with: kintsugi policy apply --resume"
            ) from error
        _note(out, entry)
        progress("partitions", total, total)
    return entry


def _send(out: Publisher, codec: Codec, topic: str, partition: int, entry: Entry) -> int:
    record = _fact(entry, topic, partition)
    headers = headers_for(record)
    return out.publish(topic, record.workflow_id, codec.encode(record), headers=headers, partition=partition)


def _fact(entry: Entry, topic: str, partition: int) -> PolicyChanged:
    return PolicyChanged(
        event_id=derive_id(entry.key, f"policy|{topic}", partition),
        workflow_id=derive_id(NAME, "policy"),
        workflow_type=SUBJECT,
        occurred_at=time.time_ns() // 1_000,
        producer=PRODUCER,
        name=NAME,
        policy_version=entry.version,
        policy_text=entry.text,
        sequence=entry.sequence,
        reason=entry.reason,
        actor=entry.actor,
    )


def _place_of(log: LogReader, codec: Codec, partition: int, entry: Entry) -> int | None:
    """Where a partition has this entry's fact already, though nobody wrote that down; None when it has not."""
    first = log.offset_at(EVENTS, partition, entry.written_ms - _SKEW_MS)
    low, high = log.bounds(EVENTS)[partition]
    if first is None:
        return None
    key = derive_id(NAME, "policy").encode()
    for found in map(record_of, log.read(EVENTS, {partition: (max(first, low), high)})):
        if found.key != key:
            continue
        try:
            record = codec.decode(found.value)
        except PoisonError:
            continue
        if isinstance(record, PolicyChanged) and record.sequence == entry.sequence:
            return found.offset
    return None


def _note(out: Publisher, entry: Entry) -> None:
    """Write down where it came into force."""
    out.publish(POLICIES, entry.key + OFFSETS, entry.offsets_value())


def history_rows(found: Applied, partitions: int) -> list[dict[str, Any]]:
    """One row per entry, the newest first, with where it is in force now."""
    in_force: dict[int, int] = {}
    for entry in found.entries:
        if not entry.void:
            in_force.update({p: entry.sequence for p in entry.offsets if p < partitions})
    newest = found.newest
    rows = []
    for entry in reversed(found.entries):
        here = [partition for partition, sequence in sorted(in_force.items()) if sequence == entry.sequence]
        rows.append(
            {
                "sequence": entry.sequence,
                "version": entry.version,
                "at": entry.at,
                "actor": entry.actor,
                "reason": entry.reason,
                "supersedes": None if entry.supersedes == NOTHING else entry.supersedes,
                "state": _state(entry, here, partitions, last=entry is newest),
                "partitions": here,
                "offsets": dict(entry.offsets),
            }
        )
    return rows


def _state(entry: Entry, here: list[int], partitions: int, *, last: bool) -> str:
    if entry.void:
        return "void: another one came first"
    if len(here) == partitions:
        return "in force" if entry.coordinated else "in force, the coordinator has not heard of it"
    if here or last:
        return f"in force in {len(here)} of {partitions} partitions"
    return "superseded"
