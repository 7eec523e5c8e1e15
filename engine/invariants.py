"""What must be true of every log (FAULTS.md, I3, I5, I6, I9), checked by folding it again with the same engine.

The engine is a function of the log, so the log proves itself: each fact and command that the fold asks for is there,
and none that it does not ask for, and each decision and command says what the fold says: ids alone do not tell which
policy decided. Beside that, what services did is held against what they were told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

from schemas.records import COMMAND_TYPES, Command, Record
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CommandAcknowledged,
    RecoveryDecided,
    StateRestored,
    StepStarted,
    TimerFired,
)

from .decide import decide
from .effects import PRODUCER, Append, Coordinate
from .events import Delivered
from .fold import evolve
from .inforce import InForce
from .policy import Policy
from .state import WorkflowState
from .timers import next_due_us

#: What the engine was due to write may take this long to be in the log.
GRACE_US = 15_000_000
#: Facts that engines before 0.3.0 did not write: in what they left behind none is missed.
_LATER = frozenset({"DependantsHeld", "DependantsReleased", "RepairHeld", "ResourceLimitNear"})
#: Who wrote a record, when, and why in words: that may be said in another way and mean the same. So may another text of
#: the policy, as of the release before.
_WORDS = frozenset(Record.__dataclass_fields__) | {
    "reason",
    "actor",
    "rule",
    "evidence",
    "alternatives",
    "policy_version",
}
_COMPARED_TYPES: tuple[type[Record], ...] = (RecoveryDecided, *COMMAND_TYPES.values())
#: Fields of decisions and commands that say what is to be done.
_COMPARED = {kind.__name__: tuple(f.name for f in fields(kind) if f.name not in _WORDS) for kind in _COMPARED_TYPES}
#: Characters of a value that is kept to be compared, and shown; of a longer one only its digest is.
_VALUE_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it must be. `rule` is a short word, `subject_id` what it is about."""

    rule: str
    workflow_id: str
    subject_id: str
    detail: str


class LogCheck:
    """Takes events in log order per partition, then all commands, then says what is wrong.

    Keeps every workflow's state and every engine-made id: about 4 KB for each workflow in the log. Workflows whose
    start the log no longer holds are folded but not judged.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._in_force: dict[int, InForce] = {}
        self._states: dict[str, WorkflowState] = {}
        self._whole: set[int] = set()
        #: Id of each fact or command that the fold asks for: workflow, what it is, broker time of its cause.
        self._asked: dict[str, tuple[str, str, int]] = {}
        #: Id of each fact or command that an engine wrote: workflow, what it is, broker time.
        self._made: dict[str, tuple[str, str, int]] = {}
        #: What asked decisions and commands say, until they are met.
        self._contents: dict[str, tuple[Any, ...]] = {}
        self._decided: dict[tuple[str, int], str] = {}
        #: Attempts that were decided by an engine that decides as this one: what earlier ones wrote says less.
        self._comparable: set[tuple[str, int]] = set()
        self._sent: dict[tuple[str, int], str] = {}
        self._accepted: dict[str, str] = {}
        self._runs: dict[tuple[str, str], str] = {}
        self._checkpoints: dict[str, str] = {}
        self._findings: list[Finding] = []
        #: Events of checkpoints whose bytes could not be proven here: in object storage, or without their key.
        self._unreadable: set[str] = set()
        #: Their workflows: whoever could look into them may have seen earlier which were not good.
        self._unproven: set[str] = set()
        self._commands_from_us = 0
        #: Partition to the broker time of the first decision of an engine that writes them.
        self._later_from_us: dict[int, int] = {}

    def begins_at_zero(self, partition: int) -> None:
        """The partition's log is whole: every workflow in it can be judged."""
        self._whole.add(partition)

    def policy_before(self, partition: int, text: str, sequence: int) -> None:
        """The partition's log begins after this applied policy came into force there."""
        self._in_force.setdefault(partition, InForce(self._policy)).restore(text, sequence)

    def commands_begin(self, timestamp_us: int) -> None:
        """Commands before this broker time may be gone: none of that time is missed."""
        self._commands_from_us = max(self._commands_from_us, timestamp_us)

    def event(self, event: Delivered) -> None:
        """The next event of its partition."""
        record = event.record
        if event.unreadable is not None:
            self._unreadable.add(record.event_id)
            self._unproven.add(record.workflow_id)
        # Whoever rejected a checkpoint that cannot be looked into here had its key: nothing is held against it.
        rests_on_its_bytes = record.causation_id in self._unreadable
        if record.producer == PRODUCER and type(record) is not TimerFired and not rests_on_its_bytes:
            self._made.setdefault(record.event_id, (record.workflow_id, type(record).__name__, event.timestamp_us))
        self._watch(event)
        if type(record) is RecoveryDecided:
            self._compare(record)
        if type(record) is RecoveryDecided and record.ladder:
            self._later_from_us.setdefault(event.partition, event.timestamp_us)
        in_force = self._in_force.setdefault(event.partition, InForce(self._policy))
        if in_force.take(event):
            return
        workflow_id = record.workflow_id
        try:
            state = self._states[workflow_id] = evolve(self._states.get(workflow_id), event)
            effects = decide(state, event, in_force.policy, in_force.breakers)
        except Exception as error:  # the recovery role sets such a record aside; here it is what was looked for
            self._add("not_applicable", workflow_id, record.event_id, f"{type(record).__name__}: {error}")
            return
        for effect in effects:
            if isinstance(effect, Coordinate):
                continue  # another topic, whose records expire
            wanted: Record = effect.record if isinstance(effect, Append) else effect.command
            self._asked.setdefault(wanted.event_id, (workflow_id, type(wanted).__name__, event.timestamp_us))
            if isinstance(wanted, RecoveryDecided | Command) and wanted.event_id not in self._made:
                self._contents.setdefault(wanted.event_id, _content(wanted))

    def command(self, command: Command, timestamp_us: int) -> None:
        """The next command of its partition, and its broker time."""
        self._made.setdefault(command.event_id, (command.workflow_id, type(command).__name__, timestamp_us))
        self._compare(command)
        if command.error_id is None or command.attempt_number == 0:
            return
        first = self._sent.setdefault((command.error_id, command.attempt_number), command.command_id)
        if first != command.command_id:
            self._add(
                "two_commands",
                command.workflow_id,
                command.error_id,
                f"attempt {command.attempt_number} was sent as {first} and as {command.command_id}",
            )

    def _compare(self, record: RecoveryDecided | Command) -> None:
        """Of what is in the log more than once the first counts."""
        wanted = self._contents.pop(record.event_id, None)
        if wanted is None or record.workflow_id in self._unproven:
            return
        if (record.error_id, record.attempt_number) not in self._comparable:
            return
        made = _content(record)
        differing = [
            f"{name} is {said!r:.{_VALUE_CHARS_MAX}} and not {asked!r:.{_VALUE_CHARS_MAX}}"
            for name, said, asked in zip(_COMPARED[type(record).__name__], made, wanted, strict=True)
            if said != asked
        ]
        if differing:
            detail = f"{type(record).__name__} is not what follows from the log: {'; '.join(differing)}"
            self._add("differs", record.workflow_id, record.event_id, detail)

    def findings(self, now_us: int) -> list[Finding]:
        """Everything that is wrong. `now_us`: broker time when the end of what was read was fixed."""
        return [f for f in (*self._findings, *self._effects(now_us), *self._overdue(now_us)) if self._judged(f)]

    def _judged(self, finding: Finding) -> bool:
        state = self._states.get(finding.workflow_id)
        return state is not None and (state.partition in self._whole or state.started_offset >= 0)

    def _effects(self, now_us: int) -> Iterator[Finding]:
        for event_id, (workflow_id, name, cause_us) in self._asked.items():
            if name in COMMAND_TYPES and cause_us < self._commands_from_us:
                continue
            if name in _LATER and cause_us < self._later_from_us.get(self._states[workflow_id].partition, now_us):
                continue
            if event_id not in self._made and now_us - cause_us > GRACE_US:
                yield Finding(
                    rule="missing",
                    workflow_id=workflow_id,
                    subject_id=event_id,
                    detail=f"{name} follows from the log and is not in it",
                )
        for event_id, (workflow_id, name, made_us) in self._made.items():
            if event_id not in self._asked and now_us - made_us > GRACE_US:
                yield Finding(
                    rule="unasked",
                    workflow_id=workflow_id,
                    subject_id=event_id,
                    detail=f"{name} is in the log and does not follow from it",
                )

    def _overdue(self, now_us: int) -> Iterator[Finding]:
        for workflow_id, state in self._states.items():
            in_force = self._in_force.get(state.partition)
            due_us = next_due_us(state, self._policy if in_force is None else in_force.policy)
            if due_us is not None and now_us - due_us > GRACE_US:
                yield Finding(
                    rule="overdue",
                    workflow_id=workflow_id,
                    subject_id=workflow_id,
                    detail=f"a timer was due {(now_us - due_us) // 1_000_000} s ago and has not fired",
                )

    def _watch(self, event: Delivered) -> None:
        """What services may do once only, and the states they may restore."""
        record = event.record
        if type(record) is RecoveryDecided:
            self._one_decision(record)
        elif type(record) is CommandAcknowledged:
            if record.status == "accepted" and not record.duplicate:
                first = self._accepted.setdefault(record.command_id, record.event_id)
                if first != record.event_id:
                    self._add("accepted_twice", record.workflow_id, record.command_id, "a command was accepted twice")
        elif type(record) is StepStarted:
            if record.command_id is not None:
                run = self._runs.setdefault((record.command_id, record.step_id), record.step_run_id)
                if run != record.step_run_id:
                    detail = f"step {record.step_id!r} ran as {run} and as {record.step_run_id} for one command"
                    self._add("ran_twice", record.workflow_id, record.command_id, detail)
        elif type(record) is CheckpointCreated:
            if event.rejection is None and not record.evidence:
                self._checkpoints.setdefault(record.checkpoint_id, record.workflow_id)
        elif type(record) is CheckpointRejected:
            self._checkpoints.pop(record.checkpoint_id, None)
        elif type(record) is StateRestored and record.checkpoint_id is not None:
            if self._checkpoints.get(record.checkpoint_id) != record.workflow_id:
                detail = "the restored checkpoint is not a verified one of this workflow, earlier in the log"
                self._add("restored_unverified", record.workflow_id, record.checkpoint_id, detail)

    def _one_decision(self, record: RecoveryDecided) -> None:
        attempt = (record.error_id, record.attempt_number)
        if record.ladder and attempt not in self._decided:
            self._comparable.add(attempt)
        first = self._decided.setdefault(attempt, record.event_id)
        if first != record.event_id:
            self._add(
                "decided_twice",
                record.workflow_id,
                record.error_id,
                f"attempt {record.attempt_number} was decided as {first} and as {record.event_id}",
            )

    def _add(self, rule: str, workflow_id: str, subject_id: str, detail: str) -> None:
        self._findings.append(Finding(rule=rule, workflow_id=workflow_id, subject_id=subject_id, detail=detail))


def _content(record: Record) -> tuple[Any, ...]:
    return tuple(_short(getattr(record, name)) for name in _COMPARED[type(record).__name__])


def _short(value: Any) -> Any:
    """Texts and bytes of people may be long; what is compared is kept until its record comes."""
    if not isinstance(value, str | bytes) or len(value) <= _VALUE_CHARS_MAX:
        return value
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return f"sha256:{sha256(data).hexdigest()}"
