"""Go on from a verified checkpoint older than the error, one further back with each restart for the same error.

Success: the failed step completes. Steps between the checkpoint and the error run again.
"""

from __future__ import annotations

from .base import Plan, Situation, Unavailable


def restart_from_checkpoint(situation: Situation) -> Plan | Unavailable:
    """Restore and resume; unavailable when no older verified checkpoint is left."""
    checkpoint = situation.checkpoint(back=situation.case.restores)
    if checkpoint is None:
        return Unavailable(f"no verified checkpoint older than the error, {situation.case.restores} steps back")
    return Plan(
        command_type="ResumeFromCheckpoint",
        action=f"resume from checkpoint {checkpoint.sequence}",
        checkpoint=checkpoint,
    )
