"""Checkpoints as they were written: records from the log or the archive, claimed bytes from object storage, keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from consumers.history import Bounds, History
from consumers.log_reader import LogReader
from engine.inspection import Inspector
from schemas import claims
from schemas.admission import admit
from schemas.archive import ArchiveGapError
from schemas.codec import Codec
from schemas.errors import PoisonError, StateError
from schemas.keystore import Keystore, keys_optional, open_keystore
from schemas.objects import Objects
from schemas.records.events import CheckpointCreated
from schemas.registry import Registry

from .archive import history_of
from .stack import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A checkpoint's record, and where it was found: "log" or "archive"."""

    record: CheckpointCreated
    found_in: str


class CheckpointLog:
    """Reads single checkpoints. Made by `checkpoint_log`."""

    def __init__(self, history: History, codec: Codec, objects: Objects | None, keystore: Keystore | None) -> None:
        self.history = history
        self.codec = codec
        self.objects = objects
        self.has_keys = keystore is not None
        optional = keys_optional()
        self.inspector = Inspector(keystore.get if keystore is not None else None, keys_optional=optional)
        self._bounds: dict[int, Bounds] | None = None

    def bounds(self) -> dict[int, Bounds]:
        """What there is of each partition, asked once."""
        if self._bounds is None:
            self._bounds = self.history.bounds()
        return self._bounds

    def where(self, partition: int, offset: int) -> str:
        """Where a record of this place lies: log, archive, or gone."""
        found = self.bounds().get(partition)
        if found is None or offset >= found.end:
            return "gone"
        if offset >= found.low:
            return "log"
        return "archive" if self._archived(partition, offset) else "gone"

    def _archived(self, partition: int, offset: int) -> bool:
        try:
            return any(True for _ in self.history.read({partition: (offset, offset + 1)}))
        except ArchiveGapError:
            return False

    def written(self, checkpoint_id: str, partition: int, offset: int) -> Written:
        """The record of a checkpoint. StateError when the place holds nothing, or something else."""
        place = f"{partition}@{offset}"
        hint = "kintsugi verify compares all of log and tables"
        where = self.where(partition, offset)
        if where == "gone":
            raise StateError("gone", f"the record at {place} is neither in the log nor in the archive", hint=hint)
        try:
            found = next(self.history.read({partition: (offset, offset + 1)}), None)
        except ArchiveGapError as error:
            raise StateError("gone", str(error), hint=hint) from error
        if found is None:
            raise StateError("log", f"there is no record at {place}", hint=hint)
        try:
            record = admit(self.codec, found.key, found.value)
        except PoisonError as error:
            raise StateError("log", f"the record at {place} cannot be read: {error}", hint=hint) from error
        if not isinstance(record, CheckpointCreated) or record.checkpoint_id != checkpoint_id:
            raise StateError("log", f"the record at {place} is not that checkpoint", hint=hint)
        return Written(record=record, found_in=where)

    def stored(self, record: CheckpointCreated) -> bytes:
        """A checkpoint's bytes as they were stored: from its record, else from object storage.

        StateError claim_missing, or claim when the object is not what its name says.
        """
        return claims.stored_of(record, self._claimed)

    def _claimed(self, uri: str) -> bytes:
        if self.objects is None:
            raise StateError("claim_missing", "no object storage is configured", hint="set KINTSUGI_OBJECTS")
        return claims.get(self.objects, uri)

    def state(self, record: CheckpointCreated) -> dict[str, Any]:
        """The proven state, from the real bytes. StateError says why not."""
        return self.inspector.prove(record, self.stored(record))


@contextmanager
def checkpoint_log(at: Addresses) -> Iterator[CheckpointLog]:
    """Open log, archive, object storage and, where KINTSUGI_KEYS is set, keys. RetriableError when one is away."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(at.registry))
        log = stack.enter_context(LogReader(at.kafka))
        yield CheckpointLog(
            history_of(at, log),
            Codec(registry),
            Objects(at.objects) if at.objects else None,
            open_keystore(objects_url=at.objects),
        )
