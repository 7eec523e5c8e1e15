"""A workflow's checkpoints as a tree: what stands on the way to where it is now, and what a restore left behind.

The present line is what leads to the workflow's present state. Each checkpoint, each run of a step and its end is one
node on it. A restore bends the line back to the checkpoint it names (to the beginning, when it names none); what was
written in between stays in the tree and is on the line no more.

Pure: folds delivered events of one workflow, in the order of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engine.events import Delivered
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CheckpointsExpired,
    StateRestored,
    StepCompensated,
    StepCompleted,
    StepSkipped,
    StepSpec,
    StepStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowFailed,
    WorkflowKeyErased,
    WorkflowStarted,
)

#: Written when the step's work is done, before its completion is.
_AFTER_STEP = frozenset({"step_complete", "critical_point"})
_ENDS = {WorkflowCompleted: "completed", WorkflowFailed: "failed", WorkflowCancelled: "cancelled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint as a target of a restore."""

    checkpoint_id: str
    step_id: str
    checkpoint_type: str
    epoch: int
    sequence: int
    state_version: str
    size_bytes: int
    digest: str
    protection: str
    partition: int
    offset: int
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class Node:
    """One thing on a line, and what stands before it. `done`: the step need not run; `undone`: it was compensated."""

    kind: Literal["saved", "began", "done", "undone"]
    step_id: str
    before: Node | None
    saved: Saved | None = None


@dataclass(slots=True)
class Ran:
    """How a step fared so far, on all lines."""

    begun: int = 0
    completed: int = 0
    status: str = "running"


def along(node: Node | None) -> Iterator[Node]:
    """A line from its newest node back to its beginning."""
    while node is not None:
        yield node
        node = node.before


def done_at(node: Node | None) -> set[str]:
    """Steps that need not run again from here."""
    seen: set[str] = set()
    done: set[str] = set()
    for at in along(node):
        finished = at.kind == "done" or (at.saved is not None and at.saved.checkpoint_type in _AFTER_STEP)
        if at.step_id not in seen and (finished or at.kind == "undone"):
            seen.add(at.step_id)
            if finished:
                done.add(at.step_id)
    return done


@dataclass(slots=True)
class Lineage:
    """Fold of a workflow's events. With `at_us`, `line_at` is the line as it was at that moment."""

    at_us: int | None = None
    line: Node | None = None
    line_at: Node | None = None
    specs: dict[str, StepSpec] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    #: Checkpoints that are no targets, and why.
    refused: dict[str, str] = field(default_factory=dict)
    ran: dict[str, Ran] = field(default_factory=dict)
    #: The run of each step that counts; "" when the last one was left behind by a restore.
    runs: dict[str, str] = field(default_factory=dict)
    ended: str | None = None
    erased: bool = False
    epoch: int = 0

    def add(self, event: Delivered) -> None:
        """The next event. One that says what is known already changes nothing."""
        record = event.record
        if isinstance(record, CheckpointCreated):
            self._saved(record, event)
        elif isinstance(record, StateRestored):
            self.epoch = max(self.epoch, record.epoch)
            self.runs = dict.fromkeys(self.runs, "")
            self.line = None if record.checkpoint_id is None else self.nodes.get(record.checkpoint_id, self.line)
        elif isinstance(record, CheckpointRejected):
            self.refused.setdefault(record.checkpoint_id, f"it was rejected: {record.reason}: {record.detail}")
        elif isinstance(record, CheckpointsExpired):
            for checkpoint_id in record.checkpoint_ids:
                self.refused.setdefault(checkpoint_id, f"it has expired: {record.reason}")
        elif isinstance(record, WorkflowKeyErased):
            self.erased = True
        elif isinstance(record, WorkflowStarted):
            self.specs = self.specs or {spec.step_id: spec for spec in record.steps}
        elif type(record) in _ENDS:
            self.ended = self.ended or _ENDS[type(record)]
        else:
            self._step(event)
        if self.at_us is not None and event.timestamp_us <= self.at_us:
            self.line_at = self.line

    def _saved(self, record: CheckpointCreated, event: Delivered) -> None:
        if record.checkpoint_id in self.nodes:
            return
        if record.evidence:
            self.refused[record.checkpoint_id] = "it is evidence of an error, which need not be a sound state"
        elif event.rejection is not None:
            self.refused[record.checkpoint_id] = f"it does not verify: {event.rejection[0]}: {event.rejection[1]}"
        elif record.epoch < self.epoch:
            self.refused[record.checkpoint_id] = "it was written by a run that another one had replaced"
        self.epoch = max(self.epoch, record.epoch)
        saved = Saved(
            checkpoint_id=record.checkpoint_id,
            step_id=record.step_id,
            checkpoint_type=record.checkpoint_type,
            epoch=record.epoch,
            sequence=record.sequence,
            state_version=record.state_version,
            size_bytes=record.size_bytes,
            digest=record.digest,
            protection=record.protection,
            partition=event.partition,
            offset=event.offset,
            timestamp_us=event.timestamp_us,
        )
        node = self.nodes[record.checkpoint_id] = Node("saved", record.step_id, self.line, saved)
        if record.checkpoint_id not in self.refused:
            self.line = node

    def _step(self, event: Delivered) -> None:
        record = event.record
        if isinstance(record, StepStarted):
            ran = self.ran.setdefault(record.step_id, Ran())
            ran.begun += 1
            self.runs[record.step_id] = record.step_run_id
            ran.status = "running"
            self.line = Node("began", record.step_id, self.line)
        elif isinstance(record, StepCompleted):
            if self.runs.get(record.step_id, record.step_run_id) != record.step_run_id:
                return  # a run that was replaced ended after all
            ran = self.ran.setdefault(record.step_id, Ran())
            ran.completed += 1
            ran.status = "completed"
            self.line = Node("done", record.step_id, self.line)
        elif isinstance(record, StepSkipped):
            self.line = Node("done", record.step_id, self.line)
        elif isinstance(record, StepCompensated):
            self.ran.setdefault(record.step_id, Ran()).status = "compensated"
            self.line = Node("undone", record.step_id, self.line)
        elif isinstance(record, WorkflowErrorOccurred) and record.step_id in self.ran:
            if self.ran[record.step_id].status == "running":
                self.ran[record.step_id].status = "failed"

    # -- targets --------------------------------------------------------------------------------------------------

    def newest(self, node: Node | None) -> Saved | None:
        """The newest checkpoint on a line that may be restored."""
        return next((at.saved for at in along(node) if at.saved is not None and self._may(at.saved)), None)

    def before_step(self, step_id: str) -> tuple[bool, Saved | None]:
        """Whether the step began on the present line, and the newest target from before it first did."""
        first: Node | None = None
        for at in along(self.line):
            if at.kind == "began" and at.step_id == step_id:
                first = at
        return first is not None, None if first is None else self.newest(first.before)

    def _may(self, saved: Saved) -> bool:
        return saved.checkpoint_id not in self.refused

    def again(self, target: Saved) -> list[str]:
        """Steps that ran, on whichever line, and run again from this checkpoint; in declared order."""
        done = done_at(self.nodes[target.checkpoint_id])
        order = {step_id: number for number, step_id in enumerate([*self.specs, *self.ran])}
        return sorted((step for step in self.ran if step not in done), key=lambda step: order[step])
