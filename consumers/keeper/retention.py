"""Retention: what is beyond it, by rules that are a function of rows, and the facts that say so.

Nothing is deleted here. `CheckpointsExpired` takes the checkpoints from the engine's targets and from the tables, and
what then has no row that refers to it is collected by `orphans`, after its grace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.policy.model import Retention as Limits
from schemas.admission import EXPIRED_MAX
from schemas.archive import Archive
from schemas.archive_format import ArchiveDamagedError
from schemas.codec import Codec
from schemas.records.events import CheckpointCreated

from .. import telemetry
from .desk import Desk
from .facts import expired
from .lag import caught_up
from .places import Places, checkpoint_of
from .tables import History, Kept, Tables

#: Workflows looked at in one step.
PAGE_WORKFLOWS = 200
#: Checkpoints expired in one batch: their records are read for the ids of their events, some KB each.
BATCH_CHECKPOINTS = 1_000
#: A checkpoint that came so long ago has been judged by the recovery role.
SETTLED_US = 3600 * 1_000_000
#: Wait between two steps, so that the tables stay free for others.
_PAUSE_S = 0.05
#: Workflows without a sound checkpoint that are named in the log, each pass; the metric counts all.
_NAMED_MAX = 20


@dataclass(frozen=True, slots=True)
class Choice:
    """What of one workflow is beyond retention: (checkpoint, reason). `spoiled`: it is live and none of what it has may
    be restored from, so that nothing is taken away until somebody has looked."""

    over: Sequence[tuple[Kept, str]] = ()
    spoiled: bool = False


def choose(history: History, limits: Limits, now_us: int) -> Choice:
    """The rule. `checkpoints` are newest first.

    Of a live workflow the newest sound checkpoint stays whatever its age and number, and so does the newest of which
    nothing bad was heard for a while: a verdict on what came just now may still be on its way.
    """
    kept = history.checkpoints
    sound = [c for c in kept if c.sound]
    if history.live and not sound:
        return Choice(spoiled=any(not c.evidence for c in kept))
    settled = next((c for c in sound if c.created_us < now_us - SETTLED_US), None)
    spared = {c.checkpoint_id for c in (*sound[:1], settled) if c is not None} if history.live else set()
    oldest_us = now_us - limits.age_ms_max * 1000
    over: list[tuple[Kept, str]] = []
    for number, checkpoint in enumerate(kept):
        if checkpoint.checkpoint_id in spared:
            continue
        if number >= limits.checkpoints_max:
            over.append((checkpoint, f"max_checkpoints: {limits.checkpoints_max}"))
        elif checkpoint.created_us < oldest_us:
            over.append((checkpoint, f"max_age: {limits.age_ms_max // 86_400_000} days"))
    return Choice(over)


@dataclass(slots=True)
class _Pass:
    """What one pass has seen so far."""

    ends: Mapping[int, int]
    batch: list[tuple[Kept, str]] = field(default_factory=list)
    held: int = 0
    spoiled: int = 0


class Retention:
    """Finds what is beyond retention, and says so in the log. One thread."""

    def __init__(
        self, tables: Tables, places: Places, archive: Archive | None, codec: Codec, desk: Desk, limits: Limits
    ) -> None:
        self._tables = tables
        self._places = places
        self._archive = archive
        self._codec = codec
        self._desk = desk
        self._limits = limits

    def steps(self) -> Generator[float, None, None]:
        """One pass over all workflows, in steps; each yields the seconds to wait before the next. RetriableError when
        what it needs is away; nothing is lost by it, the next pass sees the same rows."""
        # A rejection that is in the log, but not in the tables, would make the last sound checkpoint look like another.
        yield from caught_up(self._places, self._tables)
        seen = _Pass(self._archive_ends())
        after = "00000000-0000-0000-0000-000000000000"
        # A workflow's surplus beyond this is found by the passes that follow.
        checkpoints_max = self._limits.checkpoints_max + EXPIRED_MAX
        while page := self._tables.histories(after=after, workflows=PAGE_WORKFLOWS, checkpoints_max=checkpoints_max):
            after = page[-1].workflow_id
            for history in page:
                self._choose(history, seen)
            while len(seen.batch) >= BATCH_CHECKPOINTS:
                part, seen.batch = seen.batch[:BATCH_CHECKPOINTS], seen.batch[BATCH_CHECKPOINTS:]
                self._expire(part, seen)
                yield _PAUSE_S
            yield _PAUSE_S
        self._expire(seen.batch, seen)
        self._places.rest()
        telemetry.CHECKPOINTS_HELD.set(seen.held)
        telemetry.WORKFLOWS_SPOILED.set(seen.spoiled)
        if seen.held:
            telemetry.log().warning(
                "retention waits for the archive", checkpoints=seen.held, archive_ends=dict(seen.ends)
            )

    def _choose(self, history: History, seen: _Pass) -> None:
        choice = choose(history, self._limits, self._desk.now_us())
        if choice.spoiled:
            seen.spoiled += 1
            if seen.spoiled <= _NAMED_MAX:
                telemetry.log().warning(
                    "no checkpoint can be restored",
                    workflow_id=history.workflow_id,
                    checkpoints=len(history.checkpoints),
                    hint="kintsugi checkpoints list --rejected --workflow ID",
                )
        for checkpoint, reason in choice.over:
            if checkpoint.offset < seen.ends.get(checkpoint.partition, 0):
                seen.batch.append((checkpoint, reason))
            else:
                seen.held += 1

    def _expire(self, batch: Sequence[tuple[Kept, str]], seen: _Pass) -> None:
        """Read the records, which proves that they are there, and write the facts."""
        reasons = {checkpoint.place: reason for checkpoint, reason in batch}
        ids = {checkpoint.place: checkpoint.checkpoint_id for checkpoint, _ in batch}
        groups: dict[tuple[int, str, str], list[CheckpointCreated]] = defaultdict(list)
        for place, lies in self._places.read(sorted(reasons)):
            record = checkpoint_of(self._codec, lies)
            if record is None or record.checkpoint_id != ids[place]:
                seen.held += 1  # it is not archived as what its row says: it stays
                continue
            groups[place[0], record.workflow_id, reasons[place]].append(record)
        for (partition, _, reason), records in groups.items():
            for fact in expired(records, reason, self._desk.now_us()):
                self._desk.append(fact, partition)
        self._desk.flush()
        for (_, _, reason), records in groups.items():
            telemetry.CHECKPOINTS_EXPIRED.labels(reason.split(":")[0]).inc(len(records))

    def _archive_ends(self) -> dict[int, int]:
        """Where the archive of each partition ends. A damaged end covers nothing until somebody has looked at it."""
        ends: dict[int, int] = {}
        if self._archive is None:
            return ends
        for partition in self._places.bounds():
            try:
                ends[partition] = self._archive.end_of(partition)
            except ArchiveDamagedError as error:
                telemetry.log().error("archive damaged", partition=partition, error=error)
                ends[partition] = 0
        return ends
