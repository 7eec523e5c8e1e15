"""Restore the last valid state: a restart from a checkpoint, whose candidates are those that verified."""

from __future__ import annotations

from .base import Plan, Situation, Unavailable
from .restart_from_checkpoint import restart_from_checkpoint


def restore_from_last_valid_checkpoint(situation: Situation) -> Plan | Unavailable:
    """Restore the newest checkpoint that verified and is older than the corruption."""
    return restart_from_checkpoint(situation)
