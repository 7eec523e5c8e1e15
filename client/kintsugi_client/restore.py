"""Where a command lets a workflow go on: read, and proven to be what was saved before anything of it is looked at."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._schemas import claims
from ._schemas.errors import RetriableError, StateError
from ._schemas.objects import Objects
from ._schemas.proof import KeyLookup, Prover
from ._schemas.records import Record
from ._schemas.records.commands import (
    CompensateStep,
    ReconcileStep,
    ResumeFromCheckpoint,
    RetryStep,
    RollbackTo,
    RunAlternativePath,
    SkipStep,
)
from ._schemas.records.events import CheckpointCreated, WorkflowStarted
from ._schemas.sealing import DataKey, unseal_fields
from .bounded import Bounded
from .checkpoints import Chain
from .errors import ClosedError, RefusedError, RestoreError, SupersededError
from .history import STORE_TIMEOUT_S, History
from .standing import Standing

if TYPE_CHECKING:
    from .types import WorkflowType

#: How long a restore waits for Kafka, the registry, the object store or the key provider; a try under way may take
#: its own time beyond it. The engine then goes another way, which may need none of them.
PATIENCE_S = 30.0
_PAUSE_S, _PAUSE_S_MAX = 0.1, 2.0
#: What says nothing against the bytes; all other reasons of a StateError do.
_NOT_CORRUPT = {
    "no_keys": "key_missing",
    "key_missing": "key_missing",
    "key_erased": "key_erased",
    "claim_missing": "object_missing",
}

#: Commands that name a checkpoint.
Naming = RetryStep | ResumeFromCheckpoint | RunAlternativePath | RollbackTo | SkipStep | CompensateStep | ReconcileStep

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class Restorer:
    """Reads with these keys. With keys, a state that nobody sealed is refused, unless `keys_optional` (a roll-out)."""

    def __init__(
        self,
        history: History,
        *,
        keys: KeyLookup | None = None,
        keys_optional: bool = False,
        objects: Objects | None = None,
    ) -> None:
        self._history = history
        self._keys = keys
        self._objects = objects
        self._bounded = Bounded()
        self._prover = Prover(None if keys is None else self._key, keys_optional=keys_optional)
        self._closed = threading.Event()

    def close(self) -> None:
        """End what waits."""
        self._closed.set()

    def checkpoint(self, command: Naming, kind: WorkflowType, superseded: threading.Event) -> Standing:
        """The command's checkpoint, proven, and migrated to the type's version. RestoreError says what is wrong.

        SupersededError when another command takes over while this waits.
        """
        return self._patiently(lambda: self._checkpoint(command, kind), superseded)

    def input_of(
        self, workflow_id: str, partition: int | None, offset: int | None, superseded: threading.Event
    ) -> Standing:
        """The beginning of a workflow, with the input that it was started with. Raises as `checkpoint`."""
        if partition is None or offset is None:
            raise RestoreError("checkpoint_missing", "the workflow's start is not in the log")
        return self._patiently(lambda: self._input_of(workflow_id, partition, offset), superseded)

    def opened(self, record: R, superseded: threading.Event) -> R:
        """The record with its sealed texts in clear. Raises as `checkpoint`; RefusedError when they do not verify."""
        return self._patiently(lambda: self._opened(record), superseded)

    def _opened(self, record: R) -> R:
        try:
            return unseal_fields(record, lambda number: self._key(record.workflow_id, number))
        except StateError as error:
            where = f"the sealed text of {type(record).__name__}"
            if error.reason in _NOT_CORRUPT:
                raise _refused(where, error) from error
            raise RefusedError("edit_invalid", f"{where} does not verify: {error}") from error

    def _patiently(self, call: Callable[[], T], superseded: threading.Event) -> T:
        """Try again while something is away, within a bound."""
        deadline_s, pause_s = time.monotonic() + PATIENCE_S, _PAUSE_S
        while True:
            try:
                return call()
            except RetriableError as error:
                if time.monotonic() + pause_s > deadline_s:
                    raise RestoreError("unavailable", str(error), hint=error.hint) from error
            if superseded.wait(pause_s):
                raise SupersededError("a command has replaced this run")
            if self._closed.is_set():
                raise ClosedError("the client is closed")
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _checkpoint(self, command: Naming, kind: WorkflowType) -> Standing:
        partition, offset = command.checkpoint_partition, command.checkpoint_offset
        if partition is None or offset is None:
            raise RestoreError("checkpoint_missing", "the command does not say where its checkpoint is")
        where = f"the checkpoint at {partition}@{offset}"
        record = _named(self._history.fetch(partition, offset), command, where)
        try:
            document = self._prover.prove(record, claims.stored_of(record, self._claimed))
        except StateError as error:
            raise _refused(where, error) from error
        return _standing(record, document, where, kind)

    def _claimed(self, uri: str) -> bytes:
        objects = self._objects
        if objects is None:
            raise StateError(
                "claim_missing",
                "its state lies in object storage, and none is configured",
                hint="set KINTSUGI_OBJECTS",
            )
        return self._bounded.call("object storage", lambda: claims.get(objects, uri), STORE_TIMEOUT_S)

    def _key(self, workflow_id: str, number: int) -> DataKey:
        keys = self._keys
        if keys is None:
            raise StateError("no_keys", "it is sealed, and no keys are configured here", hint="set KINTSUGI_KEYS")
        return self._bounded.call("the keystore", lambda: keys(workflow_id, number), STORE_TIMEOUT_S)

    # -- the input ------------------------------------------------------------------------------------------------

    def _input_of(self, workflow_id: str, partition: int, offset: int) -> Standing:
        where = f"the workflow's start at {partition}@{offset}"
        record = self._history.fetch(partition, offset)
        if not isinstance(record, WorkflowStarted) or record.workflow_id != workflow_id:
            raise RestoreError("checkpoint_missing", f"the record at {partition}@{offset} is not this workflow's start")
        try:
            record = unseal_fields(record, lambda number: self._key(workflow_id, number))
            value = json.loads(record.input) if record.input else {}
        except StateError as error:
            raise _refused(where, error) from error
        except (ValueError, RecursionError) as error:
            raise RestoreError("corrupt", f"the workflow's input is no JSON: {error}", fault="structure") from error
        if not isinstance(value, dict):
            what = f"the workflow's input is no JSON object but a {type(value).__name__}"
            raise RestoreError("corrupt", what, fault="structure")
        return Standing(value, from_input=True)


def _named(record: Record, command: Naming, where: str) -> CheckpointCreated:
    """The record, if it is the checkpoint that the command means."""
    if not isinstance(record, CheckpointCreated):
        raise RestoreError("checkpoint_missing", f"{where} is a {type(record).__name__}")
    if record.workflow_id != command.workflow_id or record.checkpoint_id != command.checkpoint_id:
        raise RestoreError("checkpoint_missing", f"{where} is another one")
    if record.evidence:
        raise RestoreError("checkpoint_missing", f"{where} is evidence of an error, which is never restored")
    if command.checkpoint_digest is not None and command.checkpoint_digest != record.digest:
        raise RestoreError("corrupt", f"{where}: its digest is not the one that the command names", fault="digest")
    return record


def _refused(where: str, error: StateError) -> RestoreError:
    reason = _NOT_CORRUPT.get(error.reason)
    if reason is not None:
        return RestoreError(reason, f"{where} cannot be read: {error}", hint=error.hint)
    return RestoreError("corrupt", f"{where} does not verify: {error}", fault=error.reason)


def _standing(record: CheckpointCreated, document: dict[str, Any], where: str, kind: WorkflowType) -> Standing:
    values, completed, metadata = (document.get(k) for k in ("data", "completed_steps", "metadata"))
    if not (isinstance(values, dict) and isinstance(completed, list) and isinstance(metadata, dict)):
        raise RestoreError("corrupt", f"{where} holds no state of a workflow", fault="structure")
    try:
        migrated = kind.migrations.run(values, record.state_version, kind.version, check=kind.check_data)
        if not migrated.links:
            kind.check_data(values)
    except StateError as error:
        raise RestoreError(error.reason, f"{where}: {error}", hint=error.hint) from error
    return Standing(
        migrated.data,
        completed=[str(step) for step in completed],
        metadata=metadata,
        chain=Chain(record.sequence, record.digest, record.chain_digest),
        epoch=record.epoch,
        checkpoint_id=record.checkpoint_id,
        step_id=record.step_id,
        links=migrated.links,
    )
