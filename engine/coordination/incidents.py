"""What people are told of: one open incident for what failures have in common, however many workflows they hit.

An incident opens with a breaker, or when a human is asked. It is written to `workflow.events` when it opens, when its
state, owner or note changes, and while it grows at powers of two and then every `WRITE_EVERY_US`, so that a storm of
errors is a trickle of records. `page` is set once in its life: by an intervention, by a breaker that stays open or hits
many; from then on it stays set, so every record says whether people know. It is recovering while waves run, and
resolved when its breaker is closed and no intervention waits, or when an operator says so.

`Breakers` folds each record first: an incident follows from what became of its breaker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from engine.coordinating import key_of
from engine.effects import AppendTo, CoordinatorEffect
from engine.policy import Policy
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.coordination import (
    CoordinationTimerFired,
    FailureEnded,
    FailureSeen,
    IncidentNoted,
    InterventionSeen,
)
from schemas.records.events import IncidentChanged

from . import PRODUCER
from .breakers import Breakers, Change
from .tried import Attempts, Counts, text_of

TIMER = "incident"
WORKFLOW_TYPE = "kintsugi.incident"

#: Open incidents. What would open another joins one that stands for all others.
INCIDENTS_MAX = 4_096
OTHERS = "others"
#: Workflows counted exactly, of all incidents together (36 bytes each); then `affected_count` is what it is at least.
AFFECTED_MAX = 300_000
#: Interventions remembered, of all incidents together.
INTERVENTIONS_MAX = 100_000
#: Workflows named in a record.
SAMPLES_MAX = 10
#: Characters of a step's or a dependency's name in a title.
NAME_CHARS_MAX = 100

#: A breaker that stays open for so long pages.
PAGE_AFTER_US = 120_000_000
#: As does one that hits so many workflows.
PAGE_AFFECTED = 200
#: Between two records of an incident that only grows, once it is no longer young.
WRITE_EVERY_US = 10_000_000
#: Between two escalations of one incident: what was asked at once is not answered in time at once either.
ESCALATE_EVERY_US = 1_800_000_000
_SEVERITIES = ("low", "medium", "high", "critical")


@dataclass(slots=True)
class Incident:
    """An incident that is not resolved."""

    key: str
    incident_id: str
    kind: str
    step_id: str
    error_type: str
    fingerprint: str | None
    dependency: str | None
    first_us: int
    last_us: int
    state: str = "open"
    revision: int = 0
    severity: str = "low"
    page: bool = False
    #: Whether its breaker is open, and since when.
    broken_us: int = 0
    errors: int = 0
    affected: dict[str, int] = field(default_factory=dict)
    #: Error to the intervention that waits for a human.
    waiting: dict[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    tried: Counts = field(default_factory=dict)
    owner: str | None = None
    note: str | None = None
    escalated_us: int = 0
    written_us: int = 0
    #: Whether it has grown since it was written.
    grown: bool = False
    moments: int = 0


class Incidents:
    """All open incidents, by key."""

    name: ClassVar[str] = "incidents"

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers
        self._open: dict[str, Incident] = {}
        self._keys: dict[str, str] = {}
        self._affected = 0
        #: Error to the key of the incident in which it waits for a human.
        self._asked: dict[str, str] = {}
        self._attempts = Attempts()
        #: Since the process began: workflows and questions to people beyond the bounds, which no incident names.
        self.unnamed = 0

    @property
    def open_count(self) -> int:
        """Incidents that are not resolved."""
        return len(self._open)

    def fold(self, record: Record, now_us: int, policy: Policy) -> Iterable[CoordinatorEffect]:
        """Fold a record of the coordination topic that `Breakers` has folded."""
        effects: list[CoordinatorEffect] = []
        if isinstance(record, FailureSeen):
            effects.extend(self._failure(record, now_us))
        for change in self._breakers.changes:
            effects.extend(self._breaker(change, record, now_us, policy))
        if isinstance(record, InterventionSeen):
            effects.extend(self._intervention(record, now_us))
        elif isinstance(record, FailureEnded):
            own = self._open.get(key_of(record.fingerprint, record.dependency))
            self._attempts.ended(record, None if own is None else own.tried)
            effects.extend(self._answered(record.error_id, record, now_us, None))
        elif isinstance(record, IncidentNoted):
            effects.extend(self._noted(record, now_us))
        elif isinstance(record, CoordinationTimerFired) and record.kind == TIMER:
            effects.extend(self._moment(record, now_us))
        return effects

    def due(self, now_us: int) -> Iterator[CoordinationTimerFired]:
        """The moments at which an incident that has grown is written, or pages."""
        for incident in self._open.values():
            due_us = _due_us(incident)
            if due_us is not None and due_us <= now_us:
                yield CoordinationTimerFired(
                    event_id=derive_id(f"{incident.incident_id}|{incident.moments}", TIMER, due_us),
                    workflow_id=incident.incident_id,
                    workflow_type=WORKFLOW_TYPE,
                    occurred_at=due_us,
                    producer=PRODUCER,
                    kind=TIMER,
                    subject_id=incident.incident_id,
                    due_at=due_us,
                )

    def next_due_us(self) -> int | None:
        """The next moment of any incident."""
        return min((at for incident in self._open.values() if (at := _due_us(incident)) is not None), default=None)

    # What is seen

    def _failure(self, record: FailureSeen, now_us: int) -> Iterator[CoordinatorEffect]:
        key = key_of(record.fingerprint, record.dependency)
        incident = self._open.get(key)
        self._attempts.failed(record, key, None if incident is None else incident.tried)
        if incident is None:
            return
        incident.errors += 1
        incident.last_us = now_us
        incident.severity = _worse(incident.severity, record.severity)
        self._affects(incident, record.workflow_id, now_us)
        if incident.broken_us and not incident.page and len(incident.affected) >= PAGE_AFFECTED:
            incident.page = True
            yield _write(incident, record, now_us, f"{len(incident.affected)} workflows are affected")
        else:
            yield from _grow(incident, incident.errors, record, now_us)

    def _breaker(self, change: Change, record: Record, now_us: int, policy: Policy) -> Iterator[CoordinatorEffect]:
        key = self._key(change.key) if change.state == "open" else change.key
        incident = self._open.get(key)
        if change.state == "open" and incident is None and isinstance(record, FailureSeen) and change.workflows:
            incident = self._opened(key, change.kind, record, now_us)
            incident.first_us, incident.errors = change.first_us, change.failures
            for workflow_id in change.workflows:
                self._affects(incident, workflow_id, now_us)
            self._attempts.give_all(change.key, incident.tried)
            incident.severity = _worse("low", record.severity)
            incident.channels = policy.intervention.channels
            incident.page = len(incident.affected) >= PAGE_AFFECTED
        if incident is None:
            return
        if change.state == "closed":
            incident.broken_us = 0
            yield from self._over(incident, record, now_us, "its breaker closed")
            return
        if key == OTHERS:  # which of them are open still is not remembered: people are to look
            incident.page = True
        else:
            incident.broken_us = incident.broken_us or now_us
        incident.state = "recovering" if change.state == "half_open" else "open"
        yield _write(incident, record, now_us, f"its breaker is {change.state.replace('_', ' ')}")

    def _intervention(self, record: InterventionSeen, now_us: int) -> Iterator[CoordinatorEffect]:
        error_id = record.error_id or record.intervention_id
        if record.state == "ended":
            yield from self._answered(error_id, record, now_us, record.actor)
            return
        key = self._asked.get(error_id) or self._key(key_of(record.fingerprint, record.dependency))
        incident = self._open.get(key)
        if record.state == "claimed":
            if incident is not None and error_id in incident.waiting:
                incident.owner = record.actor or incident.owner
                yield _write(incident, record, now_us, "claimed", actor=record.actor)
            return
        new = incident is None
        if incident is None:
            incident = self._opened(key, "intervention", record, now_us)
        self._attempts.give(error_id, incident.tried)
        paged, incident.page = incident.page, True
        incident.last_us = now_us
        incident.severity = _worse(incident.severity, record.severity)
        incident.channels = tuple(dict.fromkeys((*incident.channels, *record.channels)))
        self._affects(incident, record.workflow_id, now_us)
        if len(self._asked) < INTERVENTIONS_MAX or error_id in self._asked:
            self._asked[error_id] = key
            incident.waiting[error_id] = record.intervention_id
        else:
            self.unnamed += 1
        if record.state == "escalated" and now_us - incident.escalated_us >= ESCALATE_EVERY_US:
            incident.escalated_us = now_us
            yield _write(incident, record, now_us, "escalated")
        elif new or not paged:
            yield _write(incident, record, now_us, f"a human is asked: {record.trigger}")
        else:
            yield from _grow(incident, len(incident.waiting), record, now_us)

    def _answered(self, error_id: str, record: Record, now_us: int, actor: str | None) -> Iterator[CoordinatorEffect]:
        """An intervention ended, or the error it was about: nobody waits for a human there any more."""
        incident = self._open.get(self._asked.pop(error_id, ""))
        if incident is None or incident.waiting.pop(error_id, None) is None:
            return
        if not incident.waiting:
            yield from self._over(incident, record, now_us, "no intervention waits any more", actor)
        else:
            yield from _grow(incident, len(incident.waiting), record, now_us)

    def _noted(self, record: IncidentNoted, now_us: int) -> Iterator[CoordinatorEffect]:
        incident = self._open.get(self._keys.get(record.incident_id, ""))
        if incident is None:
            return
        incident.note = record.note or incident.note
        if record.action == "resolve":
            yield self._resolved(incident, record, now_us, record.reason, record.actor)
            return
        if record.action == "own":
            incident.owner = record.owner or record.actor
        elif record.action == "acknowledge":
            incident.owner = incident.owner or record.actor
        reason = "acknowledged" if record.action == "acknowledge" else record.reason
        yield _write(incident, record, now_us, reason, actor=record.actor)

    def _moment(self, record: CoordinationTimerFired, now_us: int) -> Iterator[CoordinatorEffect]:
        incident = self._open.get(self._keys.get(record.subject_id, ""))
        if incident is None or _due_us(incident) != record.due_at:
            return
        incident.moments += 1
        if not incident.page and incident.broken_us and incident.broken_us + PAGE_AFTER_US <= now_us:
            incident.page = True
            yield _write(incident, record, now_us, f"its breaker is open for {PAGE_AFTER_US // 1_000_000} s")
        else:
            yield _write(incident, record, now_us, "it has grown")

    # What follows

    def _key(self, key: str) -> str:
        return key if key in self._open or len(self._open) < INCIDENTS_MAX else OTHERS

    def _opened(self, key: str, kind: str, record: FailureSeen | InterventionSeen, now_us: int) -> Incident:
        incident = Incident(
            key=key,
            # From what opened it: no two of one key are alike, even past a loss of what is remembered here.
            incident_id=derive_id(record.event_id, f"incident|{key}"),
            kind=kind,
            step_id=record.step_id,
            error_type=record.error_type,
            fingerprint=record.fingerprint,
            dependency=record.dependency,
            first_us=now_us,
            last_us=now_us,
            broken_us=now_us if self._breakers.get(key) is not None else 0,
        )
        self._open[key] = incident
        self._keys[incident.incident_id] = key
        return incident

    def _affects(self, incident: Incident, workflow_id: str, now_us: int) -> None:
        if workflow_id in incident.affected:
            return
        if self._affected < AFFECTED_MAX:
            incident.affected[workflow_id] = now_us
            self._affected += 1
        else:
            self.unnamed += 1

    def _over(
        self, incident: Incident, record: Record, now_us: int, reason: str, actor: str | None = None
    ) -> Iterator[CoordinatorEffect]:
        if not incident.broken_us and not incident.waiting:
            yield self._resolved(incident, record, now_us, reason, actor)
            return
        if not incident.broken_us:
            incident.state = "open"  # the breaker's part is over, people's is not
        yield _write(incident, record, now_us, reason, actor=actor)

    def _resolved(
        self, incident: Incident, record: Record, now_us: int, reason: str, actor: str | None
    ) -> CoordinatorEffect:
        incident.state = "resolved"
        effect = _write(incident, record, now_us, reason, actor=actor)
        del self._open[incident.key], self._keys[incident.incident_id]
        self._affected -= len(incident.affected)
        for error_id in incident.waiting:
            self._asked.pop(error_id, None)
        return effect

    def dump(self) -> dict[str, Any]:
        """As plain values."""
        rows = [{f.name: getattr(incident, f.name) for f in fields(Incident)} for incident in self._open.values()]
        return {"open": rows, "attempts": self._attempts.dump()}

    def load(self, value: Any) -> None:
        """Inverse of `dump`."""
        self._attempts.load(value["attempts"])
        self._open = {row["key"]: Incident(**{**row, "channels": tuple(row["channels"])}) for row in value["open"]}
        self._keys = {incident.incident_id: key for key, incident in self._open.items()}
        self._affected = sum(len(incident.affected) for incident in self._open.values())
        self._asked = {error_id: key for key, incident in self._open.items() for error_id in incident.waiting}


def _worse(one: str, other: str) -> str:
    return max(one, other, key=lambda s: _SEVERITIES.index(s) if s in _SEVERITIES else 0)


def _due_us(incident: Incident) -> int | None:
    moments = []
    if incident.grown:
        moments.append(incident.written_us + WRITE_EVERY_US)
    if incident.broken_us and not incident.page:
        moments.append(incident.broken_us + PAGE_AFTER_US)
    return min(moments, default=None)


def _grow(incident: Incident, count: int, record: Record, now_us: int) -> Iterator[CoordinatorEffect]:
    """Written at once while it is small, later by its timer."""
    if count & (count - 1) == 0 or now_us - incident.written_us >= WRITE_EVERY_US:
        yield _write(incident, record, now_us, "it has grown")
    else:
        incident.grown = True


def _title(incident: Incident) -> str:
    """One line of names and counts; what an error says may be secret, and is not quoted."""
    where = f"step {incident.step_id[:NAME_CHARS_MAX]}"
    if incident.dependency:
        where = incident.dependency[:NAME_CHARS_MAX]
    if incident.key == OTHERS:
        where = "many places"
    many = len(incident.affected)
    asked = len(incident.waiting)
    title = f"{incident.error_type[:NAME_CHARS_MAX]}: {where}, {many} workflow{'' if many == 1 else 's'}"
    return f"{title}, {asked} waiting for a human" if asked else title


def _write(
    incident: Incident, cause: Record, now_us: int, reason: str, *, actor: str | None = None
) -> CoordinatorEffect:
    incident.revision += 1
    incident.written_us, incident.grown = now_us, False
    fact = IncidentChanged(
        event_id=derive_id(incident.incident_id, "changed", incident.revision),
        workflow_id=incident.incident_id,
        workflow_type=WORKFLOW_TYPE,
        causation_id=cause.event_id,
        occurred_at=now_us,
        producer=PRODUCER,
        incident_id=incident.incident_id,
        revision=incident.revision,
        key=incident.key,
        kind=incident.kind,
        state=incident.state,
        page=incident.page,
        severity=incident.severity,
        title=_title(incident),
        fingerprint=incident.fingerprint,
        dependency=incident.dependency,
        error_type=incident.error_type,
        first_seen_at=incident.first_us,
        last_seen_at=incident.last_us,
        error_count=incident.errors,
        affected_count=len(incident.affected),
        interventions=len(incident.waiting),
        samples=tuple(workflow_id for workflow_id, _ in zip(incident.affected, range(SAMPLES_MAX), strict=False)),
        channels=incident.channels,
        owner=incident.owner,
        note=incident.note,
        actor=actor,
        reason=reason,
        tried=text_of(incident.tried),
    )
    return AppendTo(fact, None)
