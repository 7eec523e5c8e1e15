"""Ask a human. The workflow is paused where the policy says so, and waits with a deadline."""

from __future__ import annotations

from .base import Plan, Situation


def manual_intervention(situation: Situation) -> Plan:
    """Request an intervention, and pause the workflow when the policy has auto_pause."""
    pause = situation.policy.intervention.auto_pause
    return Plan(command_type="PauseWorkflow" if pause else None, action="wait for a human")
