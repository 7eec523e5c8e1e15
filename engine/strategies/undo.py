"""Undo completed steps one by one, the last completed first: what `rollback` and `compensate` have in common.

Each step is a command and an attempt of its own, tried again by the policy's `compensation` block. Which step is next
is read off the state: what never completed, and what is undone already, is not in it. Sagas: Garcia-Molina and Salem,
1987.
"""

from __future__ import annotations

from ..backoff import jittered_ms
from .base import UNDO_STAGE, Plan, Situation, Unavailable

#: Before every checkpoint: nothing that completed is known there.
BEGINNING = -1


def to_undo(situation: Situation, offset: int) -> list[int]:
    """Steps completed after the checkpoint at `offset` (BEGINNING: all) that declare a compensation, the last first."""
    steps = situation.state.graph.steps
    return [n for n in situation.state.effects_after(offset) if steps[n].compensation is not None]


def cannot_undo(situation: Situation, offset: int) -> str | None:
    """Why the steps after `offset` cannot all be undone; None when they can."""
    steps = situation.state.graph.steps
    for number in situation.state.effects_after(offset):
        if steps[number].compensation is None:
            return f"step {steps[number].step_id!r} is not idempotent and declares no compensation"
    return None


def next_undo(situation: Situation, offset: int) -> Plan | Unavailable | None:
    """The next step to undo; None when all are. Unavailable when its compensation has used up its attempts."""
    left = to_undo(situation, offset)
    if not left:
        return None
    spec = situation.state.graph.steps[left[0]]
    case, limits = situation.case, situation.policy.compensation
    if case.undo_tries >= limits.attempts_max:
        return Unavailable(f"the compensation of step {spec.step_id!r} failed {case.undo_tries} times")
    wait_ms = 0
    if case.undo_tries and limits.backoff is not None:
        wait_ms = jittered_ms(limits.backoff, case.undo_tries, situation.attempt_id)
    found = situation.state.checkpoints_before(offset + 1)
    newest = situation.checkpoint()
    return Plan(
        command_type="CompensateStep",
        action=f"undo step {spec.step_id!r}, {len(left)} left",
        execute_after_ms=wait_ms,
        stage=f"{UNDO_STAGE} {spec.step_id}"[:100],
        step_id=spec.step_id,
        # Where the rollback leads; the state in which the step is undone is the newest.
        checkpoint=found[-1] if found and found[-1].offset == offset else None,
        parameters=None
        if newest is None
        else {
            "checkpoint_id": newest.checkpoint_id,
            "checkpoint_partition": situation.state.partition,
            "checkpoint_offset": newest.offset,
            "checkpoint_digest": newest.digest,
        },
    )
