"""Proves on arrival that a checkpoint's bytes are what its service saved, once, for all who fold it.

A state that this reader cannot look into (it lies in object storage, its key is erased or not here) is `unreadable`,
which is not a rejection: the verdict then rests on the record alone, so replays agree whatever keys there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import orjson

from schemas.canonical import DEPTH_MAX, STATE_SIZE_BYTES_MAX, parse_state, verify_stored
from schemas.errors import StateError
from schemas.records import Record
from schemas.records.events import CheckpointCreated, StatePersisted, StateRestored
from schemas.sealing import DataKey, binding_of, unseal

from .events import Delivered

#: What orjson writes differently from RFC 8785, or takes and a state may not hold: fractions, exponents, integers of 16
#: digits and more. Found inside a text it only costs the slower way. One pattern for each byte that can stand before a
#: number: what begins with one certain byte is found three times as fast.
_NUMBER = rb"-?(?:\d+[.eE]|\d{16})"
_UNUSUAL = tuple(re.compile(before + _NUMBER).search for before in (rb":", rb",", rb"\["))
#: What says nothing against a state, only that it cannot be looked into here and now.
_UNREADABLE = ("claim", "key_erased", "key_missing", "no_keys")
_DETAIL_CHARS_MAX = 500

#: (workflow id, number) to its data key. StateError `key_missing` or `key_erased`; RetriableError: ask again later.
KeyLookup = Callable[[str, int], DataKey]
StateRecord = CheckpointCreated | StatePersisted | StateRestored
State = dict[str, object]


class Inspection(NamedTuple):
    """What was found: the proven state, or (reason, detail) against it, or why it could not be looked into."""

    state: State | None = None
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
        self._verify = verify
        self._keys = keys
        self._keys_optional = keys_optional
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
            if record.claim_uri is not None:
                self._check_claim(record)
            if record.state is None:
                raise StateError("structure", "it holds neither a state nor a claim")
            return Inspection(self.prove(record, record.state))
        except StateError as error:
            if error.reason in _UNREADABLE:
                return Inspection(unreadable=error.reason)
            return Inspection(rejection=(error.reason, str(error)[:_DETAIL_CHARS_MAX]))

    def _check_claim(self, record: CheckpointCreated) -> None:
        if record.state is not None:
            raise StateError("structure", "it holds both a state and a claim")
        if not 0 <= record.size_bytes <= STATE_SIZE_BYTES_MAX:
            raise StateError("limit", f"declared size {record.size_bytes} is outside 0..{STATE_SIZE_BYTES_MAX}")
        if record.protection == "none":
            self._refuse_unsealed()
        raise StateError("claim", "the state lies in object storage")

    def _refuse_unsealed(self) -> None:
        if self._keys is not None and not self._keys_optional:
            raise StateError("unsealed", "keys are configured, and nobody sealed this state")

    def prove(self, record: StateRecord, stored: bytes) -> State:
        """The state in a record's stored bytes, wherever these were read from. StateError says what is wrong."""
        data = verify_stored(
            self.unsealed(record, stored), codec=record.codec, size_bytes=record.size_bytes, digest=record.digest
        )
        value = _parse(data)
        if value.get("workflow_id") != record.workflow_id:
            raise StateError("structure", "the state is that of another workflow, or names none")
        if not value.get("step_id") or not value.get("status"):
            raise StateError("structure", "the state lacks step_id or status")
        return value

    def unsealed(self, record: StateRecord, stored: bytes) -> bytes:
        """The compressed bytes. StateError when the seal is broken or missing, or there is no key to look."""
        if record.protection == "none":
            self._refuse_unsealed()
            return stored
        keys = self._keys
        if keys is None:
            raise StateError("no_keys", "the state is sealed, and no keys are configured", hint="set KINTSUGI_KEYS")
        return unseal(
            stored,
            protection=record.protection,
            binding=binding_of(record),
            keys=lambda number: keys(record.workflow_id, number),
        )


_WITHOUT_KEYS = Inspector()


def deliver(record: Record, partition: int, offset: int, timestamp_us: int) -> Delivered:
    """Wrap a record; a checkpoint is inspected, without keys."""
    return _WITHOUT_KEYS.deliver(record, partition, offset, timestamp_us)


def _parse(data: bytes) -> State:
    """The state in verified canonical bytes. The fast path proves the form by writing it again."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StateError("structure", f"not JSON: {error}") from None
    plain = data.isascii() and b"\\u0000" not in data and not any(search(data) for search in _UNUSUAL)
    plain = plain and orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == data
    if not plain:
        value = parse_state(data)
    if not isinstance(value, dict):
        raise StateError("structure", f"a state is a JSON object, not {type(value).__name__}")
    # What opens at most so many objects and lists cannot nest deeper: most states need no walk.
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and _deeper_than(value, DEPTH_MAX):
        raise StateError("limit", f"nested deeper than {DEPTH_MAX}")
    return value


def _deeper_than(value: object, depth_max: int) -> bool:
    level: list[object] = [value]
    for _ in range(depth_max + 1):
        level = [
            item
            for node in level
            for item in (node.values() if type(node) is dict else node if type(node) is list else ())
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True
