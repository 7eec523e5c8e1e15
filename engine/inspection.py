"""Proves on arrival that a checkpoint's bytes are what its service saved, once, for all who fold it.

A state that this reader cannot look into (it lies in object storage, its key is erased or not here) is `unreadable`,
which is not a rejection: the verdict then rests on the record alone, so replays agree whatever keys there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from schemas.canonical import STATE_SIZE_BYTES_MAX
from schemas.claims import stored_of
from schemas.errors import StateError
from schemas.proof import KeyLookup, Prover, StateRecord
from schemas.records import Record
from schemas.records.events import CheckpointCreated

from .events import Delivered

#: What says nothing against a state, only that it cannot be looked into here and now.
_UNREADABLE = ("claim", "key_erased", "key_missing", "no_keys")
_DETAIL_CHARS_MAX = 500


class Inspection(NamedTuple):
    """What was found: the proven state, or (reason, detail) against it, or why it could not be looked into."""

    state: dict[str, Any] | None = None
    rejection: tuple[str, str] | None = None
    unreadable: str | None = None


class Inspector:
    """Reads with these keys. With keys, a state that nobody sealed is refused, unless `keys_optional` (a roll-out).

    `keep_states`: whether what is delivered carries its parsed state; not for readers that gather many and fold none.
    `verify`: whether bytes are proven on arrival at all; without, every checkpoint is `unreadable`.
    """

    def __init__(
        self,
        keys: KeyLookup | None = None,
        *,
        keys_optional: bool = False,
        keep_states: bool = True,
        verify: bool = True,
    ) -> None:
        self._prover = Prover(keys, keys_optional=keys_optional)
        self._verify = verify
        self._keep_states = keep_states

    def deliver(self, record: Record, partition: int, offset: int, timestamp_us: int) -> Delivered:
        """Wrap a record; a checkpoint is inspected. RetriableError when its key cannot be asked for now."""
        if type(record) is not CheckpointCreated:
            return Delivered(record, partition, offset, timestamp_us)
        found = self.inspect(record)
        state = found.state if self._keep_states else None
        return Delivered(record, partition, offset, timestamp_us, found.rejection, state, found.unreadable)

    def inspect(self, record: CheckpointCreated) -> Inspection:
        """What can be said of a checkpoint from its record alone. Evidence needs no validity: nothing is said of it."""
        if record.evidence:
            return Inspection()
        if not self._verify:
            return Inspection(unreadable="not_verified")
        try:
            return Inspection(self.prove(record, stored_of(record, lambda _: self._claimed(record))))
        except StateError as error:
            if error.reason in _UNREADABLE:
                return Inspection(unreadable=error.reason)
            return Inspection(rejection=(error.reason, str(error)[:_DETAIL_CHARS_MAX]))

    def _claimed(self, record: CheckpointCreated) -> bytes:
        """Nothing is fetched on arrival; what the record says is held against it all the same."""
        if not 0 <= record.size_bytes <= STATE_SIZE_BYTES_MAX:
            raise StateError("limit", f"declared size {record.size_bytes} is outside 0..{STATE_SIZE_BYTES_MAX}")
        if record.protection == "none":
            self._prover.refuse_unsealed()
        raise StateError("claim", "the state lies in object storage")

    def prove(self, record: StateRecord, stored: bytes) -> dict[str, Any]:
        """The state in a record's stored bytes, wherever these were read from. StateError says what is wrong."""
        return self._prover.prove(record, stored)


_WITHOUT_KEYS = Inspector()


def deliver(record: Record, partition: int, offset: int, timestamp_us: int) -> Delivered:
    """Wrap a record; a checkpoint is inspected, without keys."""
    return _WITHOUT_KEYS.deliver(record, partition, offset, timestamp_us)
