"""`kintsugi replay`: the engine and the projections over exactly the records of a range, with nothing that can write.

No producer can be reached from here: an import contract holds it, and the process that replays is one of its own
(`ops.replaying`). The same plan gives the same document, byte for byte: offsets are fixed before, partitions follow
each other, and nothing asks for the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from consumers.history import History
from consumers.log_reader import LogReader
from consumers.policies import Applied, read_policies
from engine.effects import PRODUCER, Effect
from engine.events import Delivered
from engine.inforce import CONTROL
from engine.inspection import Inspector
from engine.policy import Policy
from projections.generations import connected
from schemas.admission import admit
from schemas.archive_format import Gap
from schemas.canonical import STATE_SIZE_BYTES_MAX
from schemas.codec import Codec, Unknown
from schemas.errors import PoisonError
from schemas.keystore import keys_optional, open_keystore
from schemas.log_record import LogRecord
from schemas.records import Command
from schemas.registry import Registry
from schemas.topics import EVENTS

from .archive import history_of
from .replay_commands import CommandComparison, Window, in_order, read
from .replay_compare import WRONG
from .replay_engine import Engine
from .replay_inject import Injection, inject
from .replay_range import Range, ReplayError
from .replay_scratch import Scratch
from .replay_shown import Shown, at, decision, difference, effect, engine_state
from .replay_tables import Tables
from .stack import Addresses

#: Records of one partition that are in memory at once where engine and log must be held against each other: about 2 GB.
OWN_RECORDS_MAX = 500_000
#: Called with (what is being done, records done, records in all).
Progress = Callable[[str, int, int], None]
#: Called with each step, where there is somebody who looks at them.
Look = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a replay depends on."""

    ranges: tuple[Range, ...]
    facts: str
    workflow_id: str | None = None
    injections: tuple[str, ...] = ()
    seed: int = 0
    policy: str | None = None
    ran_with: str | None = None
    archived: bool = True
    accept_gap: bool = False
    missing: tuple[Gap, ...] = ()
    #: Scratch schema that gets the rows.
    into: str | None = None
    #: What people may be shown by the policy of today.
    states: bool = True
    state_size_bytes_max: int = STATE_SIZE_BYTES_MAX
    redact: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it is written down."""
        return {"topic": EVENTS, **asdict(self)}


@dataclass(slots=True)
class Tally:
    """What a replay met."""

    records: int = 0
    before: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


class Replay:
    """One replay."""

    def __init__(
        self,
        plan: Plan,
        injections: Sequence[Injection],
        *,
        history: History,
        codec: Codec,
        applied: Applied,
        ran_with: Policy,
        policy: Policy | None,
        inspector: Inspector,
        shown: Shown,
        look: Look | None = None,
        scratch: Scratch | None = None,
        sent: CommandComparison | None = None,
    ) -> None:
        """`ran_with`: the recovery role's policy where none was applied. `policy`: the one that decides instead.
        `sent`: holds commands against those that were sent."""
        self.tally = Tally()
        self._plan = plan
        self._injections = injections
        self._history = history
        self._codec = codec
        self._applied = applied
        self._ran_with = ran_with
        self._policy = policy
        self._inspector = inspector
        self._shown = shown
        self._look = look
        self._scratch = scratch
        self._sent = sent
        self._tables = Tables(scratch)
        self._engines: list[Engine] = []
        self._brought: dict[str, Any] = {}
        self._done = 0

    def run(self, progress: Progress) -> dict[str, Any]:
        """Replay every range; the document of what came of it."""
        total = sum(r.end - r.first for r in self._plan.ranges)
        for range_ in self._plan.ranges:
            self._partition(range_, lambda done: progress("records", done, total))
        self._tables.close()
        progress("records", total, total)
        return self._document()

    def _partition(self, range_: Range, moved: Callable[[int], None]) -> None:
        own = self._plan.facts == "own"
        engine = Engine(
            range_.partition,
            self._ran_with,
            whole=range_.whole,
            gap_end=range_.gap_end,
            own=own,
            fixed=self._policy,
            injections=self._injections,
            watch=self._watch,
            sent=self._sent,
        )
        self._engines.append(engine)
        before = self._applied.before(range_.partition, range_.first)
        if before is not None:
            engine.before(before.text, before.sequence)
        for event in self._events(self._records(range_.partition, range_.first, range_.start, moved)):
            self.tally.before += 1
            self._fold(event, inside=False)
            engine.warm(event)
            if self._look is not None:
                self._bring(event)
        records = self._records(range_.partition, range_.start, range_.end, moved)
        if own or any(i.kind != "kill" and i.kind != "fail" for i in self._injections):
            events = list(self._changed(records))
            engine.begin(e.record.event_id for e in events if e.record.producer == PRODUCER)
        else:
            events = self._events(records, inside=True)  # type: ignore[assignment]
            engine.begin()
        for event in events:
            engine.event(event)
        engine.finish()
        self._done += range_.end - range_.first

    def _records(self, partition: int, start: int, end: int, moved: Callable[[int], None]) -> Iterator[LogRecord]:
        on_gap = self._known_gap if self._plan.accept_gap else None
        for number, record in enumerate(self._history.read({partition: (start, end)}, on_gap=on_gap)):
            if number % 5_000 == 0:
                moved(self._done + number)
            yield record

    def _known_gap(self, gap: Gap) -> None:
        for known in self._plan.missing:
            if known.partition == gap.partition and known.first <= gap.first and gap.next <= known.next:
                return
        raise ReplayError(
            "missing",
            f"partition {gap.partition}: offsets {gap.first} to {gap.next - 1} went missing meanwhile: {gap.reason}",
            hint="run it again",
        )

    def _changed(self, records: Iterator[LogRecord]) -> Iterator[Delivered]:
        found: list[LogRecord] = []
        for record in records:
            found.append(record)
            if len(found) > OWN_RECORDS_MAX:
                raise ReplayError(
                    "size",
                    f"partition {record.partition}: more than {OWN_RECORDS_MAX} records to be changed or held together",
                    hint="a shorter range, or --facts recorded without --inject",
                )
        partition = [i for i in self._injections if found and i.place and i.place[0] == found[0].partition]
        newest: tuple[int, int] = (-1, 0)
        for item in inject(found, partition, self._codec, self._plan.seed):
            for event in self._events(iter((item.record,)), inside=True):
                # What comes later than it stands in the log stands where it comes now.
                place = newest if item.moved and newest[0] >= event.offset else (event.offset, event.timestamp_us)
                newest = max(newest, place)
                yield _moved(event, place)

    def _events(self, records: Iterator[LogRecord], *, inside: bool = False) -> Iterator[Delivered]:
        codec, deliver, tally = self._codec, self._inspector.deliver, self.tally
        wanted = None if self._plan.workflow_id is None else self._plan.workflow_id.encode()
        for found in records:
            if wanted is not None and found.key != wanted and codec.kind_of(found.value) not in CONTROL:
                continue
            tally.records += inside
            try:
                record = admit(codec, found.key, found.value)
                if isinstance(record, Command):
                    raise PoisonError("wrong_topic", "a command in the event topic")
            except PoisonError as error:
                if inside:
                    tally.set_aside[error.reason] += 1
                continue
            if isinstance(record, Unknown):
                if inside:
                    tally.unknown[record.name] += 1
                continue
            yield deliver(record, found.partition, found.offset, found.timestamp_ms * 1000)

    def _watch(self, event: Delivered, effects: Sequence[Effect]) -> None:
        """Each event of the range, when the engine has folded it."""
        self._fold(event, inside=True)
        if self._look is not None:
            self._step(event, effects)

    def _fold(self, event: Delivered, *, inside: bool) -> None:
        # Rows that people look at hide what they may not see; those that are counted are seen by nobody.
        self._tables.add(event if self._scratch is None else self._shown.hidden(event), inside=inside)

    def _step(self, event: Delivered, effects: Sequence[Effect]) -> None:
        assert self._look is not None
        engine, workflow_id = self._engines[-1], event.record.workflow_id
        key = f"{workflow_id}|engine"
        before, before_state = self._brought.get(key), self._brought.get(workflow_id)
        after = engine_state(engine.state(workflow_id))
        self._brought[key] = after
        self._bring(event, engine=False)
        self._look(
            {
                "place": f"{event.partition}:{event.offset}",
                "at": at(event.timestamp_us),
                "event": type(event.record).__name__,
                "record": self._shown.record(event),
                "engine": {"before": before, "after": after},
                "state": {"before": before_state, "after": self._brought.get(workflow_id)},
                "effects": [effect(e) for e in effects],
            }
        )

    def _bring(self, event: Delivered, *, engine: bool = True) -> None:
        workflow_id = event.record.workflow_id
        if engine:
            self._brought[f"{workflow_id}|engine"] = engine_state(self._engines[-1].state(workflow_id))
        brought = self._shown.state(event)
        if brought is not None:
            self._brought[workflow_id] = brought

    def _document(self) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        commands: Counter[str] = Counter()
        for engine in self._engines:
            counts.update(engine.compared.counts)
            commands.update(engine.commands)
        compared = [e.compared for e in self._engines]
        facts = [d for c in compared for d in sorted(c.differences, key=lambda d: d.offset)]
        of_commands = Counter() if self._sent is None else self._sent.counts
        of_commands_shown = () if self._sent is None else self._sent.differences
        told = (*WRONG, "unproven")
        return {
            "replay": self._plan.document(),
            "records": self.tally.records,
            "records_before": self.tally.before,
            "set_aside": dict(sorted(self.tally.set_aside.items())),
            "unknown": dict(sorted(self.tally.unknown.items())),
            "not_applicable": [
                {"place": f"{e.partition}:{offset}", "error": error}
                for e in self._engines
                for offset, error in e.not_applicable
            ],
            "left_out": sum(e.left_out for e in self._engines),
            "verdicts": dict(sorted(counts.items())),
            "agrees": not any(found[verdict] for found in (counts, of_commands) for verdict in WRONG),
            "decisions": [decision(d) for c in compared for d in sorted(c.decisions, key=lambda d: d.offset)],
            "differences": [difference(d) for d in facts if d.verdict in told],
            "commands": dict(sorted(commands.items())),
            "commands_compared": dict(sorted(of_commands.items())),
            "command_differences": [
                difference(d) for d in in_order(of_commands_shown) if d.verdict not in ("open", "reworded")
            ],
            "kills": [
                {"place": f"{e.partition}:{k.offset}", **_without(k, "offset")} for e in self._engines for k in e.kills
            ],
            "injected": [{"spec": i.text, "applied": i.applied} for i in self._injections],
            "tables": self._tables.document(),
            "not_projected": {"records": self._tables.refused_count, "shown": self._tables.refused},
            **({} if self._scratch is None else {"into": self._scratch.document()}),
        }


def replay(
    stack_at: Addresses,
    plan: Plan,
    injections: Sequence[Injection],
    *,
    ran_with: Policy,
    policy: Policy | None,
    shown: Shown,
    progress: Progress,
    look: Look | None = None,
    commands: Window | None = None,
) -> dict[str, Any]:
    """Replay what the plan says; the document. RetriableError when a server is away, ReplayError for the plan."""
    keystore = open_keystore(objects_url=stack_at.objects)
    inspector = Inspector(
        None if keystore is None else keystore.get,
        keys_optional=keys_optional(),
        verify=(policy or ran_with).corruption.verify_on_arrival,
    )
    with ExitStack() as opened:
        registry = opened.enter_context(Registry(stack_at.registry))
        log, codec = opened.enter_context(LogReader(stack_at.kafka)), Codec(registry)
        sent = None
        if commands is not None:
            sent = CommandComparison(commands, read(log, codec, commands, plan.workflow_id))
        scratch = None
        if plan.into is not None:
            scratch = Scratch(opened.enter_context(connected(stack_at.postgres)), plan.into)
        return Replay(
            plan,
            injections,
            history=history_of(stack_at, log, archived=plan.archived),
            codec=codec,
            applied=read_policies(log),
            ran_with=ran_with,
            policy=policy,
            inspector=inspector,
            shown=shown,
            look=look,
            scratch=scratch,
            sent=sent,
        ).run(progress)


def _moved(event: Delivered, place: tuple[int, int]) -> Delivered:
    if place[0] == event.offset:
        return event
    return Delivered(event.record, event.partition, place[0], place[1], event.rejection, event.state, event.unreadable)


def _without(value: Any, name: str) -> dict[str, Any]:
    return {key: item for key, item in asdict(value).items() if key != name}
