"""An operator's restore: which checkpoint, what will run again, the request in the log, and what became of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import click

from consumers.history import History
from consumers.log_reader import LogReader, record_of
from engine.inspection import deliver
from projections.reader import snapshot
from projections.sql import blocks
from schemas.admission import admit
from schemas.archive_format import Gap
from schemas.codec import Codec, Unknown
from schemas.errors import ConfigError, PoisonError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records import Command, Record
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import (
    CommandAcknowledged,
    RecoveryAttemptFinished,
    RecoveryDecided,
    RestoreRequested,
    StateRestored,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
)
from schemas.registry import Registry
from schemas.topics import COMMANDS, EVENTS

from .archive import history_of
from .audit import actor
from .lineage import Lineage, Saved
from .output import CONFLICT, NotFoundError
from .publish import publish
from .stack import Addresses

#: As long as a reason that the audit log takes.
REASON_CHARS_MAX = 1_000
#: Between two looks at the end of the log.
_LOOK_EVERY_S = 0.2

Row = dict[str, Any]
_QUERIES = blocks("ops", "checkpoints.sql")
_ENDS = (WorkflowCompleted, WorkflowFailed, WorkflowCancelled)


class RefusedError(click.ClickException):
    """This workflow cannot be restored, or not to this checkpoint."""

    exit_code = CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the operator asked for; one of the three is given."""

    checkpoint_id: str | None = None
    before_step: str | None = None
    at_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A step that will run again, and what it is known to do then."""

    step_id: str
    status: str
    begun: int
    completed: int
    idempotent: bool
    compensation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a restore would do."""

    workflow_id: str
    workflow_type: str
    external_id: str | None
    partition: int
    checkpoint: Saved
    steps: tuple[Again, ...]
    errors: tuple[Row, ...]
    missing: tuple[Gap, ...]

    @property
    def not_idempotent(self) -> int:
        """Steps that will run again and do not like it."""
        return sum(not step.idempotent for step in self.steps)


def plan(at: Addresses, workflow_id: str, target: Target) -> Plan:
    """Find the checkpoint and what follows from it, reading the workflow's events; no keys are needed.

    NotFoundError for what is not there, RefusedError for what cannot be restored, each saying what to do instead.
    """
    with snapshot(at.postgres) as tables:
        rows = tables.query(_QUERIES["restorable"], {"id": workflow_id})
        errors = tables.query(_QUERIES["open_errors"], {"id": workflow_id})
    if not rows:
        raise NotFoundError(f"no workflow {workflow_id}; kintsugi workflows list shows those that are there")
    row = rows[0]
    missing: list[Gap] = []
    lineage = Lineage(at_us=target.at_us)
    with LogReader(at.kafka) as log, Registry(at.registry) as registry:
        for event in events_of(history_of(at, log), Codec(registry), workflow_id, row, missing.append):
            lineage.add(event)
    _check_open(lineage, workflow_id)
    saved = _found(lineage, workflow_id, target)
    return Plan(
        workflow_id=workflow_id,
        workflow_type=row["workflow_type"],
        external_id=row["external_id"],
        partition=row["log_partition"],
        checkpoint=saved,
        steps=tuple(_again(lineage, step_id) for step_id in lineage.again(saved)),
        errors=tuple(errors),
        missing=tuple(missing),
    )


def events_of(
    history: History, codec: Codec, workflow_id: str, row: Row, on_gap: Callable[[Gap], None]
) -> Iterator[Any]:
    """All events of a workflow, delivered; those that nobody can read are passed over."""
    partition, key = row["log_partition"], workflow_id.encode()
    end = history.bounds()[partition].end
    for found in history.read({partition: (row["first_offset"], end)}, on_gap=on_gap):
        if found.key != key:
            continue
        try:
            record = admit(codec, found.key, found.value)
        except PoisonError:
            continue
        if not isinstance(record, Unknown | Command):
            yield deliver(record, partition, found.offset, found.timestamp_ms * 1000)


def _check_open(lineage: Lineage, workflow_id: str) -> None:
    if lineage.ended is not None:
        raise RefusedError(
            f"workflow {workflow_id} has {lineage.ended}; a workflow that has ended stays so: start a new one"
        )
    if lineage.erased:
        raise RefusedError(f"the keys of workflow {workflow_id} were erased: none of its states can be read any more")


def _found(lineage: Lineage, workflow_id: str, target: Target) -> Saved:
    if target.checkpoint_id is not None:
        return _named(lineage, workflow_id, target.checkpoint_id)
    listed = f"kintsugi checkpoints list --workflow {workflow_id}"
    if target.before_step is not None:
        began, saved = lineage.before_step(target.before_step)
        if not began:
            steps = ", ".join(lineage.ran) or "none"
            raise NotFoundError(
                f"step {target.before_step!r} has not begun since the workflow's start or its last restore; "
                f"steps that ran: {steps}"
            )
        if saved is None:
            raise RefusedError(f"no verified checkpoint stands before step {target.before_step!r}; {listed}")
        return saved
    saved = lineage.newest(lineage.line_at)
    if saved is None:
        raise RefusedError(f"the workflow had no verified checkpoint at that time; {listed}")
    return saved


def _named(lineage: Lineage, workflow_id: str, checkpoint_id: str) -> Saved:
    node = lineage.nodes.get(checkpoint_id)
    listed = f"kintsugi checkpoints list --workflow {workflow_id}"
    why = lineage.refused.get(checkpoint_id)
    if why is not None:
        raise RefusedError(f"checkpoint {checkpoint_id} is no target: {why}. Others: {listed}")
    if node is None or node.saved is None:
        raise NotFoundError(f"workflow {workflow_id} has no checkpoint {checkpoint_id}; {listed}")
    return node.saved


def _again(lineage: Lineage, step_id: str) -> Again:
    spec, ran = lineage.specs.get(step_id), lineage.ran[step_id]
    return Again(
        step_id=step_id,
        status=ran.status,
        begun=ran.begun,
        completed=ran.completed,
        # Of a step that was never declared nothing is known: its owner is asked to think.
        idempotent=spec is not None and spec.idempotent,
        compensation=None if spec is None else spec.compensation,
    )


#: A request gets further, never back; the last three are ends.
_ORDER = ("requested", "commanded", "accepted", "restored", "failed", "timed_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far a request has come. `final` ends the waiting."""

    what: Literal["requested", "commanded", "accepted", "restored", "failed", "timed_out"]
    detail: str = ""
    reason: str | None = None

    @property
    def final(self) -> bool:
        """Whether nothing more is waited for."""
        return self.what in ("restored", "failed", "timed_out")


class Restore:
    """One request: written to the log, then followed there. Use as a context manager."""

    def __init__(self, at: Addresses, chosen: Plan, reason: str) -> None:
        if not 1 <= len(reason) <= REASON_CHARS_MAX:
            raise ConfigError(f"the reason has {len(reason)} characters, 1 to {REASON_CHARS_MAX} are allowed")
        self._at = at
        self._plan = chosen
        request_id = str(uuid.uuid4())
        saved = chosen.checkpoint
        self.request = RestoreRequested(
            event_id=derive_id(request_id, "RestoreRequested"),
            workflow_id=chosen.workflow_id,
            workflow_type=chosen.workflow_type,
            external_id=chosen.external_id,
            occurred_at=time.time_ns() // 1000,
            producer="kintsugi-cli",
            request_id=request_id,
            checkpoint_id=saved.checkpoint_id,
            checkpoint_partition=saved.partition,
            checkpoint_offset=saved.offset,
            checkpoint_digest=saved.digest,
            reason=reason,
            actor=actor(),
        )
        #: Commands that carry the request out: one, named by the request or by the decision it led to.
        self._commands = {derive_id(self.request.event_id, "command|ResumeFromCheckpoint")}
        self._attempts: set[str] = set()
        self._sent: set[str] = set()
        self._positions: dict[tuple[str, int], int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Restore:
        self._log = self._stack.enter_context(LogReader(self._at.kafka))
        self._codec = Codec(self._stack.enter_context(Registry(self._at.registry)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self) -> None:
        """Write the request and wait until the broker has it. RetriableError when it has not."""
        events = self._log.bounds(EVENTS)[self._plan.partition]
        self._positions[EVENTS, self._plan.partition] = events[1]
        for partition, (_, high) in self._log.bounds(COMMANDS).items():
            self._positions[COMMANDS, partition] = high
        publish(
            self._at.kafka,
            EVENTS,
            self._plan.workflow_id,
            self._codec.encode(self.request),
            headers=headers_for(self.request),
            partition=self._plan.partition,
        )

    def follow(self, timeout_s: float) -> Iterator[Step]:
        """What becomes of the request, as it happens; the last one is final, at the latest when the time is over."""
        deadline_s = time.monotonic() + timeout_s
        seen = Step(what="requested")
        yield seen
        while True:
            for record in self._news():
                step = self._read(record)
                if step is None or _ORDER.index(step.what) <= _ORDER.index(seen.what):
                    continue
                seen = step
                yield seen
                if seen.final:
                    return
            if time.monotonic() >= deadline_s:
                yield Step(what="timed_out", detail=_WAITED_FOR[seen.what])
                return
            time.sleep(_LOOK_EVERY_S)

    def _news(self) -> Iterator[Record]:
        """Records of the workflow that came since the last look, commands first: an answer follows its command."""
        key = self._plan.workflow_id.encode()
        for topic in (COMMANDS, EVENTS):
            bounds = self._log.bounds(topic)
            ranges = {p: (at, bounds[p][1]) for (of, p), at in self._positions.items() if of == topic}
            for message in self._log.read(topic, ranges):
                found = record_of(message)
                self._positions[topic, found.partition] = found.offset + 1
                if found.key != key:
                    continue
                try:
                    record = admit(self._codec, found.key, found.value)
                except PoisonError:
                    continue
                if not isinstance(record, Unknown):
                    yield record
            for partition, (_, end) in ranges.items():
                self._positions[topic, partition] = max(end, self._positions[topic, partition])

    def _read(self, record: Record) -> Step | None:
        if isinstance(record, RecoveryDecided) and record.causation_id == self.request.event_id:
            self._commands.add(record.command_id or "")
            self._attempts.add(record.attempt_id)
            if record.command_id in self._sent:
                return Step(what="commanded", detail=record.command_id)
        elif isinstance(record, ResumeFromCheckpoint):
            self._sent.add(record.command_id)  # its decision may be read after it
            if record.command_id in self._commands:
                return Step(what="commanded", detail=record.command_id)
        elif isinstance(record, CommandAcknowledged) and record.command_id in self._commands and not record.duplicate:
            if record.status == "accepted":
                return Step(what="accepted", detail=record.producer)
            if record.status in ("failed", "unknown"):
                return Step(what="failed", detail=record.detail or record.status, reason=record.reason)
        elif isinstance(record, StateRestored) and record.command_id in self._commands:
            return Step(what="restored", detail=f"restore {record.restore_count} of this workflow")
        elif isinstance(record, RecoveryAttemptFinished) and record.attempt_id in self._attempts:
            if record.outcome != "succeeded":
                return Step(what="failed", detail=record.error_message or record.outcome)
        elif isinstance(record, _ENDS):
            return Step(what="failed", detail="the workflow ended first")
        return None


#: What a request that was not carried out in time was still waiting for, and where to look.
_WAITED_FOR = {
    "requested": "no command was sent: is a recovery process running? The request waits in the log until one is",
    "commanded": "no service accepted the command: is a process of it up and listening? Then restore again",
    "accepted": "the service accepted the command and has not restored the state yet",
}
