"""Undo the steps completed since a checkpoint, the last first, then go on from that checkpoint.

The checkpoint is a verified one from before `to_step`, or from before the last step that can be undone. Where there is
none, the beginning stands for it: everything is undone, and the workflow starts again with its first input. Commands:
one CompensateStep per step, then RollbackTo or RestartWorkflow. Success: the failed step completes after it.
"""

from __future__ import annotations

from ..state import PENDING, CheckpointRef
from .base import Plan, Situation, Unavailable
from .undo import BEGINNING, cannot_undo, next_undo, to_undo


def rollback(situation: Situation) -> Plan | Unavailable:
    """Undo, then go on from before it; unavailable when a step on the way cannot be undone."""
    case = situation.case
    target = _under_way(situation) if case.undoing == rollback.__name__ else _target(situation)
    if isinstance(target, Unavailable):
        return target
    offset = BEGINNING if target is None else target.offset
    reason = cannot_undo(situation, offset)
    if reason is not None:
        return Unavailable(reason)
    step = next_undo(situation, offset)
    if step is not None:
        return step
    if target is None:
        return Plan(command_type="RestartWorkflow", action="start from the beginning, all is undone")
    return Plan(
        command_type="RollbackTo",
        action=f"go on from checkpoint {target.sequence}, all after it is undone",
        checkpoint=target,
    )


def _under_way(situation: Situation) -> CheckpointRef | Unavailable | None:
    if situation.case.undo_to == BEGINNING:
        return None
    found = situation.state.checkpoints_before(situation.case.undo_to + 1)
    if found and found[-1].offset == situation.case.undo_to:
        return found[-1]
    return Unavailable("the checkpoint of the rollback is gone")


def _target(situation: Situation) -> CheckpointRef | Unavailable | None:
    """The checkpoint to go back to; None for the beginning."""
    to_step, state = situation.rung.to_step, situation.state
    if to_step is not None:
        found, number = situation.checkpoint_before_step(to_step), state.graph.index.get(to_step)
        if found is None and (number is None or state.steps[number] == PENDING):
            return Unavailable(f"step {to_step!r} has not begun")
        return found or _beginning(situation)
    for ref in reversed(state.checkpoints_before(situation.case.opened_offset)):
        if to_undo(situation, ref.offset):
            return ref
    if not to_undo(situation, BEGINNING):
        return Unavailable("no completed step declares a compensation")
    return _beginning(situation)


def _beginning(situation: Situation) -> Unavailable | None:
    if situation.state.started_offset < 0:
        return Unavailable("the workflow's start is not in the log")
    return None
