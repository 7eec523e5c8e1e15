"""What the engine knows of one workflow. A few hundred bytes when all goes well; bounded whatever happens.

A state is changed in place by `engine.fold.evolve` and by nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from schemas.ids import uuid_bytes, uuid_text
from schemas.records.events import CheckpointCreated, RecoveryDecided
from schemas.state_schema import StateSchema

from .graph import EMPTY, Graph
from .usage import Usage

#: Checkpoints remembered per workflow; the story's default retention.
CHECKPOINTS_MAX = 50
#: Ids of events remembered per workflow, so that a repeated one is not folded twice. 8 bytes each.
KNOWN_MAX = 512
#: Steps that may run at once in one workflow; more are folded, but not timed.
RUNS_MAX = 1024
#: Repairs that may be open at once in one workflow.
CASES_MAX = 64

PENDING, RUNNING, COMPLETED, FAILED, SKIPPED, COMPENSATED = range(6)
_DONE = (COMPLETED, SKIPPED)
#: Offset from which a step counts as completed, and its number.
_EFFECT = struct.Struct(">QI")
#: Steps with side effects remembered in their order; a loop of them forgets the oldest.
EFFECTS_MAX = 10_000

#: Id, digest, chain digest, 8 bytes of its event's id, offset, sequence, step.
_CHECKPOINT = struct.Struct(">16s32s32s8sqIH")


class CheckpointRef(NamedTuple):
    """A verified checkpoint: where it stands in the log, what its state must digest to, and its link of the chain."""

    checkpoint_id: str
    digest: str
    offset: int
    sequence: int
    step: int
    link: bytes
    event: bytes

    def is_event(self, event_id: str) -> bool:
        """Whether it came with this event."""
        return uuid_bytes(event_id)[:8] == self.event


@dataclass(slots=True)
class StepRun:
    """A run of a step that has not ended."""

    run_id: str
    command_id: str | None
    started_at_us: int
    heard_at_us: int
    timeout_ms: int | None
    heartbeat_timeout_ms: int | None
    timed_out: bool = False
    #: Digests of its input's digest and of what its heartbeats said last; 0 when nothing was said.
    given: int = 0
    said: int = 0


@dataclass(slots=True)
class Attempt:
    """One attempt to repair: decided -> sent -> accepted; its end removes it from the case.

    A command that may not go out yet is held: `held` says by what.
    """

    decision: RecoveryDecided
    status: str
    decided_at_us: int
    execute_at_us: int
    sent_at_us: int = 0
    accepted_at_us: int = 0
    epoch: int = 0
    held: str = ""
    held_at_us: int = 0


@dataclass(slots=True)
class Case:
    """An open error and how far its repair has come.

    `progress` holds per error type (rung, attempts made on it): an error that changes its type on the way changes
    ladders, and comes back to where it left. `unanswered` counts the attempts in a row that no service answered.

    `stage` is the stage of a strategy of several commands that was answered last. `unsure`: the step's last run may
    have taken effect; `reconciled` is what the service found out about that. `undoing` names the strategy that is
    undoing steps, down to the checkpoint at offset `undo_to` (-1: all of them).

    `claimed_by` looks after the open intervention. `approved`: a human let the workflow pass the step's intervention
    point. `requested` is the operator's request that is being decided, with the number
    kept for it, `promised` the last number kept for what people asked for.
    """

    error_id: str
    step_id: str
    error_type: str
    severity: str
    opened_at_us: int
    opened_offset: int
    occurrences: int = 1
    attempts: int = 0
    restores: int = 0
    timeout_ms: int | None = None
    attempt: Attempt | None = None
    intervention_id: str | None = None
    intervention_deadline_us: int = 0
    interventions: int = 0
    unanswered: int = 0
    progress: dict[str, tuple[int, int]] | None = None
    error_code: str = ""
    message: str = ""
    fingerprint: str = ""
    dependency: str | None = None
    stage: str = ""
    unsure: bool = False
    reconciled: str = ""
    undoing: str = ""
    undo_to: int = -1
    undo_tries: int = 0
    cost: float = 0.0
    scaled: float = 1.0
    holds_dependants: bool = False
    claimed_by: str = ""
    approved: bool = False
    requested: str = ""
    promised: int = 0
    requested_number: int = 0

    @property
    def next_number(self) -> int:
        """Number of the next attempt: after all that were made, or that people's records will be given."""
        return max(self.attempts, self.promised) + 1

    def promise(self, *, on_its_way: bool = False) -> None:
        """Keep a number for what a person asks for; it comes after a decision that is on its way."""
        self.promised = self.next_number + on_its_way

    #: What the workflow did when its loop was found (see `engine.recent`): it has to leave that.
    loop: bytes = b""


class Transition(NamedTuple):
    """What the last event changed, for `decide`: opened, again, ended, recovered, sent, ..."""

    kind: str
    case: Case | None = None
    attempt: Attempt | None = None
    outcome: str = ""
    detail: str = ""
    step_id: str = ""
    run: StepRun | None = None
    intervention_id: str = ""


@dataclass(slots=True)
class WorkflowState:
    """Everything the engine keeps of one workflow. Times are broker times, microseconds since the epoch."""

    workflow_id: str
    workflow_type: str
    partition: int
    last_offset: int = -1
    heard_offset: int = -1
    heard_us: int = 0
    status: str = "running"
    graph: Graph = EMPTY
    #: What the service's part of a state of this version must look like.
    schema: StateSchema | None = None
    schema_version: str | None = None
    steps: bytearray | bytes = b""
    started_offset: int = -1
    started_at_us: int = 0
    ended_at_us: int = 0
    paused_at_us: int = 0
    timeout_ms: int | None = None
    deadline_from_us: int = 0
    workflow_timeouts: int = 0
    deadline_passed: bool = False
    stalled: bool = False
    attempts: int = 0
    last_step: int = -1
    runs: dict[int, StepRun] | None = None
    cases: dict[str, Case] | None = None
    #: Epoch of the run whose checkpoints count, and the newest that a command was given.
    epoch: int = 0
    epochs: int = 0
    #: Of this epoch's last checkpoint (-1 while it has none), and of all.
    sequence: int = 0
    last_sequence: int = 0
    #: What the next checkpoint links to: chain digest and digest of the last one; None when that is not known.
    tip: bytes | None = None
    checkpoints: bytes = b""
    known: bytes = b""
    #: Completed steps that repeating would harm or that can be undone, in the order of their completion.
    effects: bytes = b""
    #: The newest checkpoint that was made when such a step completed: step and offset.
    saved_step: int = -1
    saved_offset: int = -1
    #: Size of a resource, relative to the service's own, with which a repair worked.
    sizes: dict[str, float] | None = None
    cost: float = 0.0
    #: The coordinator knows of it: it asked for a resource or waits for another workflow.
    coordinated: bool = False
    #: The steps completed last, for finding loops, and whether a state was saved since the last of them.
    recent: bytes = b""
    fresh: bool = False
    usage: Usage | None = None
    #: Leases that steps asked for: id, number of the step.
    leases: dict[str, int] | None = None
    transitions: tuple[Transition, ...] = ()

    @property
    def terminal(self) -> bool:
        """Whether the workflow has ended."""
        return self.ended_at_us > 0

    def case_of(self, step_id: str) -> Case | None:
        """The open case of a step."""
        for case in (self.cases or {}).values():
            if case.step_id == step_id:
                return case
        return None

    def step_index(self, step_id: str) -> int:
        """Number of a step; a step not seen before joins the graph. -1 when the graph is full."""
        number = self.graph.index.get(step_id)
        if number is not None:
            return number
        grown = self.graph.with_step(step_id)
        number = grown.index.get(step_id, -1)
        if number >= 0:
            self.graph = grown
            self.steps = bytearray(self.steps) + b"\x00"
        return number

    def end_run(self, number: int) -> None:
        """The run of a step, if it has one, is over."""
        if self.runs is not None:
            self.runs.pop(number, None)
            self.runs = self.runs or None

    def open_case(self, case: Case) -> None:
        """An error begins to be repaired."""
        self.cases = {**(self.cases or {}), case.error_id: case}

    def close_case(self, case: Case) -> None:
        """An error is over."""
        left = {error_id: other for error_id, other in (self.cases or {}).items() if error_id != case.error_id}
        self.cases = left or None

    def set_step(self, number: int, status: int) -> None:
        """Record the status of a step."""
        if not isinstance(self.steps, bytearray):
            self.steps = bytearray(self.steps)
        self.steps[number] = status

    def next_step(self) -> str | None:
        """The step that runs, else the first in declared order that is not done and whose dependencies are."""
        if self.runs:
            return self.graph.steps[next(iter(self.runs))].step_id
        index = self.graph.index
        for number, spec in enumerate(self.graph.steps):
            if self.steps[number] not in _DONE and all(
                d not in index or self.steps[index[d]] in _DONE for d in spec.depends_on
            ):
                return spec.step_id
        return None

    def add_checkpoint(self, record: CheckpointCreated, offset: int, step: int) -> None:
        """Remember a verified checkpoint, forgetting the oldest beyond the bound. A repeated one is left as it is."""
        raw = uuid_bytes(record.checkpoint_id)
        if self._place_of(raw) >= 0:
            return
        packed = _CHECKPOINT.pack(
            raw,
            bytes.fromhex(record.digest),
            bytes.fromhex(record.chain_digest),
            uuid_bytes(record.event_id)[:8],
            offset,
            max(0, record.sequence) & 0xFFFFFFFF,
            max(0, step),
        )
        self.checkpoints = (self.checkpoints + packed)[-CHECKPOINTS_MAX * _CHECKPOINT.size :]

    def drop_checkpoints(self, checkpoint_ids: Iterable[str]) -> None:
        """Forget checkpoints that may not be restored any more."""
        gone, size = {uuid_bytes(i) for i in checkpoint_ids}, _CHECKPOINT.size
        parts = [self.checkpoints[i : i + size] for i in range(0, len(self.checkpoints), size)]
        self.checkpoints = b"".join(p for p in parts if p[:16] not in gone)

    def find_checkpoint(self, checkpoint_id: str) -> CheckpointRef | None:
        """A remembered checkpoint."""
        at = self._place_of(uuid_bytes(checkpoint_id))
        return None if at < 0 else _ref(_CHECKPOINT.unpack_from(self.checkpoints, at))

    def all_checkpoints(self) -> Iterator[CheckpointRef]:
        """Remembered checkpoints, oldest first."""
        return map(_ref, _CHECKPOINT.iter_unpack(self.checkpoints))

    def checkpoints_before(self, offset: int) -> list[CheckpointRef]:
        """Verified checkpoints that stand before `offset` in the log, oldest first."""
        return [ref for ref in self.all_checkpoints() if ref.offset < offset]

    def newest_before(self, offset: int) -> CheckpointRef | None:
        """The newest verified checkpoint that stands before `offset` in the log."""
        found = self.checkpoints_before(offset)
        return found[-1] if found else None

    def checkpoint_beside(self, step_id: str, offset: int) -> CheckpointRef | None:
        """The newest checkpoint after `offset` that another step made: a branch that went on beside the failed one."""
        own = self.graph.index.get(step_id, -1)
        found = [ref for ref in self.all_checkpoints() if ref.offset > offset and ref.step != own]
        return found[-1] if found else None

    def _place_of(self, raw: bytes) -> int:
        at = self.checkpoints.find(raw)
        while at % _CHECKPOINT.size and at >= 0:  # found across the border of two fields: no entry's id
            at = self.checkpoints.find(raw, at + 1)
        return at

    def add_effect(self, number: int, offset: int) -> None:
        """A step with side effects completed. A checkpoint made by its completion stands before the event."""
        since = self.saved_offset if self.saved_step == number else offset
        self.effects = (self.effects + _EFFECT.pack(max(0, since), number))[-EFFECTS_MAX * _EFFECT.size :]

    def drop_effect(self, number: int) -> None:
        """The step was undone: nothing of it is left."""
        self.effects = b"".join(_EFFECT.pack(*e) for e in _EFFECT.iter_unpack(self.effects) if e[1] != number)

    def effects_after(self, offset: int) -> list[int]:
        """Steps with side effects that a state saved at `offset` does not know of, the last completed first."""
        found = dict.fromkeys(step for since, step in _EFFECT.iter_unpack(self.effects) if since > offset)
        return list(found)[::-1]

    def first_sight(self, event_id: str) -> bool:
        """Whether this id is new; it is remembered, forgetting the oldest beyond the bound.

        Only events whose effect on the state is not idempotent by itself are asked about. 8 bytes of an id are kept.
        """
        raw = uuid_bytes(event_id)[:8]
        at = self.known.find(raw)
        while at >= 0:
            if at % 8 == 0:
                return False
            at = self.known.find(raw, at + 1)
        self.known = (self.known + raw)[-KNOWN_MAX * 8 :]
        return True


def _ref(entry: tuple[bytes, bytes, bytes, bytes, int, int, int]) -> CheckpointRef:
    raw, digest, chain_digest, event, offset, sequence, step = entry
    return CheckpointRef(uuid_text(raw), digest.hex(), offset, sequence, step, chain_digest + digest, event)
