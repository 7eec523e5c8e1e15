"""When many workflows fail on one thing, their repairs are held and let go in growing waves behind canaries.

A breaker stands for what failures have in common: the outside system they name, else how they look. It opens when
`threshold` different workflows fail within the window, so one that fails again and again opens nothing. From then on
the partitions hold its repairs, and the coordinator sends a few canaries after a pause, which grows while canaries
fail. When most of a wave recovers the next one is larger; when it does not, canaries go first again, and later waves
stay below the size that was too much (`waves`). Waves are bounded and keep a distance, so what came back is
not run over. A breaker closes when nobody waits and nothing of its kind was bad for a while.

A repair is lost in no case: whoever is not remembered here, because the list is full or the coordinator forgot, is sent
by the hold's own timer (`storms.hold_max`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.coordinating import key_of
from engine.effects import AppendTo, Broadcast, CoordinatorEffect
from engine.policy import Policy
from engine.policy.model import Storms
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import CoordinationTimerFired, FailureEnded, FailureSeen, RepairWaiting
from schemas.records.events import BreakerChanged, RepairReleased

from . import PRODUCER, Addressee, fact_for
from .waves import GOOD_SHARE, LOAD_SHARE, WAVE_ANSWER_US, WAVE_GAP_US, WAVE_MAX, Breaker, Waiting
from .windows import Window, Windows

TIMER = "breaker"
WORKFLOW_TYPE = "kintsugi.breaker"

#: Breakers that are not closed. Partitions remember four times as many (`engine.inforce.BREAKERS_MAX`); the failures of
#: further keys are repaired as if there were no breakers.
OPEN_MAX = 1_024
#: Repairs that wait here, of all breakers together (300 bytes each). Those beyond it wait for their own timers.
WAITING_MAX = 100_000
#: Members of waves whose outcome is not known yet, per breaker; the oldest are asked after no more.
FLYING_MAX = 5_000
#: Closed breakers remembered, so that a repair that is held by one of them closes it in the partitions only once.
CLOSED_MAX = 1_024


@dataclass(frozen=True, slots=True)
class Change:
    """A breaker's state that follows from the record folded last; for the incidents."""

    key: str
    kind: str
    state: str
    #: When it opened: what its window held.
    workflows: tuple[str, ...] = ()
    failures: int = 0
    first_us: int = 0


class Breakers:
    """All breakers. `changes` is what became of them by the record folded last."""

    name: ClassVar[str] = "breakers"

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._windows = Windows()
        self._open: dict[str, Breaker] = {}
        self._waiting = 0
        #: Key of a closed breaker to its sequence.
        self._closed: dict[str, int] = {}
        #: Failures that were a storm, and for which no breaker could be opened any more.
        self.unopened = 0
        #: Held repairs that are not remembered here: they wait for their own timers.
        self.unlisted = 0

    def get(self, key: str) -> Breaker | None:
        """The breaker of a key; None when it is closed."""
        return self._open.get(key)

    @property
    def forgotten(self) -> int:
        """What failures are counted of and was forgotten for others, since the process began."""
        return self._windows.forgotten

    @property
    def open_count(self) -> int:
        """Breakers that are not closed."""
        return len(self._open)

    @property
    def waiting_count(self) -> int:
        """Repairs that wait to be let go."""
        return self._waiting

    def fold(self, record: Record, now_us: int, policy: Policy) -> Iterable[CoordinatorEffect]:
        """Fold a record of the coordination topic."""
        self.changes = []
        storms = policy.storms
        if isinstance(record, FailureSeen):
            return list(self._failure(record, now_us, storms))
        if isinstance(record, RepairWaiting):
            return list(self._repair_waits(record, now_us, storms))
        if isinstance(record, FailureEnded):
            return list(self._ended(record, now_us, storms))
        if isinstance(record, CoordinationTimerFired) and record.kind == TIMER:
            breaker = self._open.get(record.subject_id)
            if breaker is not None and breaker.due_us == record.due_at:
                return list(self._moment(breaker, record, now_us, storms))
        return ()

    def due(self, now_us: int) -> Iterator[CoordinationTimerFired]:
        """The moments of breakers that have passed."""
        for breaker in self._open.values():
            if breaker.due_us <= now_us:
                yield CoordinationTimerFired(
                    event_id=derive_id(f"{breaker.key}|{breaker.sequence}|{breaker.moments}", TIMER, breaker.due_us),
                    workflow_id=breaker_id(breaker.key),
                    workflow_type=WORKFLOW_TYPE,
                    occurred_at=breaker.due_us,
                    producer=PRODUCER,
                    kind=TIMER,
                    subject_id=breaker.key,
                    due_at=breaker.due_us,
                )

    def next_due_us(self) -> int | None:
        """The next moment a breaker waits for."""
        return min((breaker.due_us for breaker in self._open.values()), default=None)

    # What is seen

    def _failure(self, record: FailureSeen, now_us: int, storms: Storms) -> Iterator[CoordinatorEffect]:
        key = key_of(record.fingerprint, record.dependency)
        window = self._windows.observe(key, record, now_us, storms)
        breaker = self._open.get(key)
        if breaker is None:
            if not storms.enabled or len(window.workflows) < storms.threshold:
                return
            if len(self._open) < OPEN_MAX:
                yield self._opened(key, window, record, now_us, storms)
            else:
                self.unopened += 1
        else:
            yield from self._member_failed(breaker, record, now_us)

    def _repair_waits(self, record: RepairWaiting, now_us: int, storms: Storms) -> Iterator[CoordinatorEffect]:
        waiting = Waiting(Addressee.of(record), record.attempt_id)
        breaker = self._open.get(record.breaker)
        if breaker is None:
            # It was held before its partition heard that the breaker had closed, or by one that was forgotten here.
            if record.breaker not in self._closed:
                yield self._tell(record.breaker, _kind_of(record.breaker), "closed", record, now_us, "it is not known")
            yield _released(record.breaker, 0, False, record.error_id, waiting, record, now_us)
            return
        yield from self._member_failed(breaker, record, now_us)  # its next attempt is held: the last did not help
        if breaker.waiting.pop(record.error_id, None) is not None:
            self._waiting -= 1
        if self._waiting >= WAITING_MAX:
            self.unlisted += 1
            return
        breaker.waiting[record.error_id] = waiting
        self._waiting += 1
        if breaker.phase == "idle":
            breaker.phase = "gap" if breaker.healthy else "pause"
            pause_us = WAVE_GAP_US if breaker.healthy else breaker.pause_us()
            breaker.due_us = max(now_us, breaker.sent_us + pause_us)

    def _ended(self, record: FailureEnded, now_us: int, storms: Storms) -> Iterator[CoordinatorEffect]:
        breaker = self._open.get(key_of(record.fingerprint, record.dependency))
        if breaker is None:
            return
        if breaker.waiting.pop(record.error_id, None) is not None:
            self._waiting -= 1
        if breaker.flying.pop(record.error_id, None) != breaker.sent_us:
            return
        if record.outcome == "recovered":
            breaker.recovered += 1
        else:  # cancelled, or ended otherwise: it tells nothing about the target
            breaker.released -= 1
        if breaker.phase == "wave":
            yield from self._judge(breaker, record, now_us)
        elif breaker.phase == "pause" and breaker.recovered and not breaker.failed:
            breaker.good(now_us)  # its wave was given up for want of an answer: the steps take long

    def _moment(self, breaker: Breaker, record: Record, now_us: int, storms: Storms) -> Iterator[CoordinatorEffect]:
        breaker.moments += 1
        if breaker.phase == "wave":
            if breaker.recovered and not breaker.failed:
                breaker.good(now_us)
            else:
                yield from self._bad(breaker, record, now_us, "too few recovered in time")
        elif breaker.phase == "idle":
            if self._windows.storming(breaker.key, now_us, storms):
                breaker.due_us = now_us + storms.quiet_ms * 1000
            else:
                yield self._change(breaker, "closed", record, now_us, "nothing waits and nothing failed for a while")
                del self._open[breaker.key]
        elif not breaker.waiting:
            breaker.phase, breaker.due_us = "idle", now_us + storms.quiet_ms * 1000
        else:
            yield from self._send(breaker, record, now_us, storms)

    # What follows

    def _opened(self, key: str, window: Window, record: Record, now_us: int, storms: Storms) -> CoordinatorEffect:
        breaker = Breaker(key, window.kind, "closed", self._closed.pop(key, 0), "pause", 0)
        per_s = window.failures * 1_000_000 // max(1, now_us - window.first_us)
        breaker.ceiling = min(WAVE_MAX, max(storms.canaries, int(LOAD_SHARE * per_s)))
        breaker.due_us = now_us + breaker.pause_us()
        self._open[key] = breaker
        count = len(window.workflows)
        effect = self._change(breaker, "open", record, now_us, f"{count} workflows failed on it in one window")
        self.changes = [Change(key, window.kind, "open", tuple(window.workflows), window.failures, window.first_us)]
        return effect

    def _send(self, breaker: Breaker, record: Record, now_us: int, storms: Storms) -> Iterator[CoordinatorEffect]:
        canary = breaker.phase == "pause"
        breaker.wave = 0 if canary else breaker.wave + 1
        breaker.size = min(storms.canaries, WAVE_MAX) if canary else breaker.next_size(storms)
        if not canary and breaker.state == "open":
            yield self._change(breaker, "half_open", record, now_us, "canaries recovered")
        chosen = [error_id for error_id, _ in zip(breaker.waiting, range(breaker.size), strict=False)]
        for error_id in chosen:
            waiting = breaker.waiting.pop(error_id)
            breaker.flying[error_id] = now_us
            yield _released(breaker.key, breaker.wave, canary, error_id, waiting, record, now_us)
        self._waiting -= len(chosen)
        while len(breaker.flying) > FLYING_MAX:
            del breaker.flying[next(iter(breaker.flying))]
        breaker.released, breaker.recovered, breaker.failed = len(chosen), 0, 0
        breaker.phase, breaker.sent_us, breaker.due_us = "wave", now_us, now_us + WAVE_ANSWER_US

    def _member_failed(
        self, breaker: Breaker, record: FailureSeen | RepairWaiting, now_us: int
    ) -> Iterator[CoordinatorEffect]:
        if breaker.flying.pop(record.error_id, None) != breaker.sent_us:
            return  # no member, or one of an earlier wave, which was judged without it
        breaker.failed += 1
        if breaker.phase == "wave":
            yield from self._judge(breaker, record, now_us)

    def _judge(self, breaker: Breaker, record: Record, now_us: int) -> Iterator[CoordinatorEffect]:
        """Good or bad as soon as no further answer can change it."""
        needed = GOOD_SHARE * breaker.released
        if breaker.failed > breaker.released - needed:
            yield from self._bad(breaker, record, now_us, "too few recovered")
        elif breaker.recovered >= needed and breaker.recovered:
            breaker.good(now_us)
        elif breaker.released == 0:  # its members ended otherwise, and told nothing: others go in their place
            breaker.phase = "gap" if breaker.wave else "pause"
            breaker.due_us = max(now_us, breaker.sent_us + WAVE_GAP_US)

    def _bad(self, breaker: Breaker, record: Record, now_us: int, why: str) -> Iterator[CoordinatorEffect]:
        breaker.bad(now_us)
        if breaker.state == "half_open":
            yield self._change(breaker, "open", record, now_us, f"wave {breaker.wave}: {why}")

    def _change(self, breaker: Breaker, state: str, record: Record, now_us: int, reason: str) -> CoordinatorEffect:
        breaker.state = state
        self.changes.append(Change(breaker.key, breaker.kind, state))
        effect = self._tell(breaker.key, breaker.kind, state, record, now_us, reason, after=breaker.sequence)
        breaker.sequence = effect.record.sequence  # type: ignore[attr-defined]
        return effect

    def _tell(
        self, key: str, kind: str, state: str, cause: Record, now_us: int, reason: str, after: int = 0
    ) -> Broadcast:
        """The sequence is the broker's time: it grows even past a loss of everything that is remembered here."""
        sequence = max(after + 1, now_us)
        if state == "closed":
            self._closed[key] = sequence
            while len(self._closed) > CLOSED_MAX:
                del self._closed[next(iter(self._closed))]
        return Broadcast(
            BreakerChanged(
                event_id=derive_id(cause.event_id, f"breaker|{key}|{state}"),
                workflow_id=breaker_id(key),
                workflow_type=WORKFLOW_TYPE,
                causation_id=cause.event_id,
                occurred_at=now_us,
                producer=PRODUCER,
                breaker=key,
                kind=kind,
                state=state,
                sequence=sequence,
                reason=reason,
            )
        )

    def dump(self) -> dict[str, Any]:
        """Everything but `changes`, which are over."""
        return {
            "unopened": self.unopened,
            "unlisted": self.unlisted,
            "windows": self._windows.dump(),
            "open": [breaker.dump() for breaker in self._open.values()],
            "closed": self._closed,
        }

    def load(self, value: Any) -> None:
        """Inverse of `dump`."""
        self.changes = []
        self.unopened, self.unlisted = value["unopened"], value["unlisted"]
        self._windows.load(value["windows"])
        self._open = {row["key"]: Breaker.load(row) for row in value["open"]}
        self._waiting = sum(len(b.waiting) for b in self._open.values())
        self._closed = dict(value["closed"])


def breaker_id(key: str) -> str:
    """The id that records of a breaker carry as their workflow's."""
    return derive_id(key, "breaker")


def _kind_of(key: str) -> str:
    return "dependency" if key.startswith("dependency:") else "fingerprint"


def _released(
    key: str, wave: int, canary: bool, error_id: str, waiting: Waiting, cause: Record, now_us: int
) -> CoordinatorEffect:
    event_id = derive_id(cause.event_id, f"released|{waiting.attempt_id}")
    fact = fact_for(
        RepairReleased,
        waiting.to,
        cause,
        event_id,
        now_us,
        error_id=error_id,
        attempt_id=waiting.attempt_id,
        breaker=key,
        wave=wave,
        canary=canary,
    )
    return AppendTo(fact, waiting.to.partition)
