"""From a decision to the command that carries it out."""

from __future__ import annotations

import json
from binascii import a2b_base64
from typing import Any

from schemas.ids import derive_id
from schemas.records import COMMAND_TYPES, Command
from schemas.records.events import RecoveryDecided, RestoreRequested

from .classify import STATE_CORRUPTION
from .effects import fact
from .events import Delivered
from .policy.model import Policy
from .state import Attempt, CheckpointRef, WorkflowState

#: Commands that begin a run: they carry its epoch.
BEGINNING = frozenset(name for name, kind in COMMAND_TYPES.items() if "epoch" in kind.__dataclass_fields__)
#: Commands that go on from where the workflow stands, for one step; the others go back.
_GOING_ON = frozenset({"RetryStep", "SkipStep", "RunAlternativePath"})


def command_of(attempt: Attempt, state: WorkflowState, cause: Delivered, policy: Policy) -> Command:
    """The command of a decision. Its id comes from the decision, so it is the same whoever builds it and how often.

    It expires when the engine stops waiting for its acceptance: nothing is run that the engine has given up on.
    """
    decision = attempt.decision
    assert decision.command_type is not None and decision.command_id is not None
    kind = COMMAND_TYPES[decision.command_type]
    started = state.started_offset >= 0
    moved_on = _moved_on(state, decision)
    offered: dict[str, Any] = {
        "step_id": decision.step_id or None,
        "timeout_ms": decision.timeout_ms,
        "checkpoint_id": decision.checkpoint_id,
        "checkpoint_partition": decision.checkpoint_partition,
        "checkpoint_offset": decision.checkpoint_offset,
        "checkpoint_digest": decision.checkpoint_digest,
        "started_partition": state.partition if started else None,
        "started_offset": state.started_offset if started else None,
        "epoch": attempt.epoch,
        "last_sequence": state.last_sequence,
        "approved": any(c.approved for c in (state.cases or {}).values() if c.error_id == decision.error_id),
    }
    if moved_on is not None:
        offered |= {"checkpoint_id": moved_on.checkpoint_id, "checkpoint_offset": moved_on.offset}
        offered["checkpoint_digest"] = moved_on.digest
    if decision.command_type in ("ResumeFromCheckpoint", "RollbackTo"):
        offered["step_id"] = None  # go on after the checkpoint, wherever that is
    if decision.parameters is not None:
        given = json.loads(decision.parameters)
        offered |= {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if "sealed" in offered:  # JSON holds no bytes
        offered["sealed"] = a2b_base64(offered["sealed"])
    fields = kind.__dataclass_fields__
    return fact(
        kind,
        cause,
        f"command|{decision.command_id}",
        command_id=decision.command_id,
        error_id=decision.error_id,
        attempt_number=decision.attempt_number,
        expires_at=cause.timestamp_us + policy.timeouts.acknowledge_ms * 1000,
        reason=f"{decision.strategy}: {decision.rule}",
        actor="engine",  # also when a human chose: the engine answers for the attempt, the rule names the human
        **{name: value for name, value in offered.items() if name in fields},
    )


def _moved_on(state: WorkflowState, decision: RecoveryDecided) -> CheckpointRef | None:
    """Another branch went on while the command waited: what it has done is not done again."""
    if decision.command_type not in _GOING_ON or decision.error_type == STATE_CORRUPTION:
        return None
    if decision.checkpoint_offset is None:
        return None
    return state.checkpoint_beside(decision.step_id, decision.checkpoint_offset)


def operator_command(
    name: str, state: WorkflowState, cause: Delivered, policy: Policy, *, error_id: str | None = None, **fields: Any
) -> Command:
    """A command that an operator asks for, outside any attempt."""
    return fact(
        COMMAND_TYPES[name],
        cause,
        f"command|{name}",
        command_id=derive_id(cause.record.event_id, f"command|{name}"),
        error_id=error_id,
        expires_at=cause.timestamp_us + policy.timeouts.acknowledge_ms * 1000,
        reason=getattr(cause.record, "reason", ""),
        actor=getattr(cause.record, "actor", "operator"),
        **fields,
    )


def restore_command(state: WorkflowState, cause: Delivered, policy: Policy) -> Command:
    """The command of a restore that an operator asked for while nothing was being repaired."""
    record = cause.record
    assert isinstance(record, RestoreRequested)
    return operator_command(
        "ResumeFromCheckpoint",
        state,
        cause,
        policy,
        checkpoint_id=record.checkpoint_id,
        checkpoint_partition=record.checkpoint_partition,
        checkpoint_offset=record.checkpoint_offset,
        checkpoint_digest=record.checkpoint_digest,
        epoch=state.epochs,
        last_sequence=state.last_sequence,
    )
