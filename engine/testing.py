"""An in-memory log with the real engine on it, and a clock that moves only when told: for tests and simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.ids import derive_id
from schemas.records import Command, Record
from schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    RecoveryDecided,
    StepCompleted,
    StepSpec,
    StepStarted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

from .decide import decide
from .effects import Append, Coordinate
from .events import Delivered
from .fold import evolve
from .inforce import InForce
from .inspection import Inspector
from .policy import Policy
from .state import WorkflowState
from .timers import due, next_due_us

R = TypeVar("R", bound=Record)

#: Records one `settle` may fold; a loop that feeds itself is a defect and ends here.
SETTLE_RECORDS_MAX = 100_000
START_US = 1_800_000_000_000_000


def saved(workflow_id: str, step_id: str, number: int = 0) -> dict[str, object]:
    """The fields of a record that holds a small sound state; `number` makes it another one."""
    document = {"workflow_id": workflow_id, "step_id": step_id, "status": "running", "data": {"n": number}}
    data = canonical_bytes(document)
    return {"codec": "identity", "size_bytes": len(data), "digest": digest_of(data), "state": data}


class World:
    """One partition, one engine. What the engine appends is folded after what stands before it, as in the log."""

    def __init__(self, policy: Policy, inspector: Inspector | None = None) -> None:
        self.in_force = InForce(policy)
        self.inspector = inspector or Inspector()
        self.now_us = START_US
        self.log: list[Delivered] = []
        self.commands: list[Command] = []
        #: What the coordinator was told.
        self.told: list[Record] = []
        self.states: dict[str, WorkflowState] = {}
        self._read = 0
        self._ids = 0

    @property
    def policy(self) -> Policy:
        """The policy in force at the end of the log."""
        return self.in_force.policy

    def new_id(self) -> str:
        """The next id; the same in every run."""
        self._ids += 1
        return derive_id("world", "id", self._ids)

    def append(self, record: Record) -> Delivered:
        """Write a record to the log, without folding it yet."""
        event = self.inspector.deliver(record, 0, len(self.log), self.now_us)
        self.log.append(event)
        return event

    def settle(self) -> None:
        """Fold everything in the log, and what the engine appends on the way."""
        for _ in range(SETTLE_RECORDS_MAX):
            if self._read == len(self.log):
                return
            event = self.log[self._read]
            self._read += 1
            if self.in_force.take(event):
                continue
            workflow_id = event.record.workflow_id
            state = self.states[workflow_id] = evolve(self.states.get(workflow_id), event)
            for effect in decide(state, event, self.policy, self.in_force.breakers):
                if isinstance(effect, Append):
                    self.append(effect.record)
                elif isinstance(effect, Coordinate):
                    self.told.append(effect.record)
                else:
                    self.commands.append(effect.command)
        raise AssertionError(f"the log did not settle within {SETTLE_RECORDS_MAX} records")

    def advance(self, ms: int) -> None:
        """Let time pass, firing timers in the order they are due."""
        end_us = self.now_us + ms * 1000
        while True:
            self.settle()
            moments = [m for s in self.states.values() if (m := next_due_us(s, self.policy)) is not None]
            if not moments or min(moments) > end_us:
                break
            self.now_us = max(self.now_us, min(moments))
            for state in list(self.states.values()):
                for fact in due(state, self.policy, self.now_us):
                    self.append(fact)
        self.now_us = end_us

    def records(self, kind: type[R]) -> list[R]:
        """Records of one type, in log order."""
        return [e.record for e in self.log if isinstance(e.record, kind)]


class Service:
    """A workflow as its service reports it: each method writes one event and settles the log."""

    def __init__(self, world: World, steps: tuple[StepSpec, ...] = (), **started: object) -> None:
        self.world = world
        self.workflow_id = world.new_id()
        self.runs: dict[str, str] = {}
        self.epoch = 0
        self.sequence = 0
        #: Chain digest and digest of the last checkpoint.
        self.chain: tuple[str, str] | None = None
        if steps:
            self.emit(WorkflowStarted, workflow_version="1", steps=steps, **started)

    def build(self, kind: type[R], /, **fields: object) -> R:
        """A record of this workflow with the next id."""
        return kind(
            event_id=self.world.new_id(),
            workflow_id=self.workflow_id,
            workflow_type="development",
            occurred_at=self.world.now_us,
            producer="test",
            **cast(Any, fields),
        )

    def emit(self, kind: type[R], /, **fields: object) -> R:
        """Write one record and let the engine react."""
        record = self.build(kind, **fields)
        self.world.append(record)
        self.world.settle()
        return record

    def start(self, step_id: str, command: Command | None = None, **fields: object) -> StepStarted:
        """A run of a step begins."""
        self.runs[step_id] = self.world.new_id()
        command_id = command.command_id if command else None
        return self.emit(StepStarted, step_id=step_id, step_run_id=self.runs[step_id], command_id=command_id, **fields)

    def complete(self, step_id: str, command: Command | None = None) -> StepCompleted:
        """The run succeeds."""
        command_id = command.command_id if command else None
        return self.emit(
            StepCompleted, step_id=step_id, step_run_id=self.runs[step_id], command_id=command_id, duration_ms=1
        )

    def fail(self, step_id: str, code: str = "ValueError", command: Command | None = None) -> WorkflowErrorOccurred:
        """The run fails."""
        return self.emit(
            WorkflowErrorOccurred,
            error_id=self.world.new_id(),
            step_id=step_id,
            step_run_id=self.runs.get(step_id),
            command_id=command.command_id if command else None,
            error_code=code,
            error_message=f"{code} in {step_id}",
            detected_by="service",
        )

    def acknowledge(self, command: Command, status: str = "accepted", **fields: object) -> CommandAcknowledged:
        """Answer a command."""
        return self.emit(
            CommandAcknowledged,
            command_id=command.command_id,
            error_id=command.error_id,
            attempt_number=command.attempt_number,
            status=status,
            **fields,
        )

    def checkpoint(
        self, step_id: str, make: Callable[[str, str], dict[str, object]], **changed: object
    ) -> CheckpointCreated:
        """Save a state; `make(workflow_id, step_id)` gives the checkpoint's state fields. It links to the one before.

        `changed` fields are put in last; what comes after links to the record as it should have been.
        """
        self.sequence += 1
        state = make(self.workflow_id, step_id)
        digest = str(state["digest"])
        parent_chain, parent_digest = self.chain or (None, None)
        self.chain = chain_digest_of(parent_chain, digest), digest
        fields = {
            "checkpoint_id": self.world.new_id(),
            "step_id": step_id,
            "checkpoint_type": "step_complete",
            "epoch": self.epoch,
            "sequence": self.sequence,
            "state_version": "1",
            "status": "running",
            **state,
            "parent_digest": parent_digest,
            "chain_digest": self.chain[0],
            **changed,
        }
        return self.emit(CheckpointCreated, **fields)

    @property
    def state(self) -> WorkflowState:
        """The engine's state of this workflow."""
        return self.world.states[self.workflow_id]

    @property
    def decisions(self) -> list[RecoveryDecided]:
        """Decisions made for this workflow."""
        return [d for d in self.world.records(RecoveryDecided) if d.workflow_id == self.workflow_id]
