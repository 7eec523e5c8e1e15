"""What must be true in a simulation, whatever happened: I1 to I5 and I9 of the invariants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from engine.events import Delivered
from engine.inspection import Inspector
from engine.invariants import LogCheck
from engine.policy import default_policy
from projections.fold import Rows, fold
from schemas.records import Command
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS

from .cluster import PARTITIONS
from .stores import PLAN

if TYPE_CHECKING:
    from .run import Simulation

POLICY = default_policy()
#: Records of the engine that were asked for by a record of the log: which one stands in `causation_id`.
ENGINE = "kintsugi-engine"


def check(sim: Simulation) -> list[str]:
    """Everything that is wrong after a run."""
    return [*tables_differ(sim), *_log(sim), *_positions(sim), *_set_aside(sim)]


def events(sim: Simulation, partition: int, end: int | None = None) -> Iterator[Delivered]:
    """A partition's events as a consumer sees them."""
    inspector = Inspector(keep_states=False)
    for entry in sim.cluster.log(EVENTS)[partition][:end]:
        if entry.value().isdigit():
            record = sim.codec.decode(entry.value())
            yield inspector.deliver(record, partition, entry.offset(), entry.timestamp()[1] * 1000)


def tables_differ(sim: Simulation) -> list[str]:
    """I1, I3, I4: the rows are the fold of the log up to the stored positions, and these never went back."""
    wanted: Rows = {}
    for partition, (end, _) in sim.database.positions.items():
        fold(wanted, events(sim, partition, end or 0), PLAN)
    found = list(sim.database.rewinds)
    for name in sorted({*wanted, *sim.database.rows}):
        ours, theirs = wanted.get(name, {}), sim.database.rows.get(name, {})
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                found.append(f"{name} {key} is {theirs.get(key)!r:.300} and not {ours.get(key)!r:.300}")
    return found


def _log(sim: Simulation) -> Iterator[str]:
    """I2, I3, I5, I9: log and commands follow from the log."""
    log = LogCheck(POLICY)
    for partition in range(PARTITIONS):
        log.begins_at_zero(partition)
        for event in events(sim, partition):
            log.event(event)
    for entries in sim.cluster.log(COMMANDS):
        for entry in entries:
            record = sim.codec.decode(entry.value())
            assert isinstance(record, Command)
            log.command(record, entry.timestamp()[1] * 1000)
    for finding in log.findings(sim.now_us):
        yield f"{finding.rule}: {finding.detail} ({finding.subject_id})"


def _positions(sim: Simulation) -> Iterator[str]:
    """A position of recovery's group was committed only when all that follows from what is before it was in the log."""
    causes: dict[str, tuple[int, int]] = {}
    written: dict[str, tuple[int, Any]] = {}
    for topic in (EVENTS, COMMANDS):
        for log in sim.cluster.log(topic):
            for entry in log:
                if not entry.value().isdigit():
                    continue
                record = sim.codec.decode(entry.value())
                if topic == EVENTS:
                    causes.setdefault(record.event_id, (entry.partition(), entry.offset()))
                serial, _ = written.get(record.event_id, (entry.serial, record))
                written[record.event_id] = min(serial, entry.serial), record
    for serial, record in written.values():
        cause = causes.get(record.causation_id or "")
        if record.producer != ENGINE or cause is None:
            continue
        for partition, offset, before in sim.groups["recovery"].commits:
            if partition == cause[0] and offset > cause[1] and before < serial:
                yield f"{type(record).__name__} {record.event_id} of {cause} came after the position {offset}"
                break


def _set_aside(sim: Simulation) -> Iterator[str]:
    """What cannot be read is set aside by both roles, and nothing else."""
    pills = {
        (number, entry.offset())
        for number, log in enumerate(sim.cluster.log(EVENTS))
        for entry in log
        if not entry.value().isdigit()
    }
    if sim.database.dead != pills:
        yield f"the tables have the dead letters {sorted(sim.database.dead)} and not {sorted(pills)}"
    letters = sum(len(log) for log in sim.cluster.log(DEAD_LETTERS))
    if letters < len(pills):
        yield f"{letters} dead letters of {len(pills)} records that cannot be read"
