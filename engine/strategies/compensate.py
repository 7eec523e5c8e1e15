"""Undo every completed step that can be undone, the last first, then cancel the workflow: a saga that gives up.

Commands: one CompensateStep per step, then CancelWorkflow. Success: the workflow is cancelled with nothing left behind.
"""

from __future__ import annotations

from .base import Plan, Situation, Unavailable
from .undo import BEGINNING, next_undo, to_undo


def compensate(situation: Situation) -> Plan | Unavailable:
    """Undo, then cancel; unavailable when no completed step declares a compensation."""
    if situation.case.undoing != compensate.__name__ and not to_undo(situation, BEGINNING):
        return Unavailable("no completed step declares a compensation")
    step = next_undo(situation, BEGINNING)
    if step is not None:
        return step
    return Plan(command_type="CancelWorkflow", action="cancel, all is undone")
