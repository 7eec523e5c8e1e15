"""What a failed step means for the rest of its workflow: dependants wait, siblings go on, stop, or are waited for."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.ids import derive_id
from schemas.records.commands import CancelStep
from schemas.records.events import DependantsHeld, DependantsReleased

from .effects import Append, Effect, Send, fact
from .events import Delivered
from .policy.model import Policy
from .state import COMPLETED, SKIPPED, Case, WorkflowState

FAIL_FAST = "fail_fast"
WAIT_FOR_ALL = "wait_for_all"
#: Dependants named in one fact; a graph may have thousands behind its first step.
NAMED_MAX = 1_000


def waiting(state: WorkflowState, step_id: str) -> tuple[str, ...]:
    """Steps that cannot begin without this one and have not, in declared order."""
    steps = state.graph.steps
    left = (n for n in state.graph.dependants(step_id) if state.steps[n] not in (COMPLETED, SKIPPED))
    return tuple(steps[n].step_id for n in left)[:NAMED_MAX]


def siblings(state: WorkflowState, step_id: str) -> list[int]:
    """Steps that run beside this one."""
    own = state.graph.index.get(step_id, -1)
    return [number for number in state.runs or () if number != own]


def opened(state: WorkflowState, event: Delivered, policy: Policy, case: Case) -> Iterator[Effect]:
    """Say which steps wait for the repair, and stop the other branches where the policy says so."""
    if not case.step_id:
        return
    rule = f"coordination.dependants: {policy.coordination.dependants}"
    held = waiting(state, case.step_id)
    if held:
        yield Append(
            fact(
                DependantsHeld,
                event,
                f"held|{case.error_id}",
                error_id=case.error_id,
                step_id=case.step_id,
                dependants=held,
                rule=rule,
            )
        )
    if policy.coordination.branches == FAIL_FAST:
        for number in siblings(state, case.step_id):
            if not state.graph.steps[number].idempotent:
                continue  # what became of it nobody would know, and it may not run again
            yield Send(_cancel(state, event, policy, case, number))


def closed(state: WorkflowState, event: Delivered, policy: Policy, case: Case, *, recovered: bool) -> Iterator[Effect]:
    """Say what became of the steps that waited."""
    if not case.holds_dependants:
        return
    number = state.graph.index.get(case.step_id, -1)
    held = waiting(state, case.step_id)
    if not recovered:
        outcome = "failed"
    elif number >= 0 and state.steps[number] == SKIPPED and policy.coordination.dependants == "skip":
        outcome = "skipped"
    else:
        outcome = "released"
    yield Append(
        fact(
            DependantsReleased,
            event,
            f"released|{case.error_id}",
            error_id=case.error_id,
            step_id=case.step_id,
            dependants=held,
            outcome=outcome,
            rule=f"coordination.dependants: {policy.coordination.dependants}",
        )
    )


def cancel_id(error_id: str, step_id: str) -> str:
    """Id of the command that stops a branch because of an error."""
    return derive_id(error_id, f"cancel|{step_id}")


def _cancel(state: WorkflowState, event: Delivered, policy: Policy, case: Case, number: int) -> CancelStep:
    step_id = state.graph.steps[number].step_id
    assert state.runs is not None
    return fact(
        CancelStep,
        event,
        f"cancel|{step_id}",
        command_id=cancel_id(case.error_id, step_id),
        error_id=case.error_id,
        expires_at=event.timestamp_us + policy.timeouts.acknowledge_ms * 1000,
        reason=f"coordination.branches: {FAIL_FAST}: step {case.step_id!r} failed",
        actor="engine",
        step_id=step_id,
        step_run_id=state.runs[number].run_id,
    )
