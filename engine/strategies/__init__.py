"""One file per strategy, and the table of them."""

from __future__ import annotations

from .alternative_path import alternative_path
from .base import UNDO_STAGE, Plan, Situation, Strategy, Unavailable
from .compensate import compensate
from .complete_restart import complete_restart
from .increase_timeout import increase_timeout_and_retry
from .manual_intervention import manual_intervention
from .queue_for_later import queue_for_later
from .restart_from_checkpoint import restart_from_checkpoint
from .restore_valid import restore_from_last_valid_checkpoint
from .resume_from_step import resume_from_step
from .retry_step import retry_step
from .rollback import rollback
from .scale_resources import scale_resources_and_retry

MANUAL = "manual_intervention"

STRATEGIES: dict[str, Strategy] = {
    f.__name__: f
    for f in (
        retry_step,
        increase_timeout_and_retry,
        scale_resources_and_retry,
        restart_from_checkpoint,
        restore_from_last_valid_checkpoint,
        resume_from_step,
        alternative_path,
        queue_for_later,
        compensate,
        rollback,
        complete_restart,
        manual_intervention,
    )
}

#: Strategies that restore a checkpoint; each use for the same error goes one further back.
RESTORING = frozenset({"restart_from_checkpoint", "restore_from_last_valid_checkpoint"})

#: Strategies that undo steps one by one before their last command.
UNDOING = frozenset({"rollback", "compensate"})

__all__ = [
    "MANUAL",
    "RESTORING",
    "STRATEGIES",
    "UNDOING",
    "UNDO_STAGE",
    "Plan",
    "Situation",
    "Strategy",
    "Unavailable",
]
