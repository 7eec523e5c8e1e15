"""The engine over the records of one partition, as the recovery role runs it, with nothing behind it that could write.

Where the engine's own facts come from is chosen. `recorded`: from the log, as they were written; each decision is made
in the situation that was there. `own`: what the engine asks for now takes their place, at the place where it was
recorded if it was, else right behind its cause; timers that nobody recorded fire when time passes them. What services,
people and the coordinator did stays as recorded either way.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from consumers.memory import Memory
from engine.decide import decide
from engine.effects import PRODUCER, Append, Coordinate, Effect
from engine.events import Delivered
from engine.fold import evolve
from engine.inforce import CONTROL
from engine.policy import Policy
from engine.snapshot import dump, load
from engine.state import WorkflowState
from engine.timers import due
from schemas.records import Command, Record
from schemas.records.events import PolicyChanged, StepStarted, TimerFired

from .replay_commands import CommandComparison
from .replay_compare import Comparison
from .replay_inject import Injection, failure_of
from .replay_range import ReplayError

_CONTROL = frozenset(CONTROL)
#: Facts that may follow from one record, one from another; more feed themselves.
FACTS_PER_RECORD_MAX = 10_000
#: Timers fired between two records of the log.
TIMERS_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A death of the engine: whether it came back with the same states and asked for the same again."""

    offset: int
    effects: int
    same_states: bool
    same_effects: bool


class _Untimed(Memory):
    """States without timers: where facts are folded as they were recorded, that a timer fired is one of them."""

    def keep(self, state: WorkflowState) -> None:
        """Store a state that was folded."""
        if state.ended_at_us:
            super().keep(state)
        elif state.workflow_id not in self.ended:
            self.states[state.workflow_id] = state


#: Called with each event that is folded in the range, and what follows from it.
Watch = Callable[[Delivered, Sequence[Effect]], None]


class Engine:
    """States, timers and what is in force in one partition."""

    def __init__(
        self,
        partition: int,
        policy: Policy,
        *,
        whole: bool,
        gap_end: int = 0,
        own: bool = False,
        fixed: Policy | None = None,
        injections: Sequence[Injection] = (),
        watch: Watch | None = None,
        sent: CommandComparison | None = None,
    ) -> None:
        """`fixed`: the policy that decides, whatever the log says was in force. `whole`: folding begins at 0.
        `gap_end`: before it, records are missing."""
        self.partition = partition
        self._memory = Memory if own else _Untimed
        self.memory = self._memory(partition, fixed or policy, effects_from=0, next_offset=0)
        self.compared = Comparison(partition)
        self.commands: Counter[str] = Counter()
        self.kills: list[Kill] = []
        self.not_applicable: list[tuple[int, str]] = []
        #: Records of services that a failing command took with it, and facts that do not follow any more.
        self.left_out = 0
        self._whole = whole
        self._gap_end = gap_end
        self._own = own
        self._fixed = fixed
        self._watch = watch
        self._sent = sent
        self._fails = [i for i in injections if i.kind == "fail"]
        self._kills = {i.place[1]: i for i in injections if i.kind == "kill" and i.place and i.place[0] == partition}
        self._recorded: Collection[str] = ()
        self._facts: dict[str, Record] = {}
        self._failed: set[str] = set()
        self._seen: set[str] = set()
        self._saved: tuple[bytes, list[str], dict[str, object]] | None = None
        self._since: list[Delivered] = []

    def before(self, text: str, sequence: int) -> None:
        """A policy that came into force before folding begins."""
        if self._fixed is None:
            self.memory.in_force.restore(text, sequence)

    def warm(self, event: Delivered) -> None:
        """A record before the range: folded for the state alone."""
        effects = self._fold(event, inside=False)
        self.compared.sees(event, inside=False, known=True)
        for effect in effects:
            if isinstance(effect, Append):
                self.compared.asks(effect.record, event, inside=False)
                if self._own:
                    self._facts[effect.record.event_id] = effect.record
        if self._own:
            self._seen.add(event.record.event_id)
        self.memory.evict()

    def begin(self, recorded: Iterable[str] = ()) -> None:
        """The range begins. `recorded`: ids of the facts that an engine wrote in it; asked for with `own` alone."""
        self._recorded = set(recorded)
        if self._kills:
            self._saved = dump(self._sorted()), list(self.memory.ended), self.memory.in_force.dump()

    def event(self, event: Delivered) -> None:
        """The next record of the range."""
        if self._sent is not None:
            self._sent.sees(event)
        if not self._own:
            record = event.record
            self.compared.sees(event, inside=True, known=self.knows(record.workflow_id))
            effects = self._fold(event)
            if effects or self._kills:  # nothing follows from most records
                self._follow(event, effects)
            return
        self._fire_until(event.timestamp_us)
        found = self._instead(event)
        if found is not None:
            self._settle(found)

    def finish(self) -> None:
        """The range has ended."""
        self.compared.finish(self.knows)
        if self._sent is not None:
            self._sent.finish(self.knows)

    def state(self, workflow_id: str) -> WorkflowState | None:
        """What the engine knows of a workflow now."""
        return self.memory.states.get(workflow_id)

    def knows(self, workflow_id: str) -> bool:
        """Whether the beginning of a workflow was folded."""
        if self._whole:
            return True
        state = self.memory.states.get(workflow_id)
        return state is not None and state.started_offset >= self._gap_end

    def _fold(self, event: Delivered, *, inside: bool = True) -> tuple[Effect, ...]:
        memory, record = self.memory, event.record
        if event.timestamp_us > memory.log_us:
            memory.log_us = event.timestamp_us
        effects: tuple[Effect, ...] = ()
        if type(record) in _CONTROL:
            if self._fixed is None or type(record) is not PolicyChanged:
                memory.take(event)
        else:
            state = memory.states.get(record.workflow_id) or memory.get(record.workflow_id, record.workflow_type)
            if self._own and inside and state is not None:
                # What is put in stands at its cause's place, which has been folded already.
                state.last_offset = min(state.last_offset, event.offset - 1)
            try:
                state = evolve(state, event)
                effects = decide(state, event, memory.in_force.policy, memory.in_force.breakers)
            except Exception as error:  # the recovery role sets such a record aside
                if inside:
                    self.not_applicable.append((event.offset, f"{type(error).__name__}: {error}"[:500]))
                return ()
            memory.keep(state)
        if inside and self._watch is not None:
            self._watch(event, effects)
        return effects

    def _follow(self, event: Delivered, effects: Sequence[Effect]) -> list[Delivered]:
        """Notes what follows; returns what has to be folded right behind."""
        if self._kills:
            self._since.append(event)
            if event.offset in self._kills:
                effects = self._killed(event, effects)
        next_: list[Delivered] = []
        for effect in effects:
            if isinstance(effect, Append):
                self.compared.asks(effect.record, event, inside=True)
                if self._own and effect.record.event_id not in self._facts:
                    self._facts[effect.record.event_id] = effect.record
                    if effect.record.event_id not in self._recorded:
                        next_.append(self._at(effect.record, event))
            elif not isinstance(effect, Coordinate):
                self.commands[type(effect.command).__name__] += 1
                if self._sent is not None:
                    self._sent.asks(effect.command, event)
                if self._own and self._fails_now(effect.command):
                    answer = failure_of(effect.command, self._detail(effect.command))
                    next_.append(self._at(answer, event))
        return next_

    def _settle(self, event: Delivered) -> None:
        waiting = deque([event])
        for _ in range(FACTS_PER_RECORD_MAX):
            if not waiting:
                self.memory.evict()
                return
            found = waiting.popleft()
            if found.record.producer != PRODUCER:  # the engine's own were asked for, and nobody recorded them
                self.compared.sees(found, inside=False, known=True)
            waiting.extend(self._follow(found, self._fold(found)))
        raise ReplayError("size", f"offset {event.offset}: more than {FACTS_PER_RECORD_MAX} facts follow from it")

    def _instead(self, event: Delivered) -> Delivered | None:
        """What stands at this place now; None when nothing does."""
        record = event.record
        self._seen.add(record.event_id)
        if record.producer == PRODUCER and type(record) is not TimerFired:
            mine = self._facts.get(record.event_id)
            caused_here = record.causation_id in self._seen
            self.compared.sees(event, inside=True, known=self.knows(record.workflow_id))
            if mine is None and (caused_here or self._whole):
                self.left_out += 1
                return None
            return event if mine is None or mine == record else self._at(mine, event)
        command_id = getattr(record, "command_id", None)
        run_id = getattr(record, "step_run_id", None)
        if command_id in self._failed or run_id in self._failed:
            if type(record) is StepStarted:
                self._failed.add(record.step_run_id)
            self.left_out += 1
            return None
        return event

    def _fire_until(self, now_us: int) -> None:
        """Timers that pass before the next record, as far as nobody recorded that they did."""
        for _ in range(TIMERS_MAX):
            due_us = self.memory.next_due_us
            if due_us is None or due_us >= now_us:
                return
            fired = False
            for state in self.memory.take_due(due_us, TIMERS_MAX):
                for fact in due(state, self.memory.in_force.policy, due_us):
                    if fact.event_id in self._recorded or not self.memory.first_fired(fact.event_id):
                        continue
                    fired = True
                    self._settle(Delivered(fact, self.partition, state.last_offset, due_us))
            if not fired and self.memory.next_due_us == due_us:
                return

    def _at(self, record: Record, event: Delivered) -> Delivered:
        return Delivered(record, self.partition, event.offset, event.timestamp_us)

    def _fails_now(self, command: Command) -> bool:
        if command.command_id in self._failed:
            return False
        for injection in self._fails:
            if injection.target in (command.command_id, type(command).__name__):
                injection.applied += 1
                self._failed.add(command.command_id)
                return True
        return False

    def _detail(self, command: Command) -> str:
        named = (i for i in self._fails if i.target in (command.command_id, type(command).__name__))
        return next((i.options.get("detail", "") for i in named), "")

    def _killed(self, event: Delivered, lost: Sequence[Effect]) -> Sequence[Effect]:
        """Start anew from what a snapshot holds, fold what came since, and ask again for what was lost."""
        assert self._saved is not None
        self._kills.pop(event.offset).applied += 1
        before = dump(self._sorted())
        states, ended, in_force = self._saved
        policy = self.memory.in_force.policy if self._fixed is None else self._fixed
        self.memory = self._memory(self.partition, policy, effects_from=0, next_offset=0)
        self.memory.restore(load(states), ended, in_force)
        if self._fixed is not None:
            self.memory.in_force.policy = self._fixed
        watch, self._watch = self._watch, None
        effects: Sequence[Effect] = ()
        for known in self._since:
            effects = self._fold(known)
        self._watch = watch
        self.kills.append(
            Kill(
                offset=event.offset,
                effects=len(effects),
                same_states=dump(self._sorted()) == before,
                same_effects=tuple(effects) == tuple(lost),
            )
        )
        if not self._kills:
            self._since.clear()
        return effects

    def _sorted(self) -> list[WorkflowState]:
        return [state for _, state in sorted(self.memory.states.items())]
