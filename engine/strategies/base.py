"""What a strategy is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..classify import STATE_CORRUPTION
from ..state import Case, CheckpointRef, WorkflowState

if TYPE_CHECKING:  # the policy names strategies, so it may not be imported here
    from ..policy.model import Policy, Rung


@dataclass(frozen=True, slots=True)
class Situation:
    """The case to repair. `attempt_id` is what jitter is drawn from."""

    state: WorkflowState
    case: Case
    rung: Rung
    policy: Policy
    attempt_id: str
    tries: int

    @property
    def stage(self) -> str:
        """The stage of this strategy that was answered last; empty at its beginning."""
        return self.case.stage

    def checkpoint_before_step(self, step_id: str) -> CheckpointRef | None:
        """The newest verified checkpoint, older than the error, that was made before the step first began."""
        number = self.state.graph.index.get(step_id, -1)
        found = self.state.checkpoints_before(self.case.opened_offset)
        first = next((at for at, ref in enumerate(found) if ref.step == number), None)
        return None if not first else found[first - 1]

    def checkpoint(self, back: int = 0) -> CheckpointRef | None:
        """The newest verified checkpoint older than the error, or the one `back` steps before it."""
        found = self.state.checkpoints_before(self.case.opened_offset)
        return found[-1 - back] if back < len(found) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A repair: the command to send (None: none), when, and with what."""

    command_type: str | None
    action: str
    execute_after_ms: int = 0
    timeout_ms: int | None = None
    checkpoint: CheckpointRef | None = None
    #: Of a strategy that takes several commands: which part this is.
    stage: str = ""
    #: The step that the command is about, where that is not the failed one.
    step_id: str | None = None
    #: Further fields of the command.
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The strategy cannot serve here; `reason` is written into the decision."""

    reason: str


Strategy = Callable[[Situation], Plan | Unavailable]

#: How the stages begin that undo steps, one command each.
UNDO_STAGE = "undo"


def run_again(situation: Situation, action: str, *, execute_after_ms: int = 0, timeout_ms: int | None = None) -> Plan:
    """Run the step again; a workflow that stands between steps goes on from its newest checkpoint instead.

    The checkpoint goes along so that another process can take the workflow over.
    """
    state, case = situation.state, situation.case
    checkpoint = situation.checkpoint()
    if case.step_id:
        command = "RetryStep"
        if checkpoint is not None and case.error_type != STATE_CORRUPTION:
            checkpoint = state.checkpoint_beside(case.step_id, checkpoint.offset) or checkpoint
    else:
        command = "ResumeFromCheckpoint" if checkpoint is not None else "RestartWorkflow"
    return Plan(
        command_type=command,
        action=action,
        execute_after_ms=execute_after_ms,
        timeout_ms=timeout_ms,
        checkpoint=checkpoint,
    )
