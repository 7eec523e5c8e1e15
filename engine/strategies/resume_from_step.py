"""Go back to the state from before an earlier step, and run that step and all after it again.

Needs `to_step` in the rung, and a verified checkpoint from before that step first began. Success: the failed step
completes. Nothing is undone: `rollback` is the strategy that does.
"""

from __future__ import annotations

from .base import Plan, Situation, Unavailable


def resume_from_step(situation: Situation) -> Plan | Unavailable:
    """Restore the state from before the rung's step."""
    to_step = situation.rung.to_step or situation.case.step_id
    checkpoint = situation.checkpoint_before_step(to_step)
    if checkpoint is None:
        return Unavailable(f"no verified checkpoint from before step {to_step!r}")
    return Plan(
        command_type="ResumeFromCheckpoint",
        action=f"resume before step {to_step!r}, at checkpoint {checkpoint.sequence}",
        checkpoint=checkpoint,
    )
