"""Proves that stored bytes are the state that a service saved with a record: for engine, keeper, commands and services.

Nothing is parsed before it is proven, and nothing is allocated that the record does not declare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .canonical import parse_state, verify_stored
from .errors import StateError
from .records.events import CheckpointCreated, StatePersisted, StateRestored
from .sealing import DataKey, binding_of, unseal

#: (workflow id, number) to its data key. StateError `key_missing` or `key_erased`; RetriableError: ask again later.
KeyLookup = Callable[[str, int], DataKey]
StateRecord = CheckpointCreated | StatePersisted | StateRestored


class Prover:
    """Proves with these keys. With keys, a state that nobody sealed is refused, unless `keys_optional` (a roll-out)."""

    def __init__(self, keys: KeyLookup | None = None, *, keys_optional: bool = False) -> None:
        self._keys = keys
        self._keys_optional = keys_optional

    def prove(self, record: StateRecord, stored: bytes) -> dict[str, Any]:
        """The state in a record's stored bytes, wherever these were read from. StateError says what is wrong."""
        data = verify_stored(
            self.unsealed(record, stored), codec=record.codec, size_bytes=record.size_bytes, digest=record.digest
        )
        del stored  # of a large state each copy counts
        state = parse_state(data)
        if state.get("workflow_id") != record.workflow_id:
            raise StateError("structure", "the state is that of another workflow, or names none")
        if not state.get("step_id") or not state.get("status"):
            raise StateError("structure", "the state lacks step_id or status")
        return state

    def unsealed(self, record: StateRecord, stored: bytes) -> bytes:
        """The compressed bytes. StateError when the seal is broken or missing, or there is no key to look."""
        if record.protection == "none":
            self.refuse_unsealed()
            return stored
        return unseal(
            stored,
            protection=record.protection,
            binding=binding_of(record),
            keys=lambda number: self._key(record.workflow_id, number),
        )

    def _key(self, workflow_id: str, number: int) -> DataKey:
        if self._keys is None:
            raise StateError("no_keys", "the state is sealed, and no keys are configured", hint="set KINTSUGI_KEYS")
        return self._keys(workflow_id, number)

    def refuse_unsealed(self) -> None:
        """StateError `unsealed` where states are expected to be sealed."""
        if self._keys is not None and not self._keys_optional:
            raise StateError("unsealed", "keys are configured, and nobody sealed this state")
