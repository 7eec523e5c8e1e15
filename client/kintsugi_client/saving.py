"""Writes a workflow's states: taken in the caller's thread, then sealed, put where they belong, and told to the log."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ._schemas.errors import RetriableError, StateError
from ._schemas.records.events import CheckpointCreated, StatePersisted, StateRestored
from .checkpoints import canonical, evidence, new_id, next_link, pack
from .outbox import Delivery
from .turns import Turn

if TYPE_CHECKING:
    from .run import Run
    from .workflow import Workflow

#: How long a manual checkpoint waits for the broker before it tells the caller the truth.
CHECKPOINT_TIMEOUT_S = 10.0

T = TypeVar("T")
S = TypeVar("S", StatePersisted, StateRestored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A state in bytes that nobody can change any more, and its turn to be written."""

    step_id: str
    status: str
    data: bytes
    turn: Turn
    #: The version's number, for a state that is no checkpoint.
    version: int = 0
    is_evidence: bool = False


class Saver:
    """Saves the states of one workflow. Thread-safe.

    Raises StateError (no valid data, with its path; or its key was erased), RetriableError (Kafka's buffer is full,
    object storage or the keystore is away), SupersededError or ClosedError. Then nothing was written.
    """

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def manual(self, step_id: str, run: Run, timeout_s: float) -> str:
        """A checkpoint now; its id once the broker has confirmed it. NotDeliveredError when it has not."""
        checkpoint_id, delivery = self._checkpoint(self._take(step_id, run), "manual", run)
        delivery.wait(timeout_s)
        return checkpoint_id

    async def manual_async(self, step_id: str, run: Run, timeout_s: float) -> str:
        """As `manual`, for asyncio code: the event loop goes on while object storage and the broker confirm."""
        loop = asyncio.get_running_loop()
        known = asyncio.Event()

        def settled() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits any more
                loop.call_soon_threadsafe(known.set)

        # Taken here and not in another thread: no coroutine can change the state meanwhile.
        taken = self._take(step_id, run)
        try:
            written = _in_thread(lambda: self._checkpoint(taken, "manual", run))
        except RuntimeError as error:  # no thread can be started
            taken.turn.give_up()
            raise RetriableError(f"the checkpoint cannot be written now: {error}") from error
        checkpoint_id, delivery = await asyncio.wrap_future(written)
        delivery.then(settled)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(known.wait(), timeout_s)
        delivery.check(timeout_s)
        return checkpoint_id

    def automatic(self, step_id: str, moment: str, run: Run) -> None:
        """The checkpoint that the policy wants at this moment, if any. Loses it rather than the step, and says so."""
        kind = self._workflow.kind
        type_ = kind.policy.type_of(moment, critical=kind.is_critical(step_id))
        if type_ is None:
            return
        try:
            self._checkpoint(self._take(step_id, run), type_, run)
        except RetriableError as error:
            self._workflow.vault.miss(f"checkpoint {type_}", self._workflow.workflow_id, error)

    def evidence(self, step_id: str, run: Run) -> str | None:
        """The state as an error left it, whatever it is; its id, or None when the policy wants none or it was lost."""
        type_ = self._workflow.kind.policy.type_of("error_recovery", critical=False)
        if type_ is None:
            return None
        return self._checkpoint(self._take(step_id, run, is_evidence=True), type_, run)[0]

    def _checkpoint(self, taken: Taken, type_: str, run: Run) -> tuple[str, Delivery]:
        workflow = self._workflow
        with taken.turn:
            kept = pack(taken.data, workflow.kind.policy)
            chain = workflow.chain
            link = next_link(chain, kept.digest)
            checkpoint_id = new_id()
            record = workflow.make(
                CheckpointCreated,
                checkpoint_id=checkpoint_id,
                step_id=taken.step_id,
                checkpoint_type=type_,
                sequence=link.sequence,
                epoch=run.epoch,
                state_version=workflow.kind.version,
                protection=workflow.vault.protection,
                parent_digest=chain.digest,
                chain_digest=link.chain_digest,
                status=taken.status,
                evidence=taken.is_evidence,
                **kept.fields(),
            )
            workflow.check(run)
            record = workflow.vault.put(record, kept.state, inline_if_away=type_ != "manual")
            return checkpoint_id, workflow.send_link(record, run, chain, link)

    # -- other states ---------------------------------------------------------------------------------------------

    def persist(self, step_id: str, run: Run) -> Delivery:
        """A version of the state that is no checkpoint."""
        taken = self._take(step_id, run, numbered=True)
        try:
            return self._write(StatePersisted, taken, run, inline_if_away=False, version=str(taken.version))
        except BaseException:
            with run.turns.taking:
                if run.metadata.get("persisted") == taken.version:
                    run.metadata = {**run.metadata, "persisted": taken.version - 1}
            raise

    def restored(self, step_id: str, run: Run, **fields: Any) -> None:
        """Tell the log what state the run begins with. Loses that rather than the run, and says so."""
        try:
            taken = self._take(step_id, run)
            self._write(StateRestored, taken, run, inline_if_away=True, epoch=run.epoch, **fields)
        except RetriableError as error:
            self._workflow.vault.miss("restored state", self._workflow.workflow_id, error)

    def _write(self, kind: type[S], taken: Taken, run: Run, *, inline_if_away: bool, **fields: Any) -> Delivery:
        workflow = self._workflow
        with taken.turn:
            kept = pack(taken.data, workflow.kind.policy)
            record = workflow.make(
                kind,
                step_id=taken.step_id,
                state_version=workflow.kind.version,
                protection=workflow.vault.protection,
                status=taken.status,
                state=b"",
                **kept.fields(),
                **fields,
            )
            workflow.check(run)
            return workflow.send(workflow.vault.put(record, kept.state, inline_if_away=inline_if_away), run)

    # -- the state ------------------------------------------------------------------------------------------------

    def _take(self, step_id: str, run: Run, *, is_evidence: bool = False, numbered: bool = False) -> Taken:
        workflow = self._workflow
        with run.turns.taking:
            before, version = run.metadata, 0
            if numbered:
                version = _number(before.get("persisted")) + 1
                run.metadata = {**before, "persisted": version}
            try:
                document = workflow.document(step_id, run)
                if is_evidence:
                    data = evidence(document)
                elif type(run.data) is not dict:
                    what = f"$.data: a state's data is a dictionary, not {type(run.data).__name__}"
                    raise StateError("structure", what, path="$.data")
                else:
                    data = canonical(document)
                    workflow.kind.check_data(run.data)
            except BaseException:
                if numbered:
                    run.metadata = before
                raise
            return Taken(
                step_id=step_id,
                status=workflow.status,
                data=data,
                turn=run.turns.draw(),
                version=version,
                is_evidence=is_evidence,
            )


def _number(value: object) -> int:
    """Metadata are data of the service too, so anything may stand there."""
    return value if type(value) is int and value >= 0 else 0


def _in_thread(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that who waits may be cancelled, but not what is done

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="kintsugi-checkpoint", daemon=True).start()
    return future
