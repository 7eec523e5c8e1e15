"""Another policy on recorded history: what it would have decided at each decision, in the state of that moment.

The log is folded as it stands, so every state is the one that was there. Where an error's next repair was decided, the
candidate decides too. Up to the first decision that differs this is exact; what would have followed never happened, and
`engine.backtest_estimate` says what recorded tries tell of it. Errors that cannot be judged are set apart, with why.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.errors import FatalError
from schemas.records import Record
from schemas.records.events import RecoveryDecided

from .backtest_course import course_of
from .backtest_estimate import Course, Evidence
from .by_hand import LADDER
from .decide import decide
from .effects import Append
from .events import Delivered
from .fold import evolve
from .fold_recovery import UNANSWERED
from .inforce import InForce
from .people import POINT
from .policy import Policy
from .state import Case, Transition, WorkflowState
from .strategies import MANUAL, UNDO_STAGE

#: Errors of one backtest: about 1 KB each, also of those that end well and the same.
ERRORS_MAX = 200_000
#: Workflows that have ended whose late events are still told from those of new ones.
ENDED_MAX = 50_000
#: Workflows open at once: about 3 KB each.
OPEN_MAX = 500_000

BEGUN_BEFORE = "its workflow began before what was read"
NOT_REPRODUCED = "this engine decides otherwise by the policy that decided"
#: Fields of a decision that say what is done, and when.
ACTION = ("strategy", "command_type", "step_id", "execute_after_ms", "timeout_ms", "checkpoint_id", "stage")


class TooLargeError(FatalError):
    """There is more than fits the bounds of a backtest."""


class Made(NamedTuple):
    """One decision, as far as a comparison shows it."""

    number: int
    policy_version: str
    ladder: str
    rule: str
    rung: int
    strategy: str
    wait_ms: int
    cost: float


class Difference(NamedTuple):
    """The first decision of an error that the candidate would have made otherwise."""

    fields: tuple[str, ...]
    before: Made
    after: Made
    open_ms: int
    spent: float
    course: Course
    #: Of the policy in force; None where that is not the one that decided.
    course_before: Course | None


@dataclass(slots=True)
class ErrorRow:
    """An error, what was done about it, and where the candidate departs from that.

    `outcome`: recovered, closed (with its workflow), or open at the end. `by`: repair, people, or itself.
    """

    error_id: str
    workflow_id: str
    workflow_type: str
    step_id: str
    error_type: str
    error_code: str
    fingerprint: str
    partition: int
    offset: int
    opened_at_us: int
    decisions: int = 0
    strategies: tuple[str, ...] = ()
    cost: float = 0.0
    asked: int = 0
    outcome: str = "open"
    by: str = ""
    open_ms: int = 0
    #: Why it is not compared; empty when it is.
    apart: str = ""
    difference: Difference | None = None


@dataclass(slots=True)
class _Try:
    """A try under way: a strategy may take several decisions."""

    strategy: str
    first: bool
    began_us: int
    wait_ms: int
    fingerprint: str
    error_type: str
    answered: bool = False


@dataclass(slots=True)
class _Track:
    """An open error that is followed."""

    row: ErrorRow
    tried: frozenset[str] = frozenset()
    under_way: _Try | None = None
    people: bool = False
    #: Id of a decision that is expected to what each policy would decide.
    expected: dict[str, tuple[RecoveryDecided | None, RecoveryDecided | None, Course | None, Course | None, str]] = (
        field(default_factory=dict)
    )


class Backtest:
    """Takes events in log order per partition. Errors opened within [since_us, until_us) are compared."""

    def __init__(
        self, candidate: Policy, started_with: Policy, *, since_us: int, until_us: int, errors_max: int = ERRORS_MAX
    ) -> None:
        """`started_with`: what was in force before the first policy that was applied."""
        self._candidate = candidate
        self._started_with = started_with
        self._since_us, self._until_us = since_us, until_us
        self._errors_max = errors_max
        self._in_force: dict[int, InForce] = {}
        self._whole: set[int] = set()
        self._states: dict[str, WorkflowState] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._tracks: dict[str, _Track] = {}
        self._now_us: dict[int, int] = {}
        self.evidence = Evidence()
        self.rows: list[ErrorRow] = []
        self.events = 0
        #: Records that this engine cannot fold: as the recovery role, it leaves them out.
        self.not_applicable = 0
        #: Decisions that follow again from their policy, and versions of those whose policy is not known here.
        self.reproduced = 0
        self.unknown_versions: dict[str, int] = {}
        #: Policies that were in force where errors were decided.
        self.versions: dict[str, Policy] = {}

    def begins_at_zero(self, partition: int) -> None:
        """The partition is read from its first record on: no workflow of it began before."""
        self._whole.add(partition)

    def policy_before(self, partition: int, text: str, sequence: int) -> None:
        """What was applied last before the first record that is read."""
        self._in_force.setdefault(partition, InForce(self._started_with)).restore(text, sequence)

    def event(self, event: Delivered) -> None:
        """The next event of its partition. TooLargeError at a bound."""
        self.events += 1
        self._now_us[event.partition] = event.timestamp_us
        in_force = self._in_force.setdefault(event.partition, InForce(self._started_with))
        if in_force.take(event):
            return
        workflow_id = event.record.workflow_id
        if workflow_id in self._ended:
            return
        try:
            state = evolve(self._states.get(workflow_id), event)
            if state.transitions:
                self._follow(state, event)
                if any(t.kind in _PROPOSING for t in state.transitions):
                    self._propose(state, event, in_force)
        except TooLargeError:
            raise
        except Exception:  # the recovery role sets such a record aside and goes on
            self.not_applicable += 1
            return
        if state.ended_at_us:
            self._states.pop(workflow_id, None)
            self._ended[workflow_id] = None
            if len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)
            return
        self._states[workflow_id] = state
        if len(self._states) > OPEN_MAX:
            raise TooLargeError(f"more than {OPEN_MAX} workflows are open at once", hint=_SMALLER)

    def finish(self) -> list[ErrorRow]:
        """All errors, by the time they were opened. What is still open stays so."""
        for error_id, track in self._tracks.items():
            state = self._states.get(track.row.workflow_id)
            case = None if state is None else (state.cases or {}).get(error_id)
            self._close_row(track, case, self._now_us[track.row.partition])
        self._tracks.clear()
        self.rows.sort(key=lambda row: (row.opened_at_us, row.partition, row.offset, row.error_id))
        return self.rows

    def _follow(self, state: WorkflowState, event: Delivered) -> None:
        for t in state.transitions:
            if t.case is None:
                continue
            if t.kind == "opened":
                self._open(state, t.case, event)
            track = self._tracks.get(t.case.error_id)
            if track is not None:
                self._step(track, t.case, t, event)

    def _open(self, state: WorkflowState, case: Case, event: Delivered) -> None:
        if case.error_type == POINT or not self._since_us <= event.timestamp_us < self._until_us:
            return
        if len(self.rows) >= self._errors_max:
            raise TooLargeError(f"more than {self._errors_max} errors in that time", hint=_SMALLER)
        row = ErrorRow(
            error_id=case.error_id,
            workflow_id=state.workflow_id,
            workflow_type=state.workflow_type,
            step_id=case.step_id,
            error_type=case.error_type,
            error_code=case.error_code,
            fingerprint=case.fingerprint,
            partition=event.partition,
            offset=event.offset,
            opened_at_us=event.timestamp_us,
        )
        if state.started_offset < 0 and event.partition not in self._whole:
            row.apart = BEGUN_BEFORE
        self.rows.append(row)
        self._tracks[case.error_id] = _Track(row)

    def _step(self, track: _Track, case: Case, t: Transition, event: Delivered) -> None:
        if t.kind == "decided" and t.attempt is not None:
            self._decided(track, case, t.attempt.decision, event)
        elif t.kind == "ended" and t.attempt is not None:
            if t.detail == UNANSWERED:  # nobody did anything: nothing is learnt of the strategy
                track.under_way = None
            elif t.attempt.decision.stage.startswith(UNDO_STAGE) and track.under_way is not None:
                track.under_way.answered = True  # undoing is tried again by the policy's `compensation`
            else:
                self._end_try(track, t.outcome, event)
        elif t.kind == "staged" and track.under_way is not None:
            track.under_way.answered = True
        elif t.kind == "superseded":
            track.under_way = None
        elif t.kind in ("recovered", "closed"):
            self._over(track, case, t, event)

    def _over(self, track: _Track, case: Case, t: Transition, event: Delivered) -> None:
        row, tried = track.row, track.under_way
        waiting = t.attempt is not None and t.attempt.status in ("decided", "held")
        if tried is not None and not waiting:
            self._end_try(track, "succeeded" if t.kind == "recovered" else "failed", event)
        row.outcome = t.kind
        if t.kind == "recovered":
            row.by = "people" if track.people or case.interventions else "repair" if tried and not waiting else "itself"
        self._close_row(track, case, event.timestamp_us)
        del self._tracks[row.error_id]

    def _close_row(self, track: _Track, case: Case | None, now_us: int) -> None:
        track.row.open_ms = max(0, now_us - track.row.opened_at_us) // 1000
        if case is not None:
            track.row.asked = case.interventions

    def _end_try(self, track: _Track, outcome: str, event: Delivered) -> None:
        tried, track.under_way = track.under_way, None
        if tried is not None and not track.row.apart:
            work_ms = max(0, (event.timestamp_us - tried.began_us) // 1000 - tried.wait_ms)
            self.evidence.add(tried.fingerprint, tried.error_type, tried.strategy, tried.first, outcome, work_ms)

    def _decided(self, track: _Track, case: Case, made: RecoveryDecided, event: Delivered) -> None:
        row = track.row
        row.decisions += 1
        row.cost += made.cost
        row.strategies = (*row.strategies, made.strategy)
        if made.ladder == LADDER:
            track.people = True
            if track.under_way is not None and track.under_way.strategy != MANUAL:
                track.under_way = None  # a person took its place: how it would have ended is not known
            return
        tried = track.under_way
        if tried is not None and tried.answered and tried.strategy == made.strategy:
            tried.wait_ms += made.execute_after_ms
            tried.answered = False
        else:
            self._end_try(track, "failed", event)
            track.under_way = _Try(
                made.strategy,
                made.strategy not in track.tried,
                event.timestamp_us,
                made.execute_after_ms,
                case.fingerprint,
                case.error_type,
            )
            track.tried |= {made.strategy}
        self._compare(track, made)

    def _compare(self, track: _Track, made: RecoveryDecided) -> None:
        row = track.row
        expected = track.expected.pop(made.event_id, None)
        track.expected.clear()
        if row.apart or row.difference is not None:
            return
        if expected is None:
            row.apart = NOT_REPRODUCED
            return
        before, after, course_before, course, version = expected
        same_policy = made.policy_version == version
        if not same_policy:
            self.unknown_versions[made.policy_version] = self.unknown_versions.get(made.policy_version, 0) + 1
        elif before != made:
            row.apart = NOT_REPRODUCED
            return
        else:
            self.reproduced += 1
        if after is None or course is None:
            row.apart = "the candidate would decide at another moment"
            return
        fields = [name for name in (*ACTION, "parameters") if getattr(made, name) != getattr(after, name)]
        if made.cost != after.cost:
            fields.append("cost")
        if fields:
            spent = row.cost - made.cost
            opened = (made.occurred_at - row.opened_at_us) // 1000
            before_course = course_before if same_policy else None
            row.difference = Difference(
                tuple(fields), _made(made), _made(after), max(0, opened), spent, course, before_course
            )

    def _propose(self, state: WorkflowState, event: Delivered, in_force: InForce) -> None:
        cases = {c.error_id: c for c in (state.cases or {}).values() if c.error_id in self._tracks}
        if not cases:
            return
        policy, breakers = in_force.policy, in_force.breakers
        now = _decisions(e.record for e in decide(state, event, policy, breakers) if isinstance(e, Append))
        then = _decisions(e.record for e in decide(state, event, self._candidate, breakers) if isinstance(e, Append))
        for event_id in {**now, **then}:
            before, after = now.get(event_id), then.get(event_id)
            either = before or after
            case = None if either is None else cases.get(either.error_id)
            if case is None:
                continue
            track = self._tracks[case.error_id]
            if track.row.apart or track.row.difference is not None:
                continue
            self.versions.setdefault(policy.version, policy)
            course_before = None if before is None else course_of(state, case, policy, before, track.tried)
            course = None if after is None else course_of(state, case, self._candidate, after, track.tried)
            track.expected[event_id] = before, after, course_before, course, policy.version


#: Transitions after which an error's next repair is decided.
_PROPOSING = frozenset({"opened", "ended", "staged", "resolved", "go_on"})
_SMALLER = "choose a shorter time with --since and --until, or one --workflow-type"


def _decisions(records: Iterable[Record]) -> dict[str, RecoveryDecided]:
    return {r.event_id: r for r in records if type(r) is RecoveryDecided and r.ladder != LADDER}


def _made(decision: RecoveryDecided) -> Made:
    return Made(
        decision.attempt_number,
        decision.policy_version,
        decision.ladder,
        decision.rule,
        decision.rung + 1,
        decision.strategy,
        decision.execute_after_ms,
        decision.cost,
    )
