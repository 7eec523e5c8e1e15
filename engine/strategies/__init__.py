"""One file per strategy, and the table of those this version can carry out."""

from __future__ import annotations

from .base import Plan, Situation, Strategy, Unavailable
from .complete_restart import complete_restart
from .increase_timeout import increase_timeout_and_retry
from .manual_intervention import manual_intervention
from .queue_for_later import queue_for_later
from .restart_from_checkpoint import restart_from_checkpoint
from .restore_valid import restore_from_last_valid_checkpoint
from .retry_step import retry_step

MANUAL = "manual_intervention"

STRATEGIES: dict[str, Strategy] = {
    f.__name__: f
    for f in (
        retry_step,
        increase_timeout_and_retry,
        restart_from_checkpoint,
        restore_from_last_valid_checkpoint,
        complete_restart,
        queue_for_later,
        manual_intervention,
    )
}

#: Strategies that restore a checkpoint; each use for the same error goes one further back.
RESTORING = frozenset({"restart_from_checkpoint", "restore_from_last_valid_checkpoint"})

__all__ = ["MANUAL", "RESTORING", "STRATEGIES", "Plan", "Situation", "Strategy", "Unavailable"]
