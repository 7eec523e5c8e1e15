"""Start the workflow again with clean state and its first input. All steps run again."""

from __future__ import annotations

from .base import Plan, Situation, Unavailable


def complete_restart(situation: Situation) -> Plan | Unavailable:
    """Restart; unavailable when the log does not hold the workflow's start, and so not its input."""
    if situation.state.started_offset < 0:
        return Unavailable("the workflow's start is not in the log")
    return Plan(command_type="RestartWorkflow", action="restart with clean state")
