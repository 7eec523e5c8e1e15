"""Steps that complete again and again in the same order, and nothing comes of it.

A cycle of any period up to the policy's window is one when it has come `max_repeats` times in a row with equal
fingerprints (see `engine.recent`): the same steps, inputs, results, heartbeats and saved states. So polling that gets
somewhere, pages that are turned and work that is dealt out are none. A step declared `polls` waits for something
outside: a cycle with such a step is never a loop.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.records import Record
from schemas.records.events import StepCompleted

from .. import recent
from ..events import Delivered
from ..policy.model import Policy
from ..state import WorkflowState
from .base import found

NAME = "infinite_loop"
#: Steps of a cycle that its message names.
_NAMED_MAX = 8


def infinite_loop(state: WorkflowState, event: Delivered, policy: Policy) -> Iterator[Record]:
    """An error when the completion just folded closes a cycle for the last time it may; again after each further
    round, until the first is read back from the log and what was remembered is forgotten."""
    record, limits = event.record, policy.detection
    assert isinstance(record, StepCompleted)
    if not limits.loop_enabled:
        return
    period = recent.period_of(state.recent, limits.loop_repeats, limits.loop_window)
    if not period or not recent.rounds_end(state.recent, period, limits.loop_repeats):
        return
    specs = [state.graph.steps[number] for number in recent.steps(state.recent)[-period:]]
    if any(spec.polls for spec in specs):
        return
    names = [spec.step_id for spec in specs]
    shown = " -> ".join(names[:_NAMED_MAX]) + (f" and {period - _NAMED_MAX} more" if period > _NAMED_MAX else "")
    yield found(
        event,
        NAME,
        "loop",
        step_id=record.step_id,
        step_run_id=record.step_run_id,
        command_id=record.command_id or _command_of(state),
        error_code="INFINITE_LOOP",
        error_message=f"{shown}: {limits.loop_repeats} times in a row without progress",
        context={"cycle": names, "repeats": limits.loop_repeats, "window": limits.loop_window},
    )


def _command_of(state: WorkflowState) -> str | None:
    """The command that began the run that loops, when its steps do not name it: a loop that comes back is counted from
    the repair of the first on."""
    for case in (state.cases or {}).values():
        if case.loop and case.attempt is not None and case.attempt.status == "accepted":
            return case.attempt.decision.command_id
    return None
