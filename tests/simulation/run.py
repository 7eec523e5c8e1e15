"""One seed: the real loop, recovery and projector on a broker and a database in memory, with faults, then healed.

Processes die at any call and at any crash point, or stand still while others take their partitions (and then go on
from where they stood); answers are late, lost or false; broker and database go away; records come twice. Afterwards
nothing fails any more, and all must come to rest: `check` says what is not as it must be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, cast

from consumers import clock, deadline, loop, outbox, projector, recovery, slots, snapshots, telemetry
from consumers.clock import BrokerClock
from consumers.loop import Loop
from consumers.outbox import Outbox
from consumers.projector import Projector
from consumers.recovery import Recovery
from consumers.snapshots import Snapshots
from engine.invariants import GRACE_US
from engine.policy import default_policy
from engine.testing import START_US
from schemas.codec import Codec
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records import Command, Record
from schemas.topics import COMMANDS, EVENTS

from .checks import check, tables_differ
from .cluster import Client, Cluster, Group, Sender, Tokens, Waiting
from .stores import Connection, Database, Shelf
from .workflows import Workflow

#: Things that happen while there are faults, and the most that may until all is at rest.
TURNS = 150
HEALING_TURNS_MAX = 4_000
MEMBERS = 2
WORKFLOWS = 4
#: A process is away for so many turns.
AWAY_TURNS_MAX = 12
#: Things that others do while a process stands still.
FROZEN_TURNS_MAX = 30
CRASH_CHANCE = 0.004
FREEZE_CHANCE = 0.003
POLICY = default_policy()


class Died(BaseException):
    """The process was killed here."""


class Quiet:
    """A logger."""

    def info(self, *_: Any, **__: Any) -> None:
        """Say nothing."""

    warning = error = info


class Member:
    """A process: one role's loop, from start to death."""

    def __init__(self, sim: Simulation, role: str, group: Group) -> None:
        self.sim, self.role, self.group = sim, role, group
        #: Partition to the group's position when it was taken.
        self.taken_at: dict[int, int] = {}
        self.frozen = False
        self.loop: Loop | None = None
        self.back_at = 0

    def start(self) -> None:
        """Start the process."""
        sim = self.sim
        sim.starting = self
        self.taken_at.clear()
        broker_clock = BrokerClock()
        self.sender: Outbox | None = None
        handler: Any
        if self.role == "recovery":
            self.sender = Outbox({}, broker_clock)
            shelf = cast(Snapshots, sim.shelf)
            handler = Recovery(POLICY, cast(Codec, sim.codec), self.sender, shelf)
        else:
            handler = Projector(Connection(sim.database, self), cast(Codec, sim.codec))
        self.loop = Loop(self.role, EVENTS, {"group.protocol": sim.protocol}, handler, broker_clock)
        one = self.loop
        self.client.subscribe([EVENTS], on_assign=one._on_assign, on_revoke=one._on_revoke, on_lost=one._on_lost)

    @property
    def client(self) -> Client:
        """Its consumer."""
        assert self.loop is not None
        return cast(Client, self.loop._consumer)

    def turn(self) -> None:
        """One round of the loop; it may be the last."""
        try:
            if self.loop is None:
                self.start()
            assert self.loop is not None
            self.loop._round()
        except Died:
            self.sim.strikes("killed", 1)
            self.end()

    def stop(self) -> None:
        """Stop in an orderly way."""
        if self.loop is None:
            return
        try:
            self.loop._hand_over(list(self.loop._slots))
            if self.sender is not None:
                self.sender.close()
        except Died:
            self.sim.strikes("killed", 1)
        self.end()

    def end(self) -> None:
        """The process is gone, and with it all that it had not sent."""
        if self.loop is not None:
            self.client.close()
            if self.sender is not None:
                cast(Sender, self.sender._producer).purge()
        self.loop = None
        self.back_at = self.sim.turns + self.sim.rng.randint(1, AWAY_TURNS_MAX)

    def sends(self, value: bytes) -> None:
        """A record is handed to its producer."""
        self.sim.sent(self, value)


class Simulation:
    """Everything there is in one run."""

    def __init__(self, seed: int, slips: frozenset[str] = frozenset()) -> None:
        self.rng = Random(seed)
        self.now_us = START_US
        self.broker_away = False
        self.faults = True
        self.turns = 0
        #: Faults that happened, so that no run passes because nothing did.
        self.happened: Counter[str] = Counter()
        self.findings: list[str] = []
        self.protocol = self.rng.choice(("consumer", "classic"))
        self.cluster = Cluster(self)
        self.codec = Tokens()
        self.database = Database(self, slips)
        self.shelf = Shelf(self)
        self.groups = {"recovery": Group(), "projector": Group()}
        self.members = [Member(self, role, self.groups[role]) for role in self.groups for _ in range(MEMBERS)]
        self.starting = self.members[0]
        self._running: list[Member] = []
        self._ids = 0
        self._again: list[Record] = []
        self.workflows: list[Workflow] = []
        self.pills = 0

    # What `engine.testing.Service` asks of its world.

    def new_id(self) -> str:
        """The next id."""
        self._ids += 1
        return derive_id("simulation", "id", self._ids)

    def append(self, record: Record) -> None:
        """A service writes; its producer may not hear of it and write again."""
        self._write(record)
        if self.strikes("event_repeated", 0.03):
            self._again.append(record)

    def settle(self) -> None:
        """The engine reacts when its turn comes."""

    def commands(self, workflow_id: str, start: int) -> list[Command]:
        """Commands to a workflow, from the one of this number on."""
        found = [self.codec.decode(e.value()) for log in self.cluster.log(COMMANDS) for e in log]
        return [c for c in found if isinstance(c, Command) and c.workflow_id == workflow_id][start:]

    # What happens to clients.

    def strikes(self, what: str, chance: float) -> bool:
        """Whether a fault happens now; with certainty is no fault, but counted."""
        if chance < 1 and (not self.faults or self.rng.random() >= chance):
            return False
        self.happened[what] += 1
        return True

    def touch(self, member: Any) -> None:
        """A process does I/O, or passes a crash point."""
        if not self.faults:
            return
        chance = self.rng.random()
        if chance < CRASH_CHANCE:
            raise Died
        if chance < CRASH_CHANCE + FREEZE_CHANCE and not any(m.frozen for m in self.members):
            self._freeze(member)

    def _freeze(self, member: Member) -> None:
        self.strikes("frozen", 1)
        member.frozen = True
        if member.loop is not None:
            member.group.expel(member.client, self.rng)
        running, self._running = self._running, []
        for _ in range(self.rng.randint(1, FROZEN_TURNS_MAX)):
            self.turn()
        self._running = running
        member.frozen = False

    def crash_point(self, name: str) -> None:
        """Stands for `consumers.crash.crash_point`."""
        if self._running:
            self.touch(self._running[-1])

    def sent(self, member: Member, value: bytes) -> None:
        """What was caused by records below the group's position when a partition was taken is not sent again."""
        if not value.isdigit():
            return
        record = self.codec.decode(value)
        cause = self._places.get(record.causation_id)
        if cause is not None and cause[1] < member.taken_at.get(cause[0], -1):
            self.findings.append(f"done again: {type(record).__name__} {record.event_id} of {cause}")

    @property
    def _places(self) -> dict[str | None, tuple[int, int]]:
        """Where each event is in the log; the last place of those that are there twice."""
        for number, log in enumerate(self.cluster.log(EVENTS)):
            for entry in log[self._noted[number] :]:
                if entry.value().isdigit():
                    self._where[self.codec.decode(entry.value()).event_id] = number, entry.offset()
            self._noted[number] = len(log)
        return self._where

    def run(self) -> list[str]:
        """Faults for a while, then none; what is wrong."""
        self._where: dict[str | None, tuple[int, int]] = {}
        self._noted: Counter[int] = Counter()
        with self._in_place():
            self.workflows = [Workflow(self) for _ in range(WORKFLOWS)]
            for _ in range(TURNS):
                self.turn()
                if self.findings:
                    return self.findings
            self._heal()
        return self.findings or check(self)

    def turn(self) -> None:
        """One thing happens."""
        self.turns += 1
        self.now_us += self.rng.randint(1, 20_000)
        chance = self.rng.random()
        if chance < 0.25:
            self.rng.choice(self.workflows).act()
        elif chance < 0.9 or not self.faults:
            self._let_run(self.rng.choice(self.members))
        else:
            self.rng.choice(self._troubles)()

    def _let_run(self, member: Member, action: Callable[[Member], None] = Member.turn) -> None:
        if member.frozen or self.turns < member.back_at:
            return
        self._running.append(member)
        try:
            action(member)
        except Exception as error:
            self.findings.append(f"{member.role} ended: {type(error).__name__}: {error}")
        finally:
            self._running.pop()

    @property
    def _troubles(self) -> list[Callable[[], None]]:
        return [
            self._wait,
            self._wait,
            self._switch_broker,
            self._switch_database,
            self._repeat,
            self.cluster.land,
            self._poison,
            self._regroup,
            lambda: self._let_run(self.rng.choice(self.members), Member.stop),
            lambda: self.findings.extend(tables_differ(self)),
        ]

    def _wait(self) -> None:
        self.now_us += self.rng.randint(0, 10_000_000)

    def _switch_broker(self) -> None:
        self.broker_away = not self.broker_away and self.strikes("broker_away", 0.5)

    def _switch_database(self) -> None:
        self.database.away = not self.database.away and self.strikes("database_away", 0.5)

    def _repeat(self) -> None:
        if self._again:
            self._write(self._again.pop())

    def _poison(self) -> None:
        self.pills += 1
        partition = self.rng.randrange(2)
        self.cluster.write(Waiting(EVENTS, partition, b"key", b"junk", [], None))

    def _regroup(self) -> None:
        self.strikes("rebalance", 1)
        self.rng.choice(list(self.groups.values())).rebalance(self.rng)

    def _write(self, record: Record) -> None:
        key = record.workflow_id.encode()
        self.cluster.write(Waiting(EVENTS, -1, key, self.codec.encode(record), headers_for(record), None))

    def _heal(self) -> None:
        self.faults = self.broker_away = self.database.away = False
        self.cluster.ghosts.clear()
        quiet_since_us, written = self.now_us, self.cluster.serial
        for _ in range(HEALING_TURNS_MAX):
            self.turns += 1
            # While nothing happens the time until it counts as rest need not be gone through in small steps.
            self.now_us += 200_000 if self.now_us == quiet_since_us else 2_500_000
            acted = [workflow.act() for workflow in self.workflows]
            for member in self.members:
                self._let_run(member)
            if self.findings:
                return
            if any(acted) or written != self.cluster.serial or not self._caught_up():
                quiet_since_us, written = self.now_us, self.cluster.serial
            elif self.now_us - quiet_since_us > GRACE_US + 5_000_000:
                return
        self.findings.append(f"not at rest {HEALING_TURNS_MAX} turns after the last fault")

    def _caught_up(self) -> bool:
        ends = {number: len(log) for number, log in enumerate(self.cluster.log(EVENTS))}
        tables = {p: found for p, (found, _) in self.database.positions.items()}
        return all(
            not end or (self.groups["recovery"].committed.get(p) == end and tables.get(p) == end)
            for p, end in ends.items()
        )

    # Stands for the module `time`.

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_us / 1_000_000

    perf_counter = monotonic

    def monotonic_ns(self) -> int:
        """Nanoseconds."""
        return self.now_us * 1000

    time_ns = monotonic_ns

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.now_us += int(seconds * 1_000_000)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put this world in the place of clock, chance, client library and log."""
        changes: list[tuple[Any, str, Any]] = [
            *((module, "time", self) for module in (clock, deadline, loop, recovery, slots, snapshots)),
            *((module, "random", self.rng) for module in (recovery, slots)),
            *((module, "crash_point", self.crash_point) for module in (loop, recovery, projector)),
            (loop, "Consumer", lambda s: Client(self.cluster, self.starting.group, self.starting, s)),
            (outbox, "Producer", self._sender),
            # Rounds of few records, so that some wait while others are folded, and more come in meanwhile.
            (recovery, "WORK_RECORDS_MAX", self.rng.choice((1, 3, 500))),
            (recovery, "WORK_SLICE", self.rng.choice((1, 2, 16))),
            (telemetry, "log", Quiet),
        ]
        before = [(module, name, getattr(module, name)) for module, name, _ in changes]
        for module, name, value in changes:
            setattr(module, name, value)
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)

    def _sender(self, _: Any) -> Sender:
        return Sender(self.cluster, self._running[-1] if self._running else self.starting)
