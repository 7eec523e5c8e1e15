"""Undo the steps completed since a checkpoint, the last first, then go on from that checkpoint.

Needs a verified checkpoint from before `to_step`, or from before the last step that can be undone. Commands: one
CompensateStep per step, then RollbackTo. Success: the failed step completes after it.
"""

from __future__ import annotations

from ..state import CheckpointRef
from .base import Plan, Situation, Unavailable
from .undo import cannot_undo, next_undo


def rollback(situation: Situation) -> Plan | Unavailable:
    """Undo, then restore; unavailable without a checkpoint, or when a step after it cannot be undone."""
    case = situation.case
    target = _under_way(situation) if case.undoing == rollback.__name__ else _target(situation)
    if isinstance(target, Unavailable):
        return target
    reason = cannot_undo(situation, target.offset)
    if reason is not None:
        return Unavailable(reason)
    step = next_undo(situation, target.offset)
    if step is not None:
        return step
    return Plan(
        command_type="RollbackTo",
        action=f"go on from checkpoint {target.sequence}, all after it is undone",
        checkpoint=target,
    )


def _under_way(situation: Situation) -> CheckpointRef | Unavailable:
    found = situation.state.checkpoints_before(situation.case.undo_to + 1)
    if found and found[-1].offset == situation.case.undo_to:
        return found[-1]
    return Unavailable("the checkpoint of the rollback is gone")


def _target(situation: Situation) -> CheckpointRef | Unavailable:
    to_step = situation.rung.to_step
    if to_step is not None:
        found = situation.checkpoint_before_step(to_step)
        return found or Unavailable(f"no verified checkpoint from before step {to_step!r}")
    steps, state = situation.state.graph.steps, situation.state
    for ref in reversed(state.checkpoints_before(situation.case.opened_offset)):
        if any(steps[n].compensation is not None for n in state.effects_after(ref.offset)):
            return ref
    return Unavailable("no completed step can be undone back to a verified checkpoint")
