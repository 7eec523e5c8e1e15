"""Parts of shared resources, and waits for other workflows: what a step says so that no two wait for each other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._schemas.errors import ConfigError, KintsugiError, RetriableError
from ._schemas.ids import derive_id, uuid_bytes
from ._schemas.records.events import ResourceReleased, ResourceRequested, WaitBegan, WaitEnded
from .checkpoints import new_id
from .errors import ClosedError, LeaseError
from .grants import Wish
from .graph import check_text
from .texts import STEP_ID_MAX

if TYPE_CHECKING:
    from .step import StepContext

#: How long a step waits for a lease when it does not say.
LEASE_TIMEOUT_S = 60.0
#: What the records can hold.
_TIMEOUT_S_MAX = 2**31
_UNITS_MAX = 2**31 - 1
#: The coordinator says itself that the time is over; when nothing is heard for so long after it, nobody grants.
_SILENCE_S = 10.0
#: A request that Kafka has not confirmed by then was not made.
_REQUEST_TIMEOUT_S = 10.0
_LOOK_S = 0.2


@contextlib.contextmanager
def leased(
    context: StepContext, resource_id: str, *, amount: int, priority: int, timeout_s: float, nth: int
) -> Iterator[None]:
    """See `StepContext.lease`. `nth`: how many leases of the resource the step holds already.

    A run that a command replaced does not give back: the lease is the step's, and its next run is granted it anew. One
    from which it was taken away has nothing to give back.
    """
    check_text("resource", resource_id, STEP_ID_MAX)
    _check(amount, priority, timeout_s)
    workflow = context.workflow
    lease_id = derive_id(workflow.workflow_id, f"lease|{context.step_id}|{resource_id}", nth)
    delivery = workflow.emit(
        ResourceRequested,
        context.run,
        step_id=context.step_id,
        resource_id=resource_id,
        lease_id=lease_id,
        amount=amount,
        priority=priority,
        wait_ms=int(timeout_s * 1000),
    )
    granted, wish = False, None
    try:
        delivery.wait(_REQUEST_TIMEOUT_S)
        wish = Wish(workflow.workflow_id, lease_id, delivery.partition, delivery.offset)
        workflow.grants.watch(wish)
        _wait(context, resource_id, wish, timeout_s)
        granted = True
        with context.holding(resource_id, wish):
            yield
    finally:
        if wish is not None:
            workflow.grants.forget(wish)
        if not context.run.superseded.is_set() and (wish is None or wish.lost is None):
            reason = "returned" if granted else "given_up"
            with contextlib.suppress(KintsugiError):  # its workflow's end gives it back
                workflow.tell(ResourceReleased, context.run, resource_id=resource_id, lease_id=lease_id, reason=reason)


def _check(amount: int, priority: int, timeout_s: float) -> None:
    if type(amount) is not int or not 1 <= amount <= _UNITS_MAX:
        raise ConfigError(f"amount: {amount!r:.40} is no number of units from 1")
    if type(priority) is not int or abs(priority) > _UNITS_MAX:
        raise ConfigError(f"priority: {priority!r:.40} is no whole number")
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= _TIMEOUT_S_MAX:
        raise ConfigError(f"timeout_s: {timeout_s!r:.40} is no time above 0")


def _wait(context: StepContext, resource_id: str, wish: Wish, timeout_s: float) -> None:
    """Until the lease is granted. LeaseError when it is not; raises too when the step is to end."""
    deadline_s = time.monotonic() + timeout_s + _SILENCE_S
    while not wish.wait(_LOOK_S):
        context.alive()
        if time.monotonic() > deadline_s:
            raise LeaseError("no_answer", f"no coordinator has said anything about {resource_id!r}")
    if wish.refusal is not None:
        raise LeaseError(wish.refusal, f"{resource_id!r} was not granted: {wish.refusal}")


@contextlib.contextmanager
def waiting(context: StepContext, workflow_id: str) -> Iterator[None]:
    """See `StepContext.waits_for`."""
    try:
        uuid_bytes(workflow_id)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"workflow_id: {error}") from None
    workflow, wait_id = context.workflow, new_id()
    workflow.tell(WaitBegan, context.run, wait_id=wait_id, step_id=context.step_id, awaited_id=workflow_id)
    try:
        yield
    finally:
        # Also of a run that was replaced: it is this code that waits no more.
        with contextlib.suppress(RetriableError, ClosedError):
            workflow.send_anyway(WaitEnded, context.run, wait_id=wait_id)
