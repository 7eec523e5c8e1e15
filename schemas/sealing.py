"""Sealed bytes: state that only holders of a workflow's data key can read or make, and only for one record.

Layout: `KS`, version, algorithm (1 HMAC-SHA-256, 2 AES-256-GCM), number of the data key (4 bytes, big-endian), then the
MAC (32 bytes) and the payload, or the nonce (12 bytes) and the ciphertext with its tag. Header and binding are
authenticated with the payload, before anything else looks at it. What is bound: see `binding_of`.

Not guaranteed: that a sealed record is the newest one. An older one of the same workflow verifies too; only its place
in the log tells (epoch, sequence and chain digest are bound, so they cannot lie).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from .canonical import canonical_bytes
from .errors import ConfigError, StateError
from .records import Record

if TYPE_CHECKING:  # an extra of the client: imported when the first key is used
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROTECTIONS = ("none", "hmac-sha256", "aes-256-gcm")
SECRET_BYTES = 32
#: What stands in a required text whose content is sealed.
SEALED_TEXT = "(sealed)"

_HMAC, _GCM = 1, 2
_ALGORITHMS = {"hmac-sha256": _HMAC, "aes-256-gcm": _GCM}
_HEADER = struct.Struct(">2sBBI")
_MAGIC, _VERSION = b"KS", 1
_NUMBER_MAX = 2**32 - 1
_MAC_BYTES = 32
#: Random, of 96 bits: safe for 2^32 messages of one key. A workflow that writes more needs `keys rotate --workflow`.
_NONCE_BYTES = 12
_TAG_BYTES = 16
#: Where a record came from and when says nothing about the state, and is not known when the bytes are made.
_UNBOUND = frozenset(
    ("state", "claim_uri", "sealed", "event_id", "occurred_at", "producer", "correlation_id", "causation_id")
)
#: Fields of a record type that its `sealed` field holds. Type, code and fingerprint stay in clear.
SEALED_FIELDS = {
    "WorkflowErrorOccurred": ("error_message", "stack_trace", "context"),
    "WorkflowStarted": ("input",),
    "WorkflowCompleted": ("result",),
    "StepProgressed": ("message",),
    "CommandAcknowledged": ("detail",),
    "InterventionPointReached": ("reason",),
    "InterventionResolved": ("edit", "result"),
    "RetryStep": ("edit",),
    "ResumeFromCheckpoint": ("edit",),
    "SkipStep": ("result",),
}
#: The engine, which has no keys, passes the sealed texts of an answer on to the command that carries it out: they
#: are bound to the error that the answer is about, which both records name.
_PASSED_ON = frozenset({"InterventionResolved", "RetryStep", "ResumeFromCheckpoint", "SkipStep"})

R = TypeVar("R", bound=Record)


def needs_cryptography(error: ImportError) -> ConfigError:
    """The error for a process that was given keys but not the package."""
    message = f"sealed states need the package cryptography ({error.name or error})"
    return ConfigError(message, hint="pip install 'kintsugi-client[keys]'")


@dataclass(frozen=True, slots=True)
class DataKey:
    """A workflow's secret. Its two subkeys are derived once; neither it nor they are ever shown."""

    workflow_id: str
    number: int
    secret: bytes = field(repr=False)
    _aead: AESGCM | None = field(default=None, init=False, repr=False, compare=False)
    _mac: hmac.HMAC | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES or not 1 <= self.number <= _NUMBER_MAX:
            raise ValueError(f"a data key has {SECRET_BYTES} bytes and a number from 1")

    def aead(self) -> AESGCM:
        """Encryption with this key. ConfigError when cryptography is not installed."""
        found = self._aead
        if found is None:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError as error:
                raise needs_cryptography(error) from error
            found = AESGCM(self._subkey(b"encryption"))
            object.__setattr__(self, "_aead", found)
        return found

    def mac(self) -> hmac.HMAC:
        """A MAC with this key that has seen nothing yet."""
        found = self._mac
        if found is None:
            found = hmac.new(self._subkey(b"authentication"), digestmod=hashlib.sha256)
            object.__setattr__(self, "_mac", found)
        return found.copy()

    def _subkey(self, purpose: bytes) -> bytes:
        try:
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError as error:
            raise needs_cryptography(error) from error
        info = b"kintsugi sealing 1|" + purpose + b"|" + self.workflow_id.encode()
        return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(self.secret)


def seal(data: bytes, key: DataKey, *, protection: str, binding: bytes) -> bytes:
    """Sealed bytes of `data`, which `unseal` gives back for the same binding only."""
    algorithm = _ALGORITHMS.get(protection)
    if algorithm is None:
        raise ValueError(f"bytes cannot be sealed by {protection!r}; one of {', '.join(_ALGORITHMS)}")
    header = _HEADER.pack(_MAGIC, _VERSION, algorithm, key.number)
    if algorithm == _HMAC:
        return b"".join((header, _mac_of(key, header, binding, data), data))
    nonce = os.urandom(_NONCE_BYTES)
    return b"".join((header, nonce, key.aead().encrypt(nonce, data, header + binding)))


def unseal(sealed: bytes, *, protection: str, binding: bytes, keys: Callable[[int], DataKey]) -> bytes:
    """What was sealed. `keys` finds a data key by its number, and says what `Keystore.get` says when it cannot.

    StateError "decryption" when the bytes, the protection or the binding are not those that were sealed.
    """
    algorithm, number = _read_header(sealed)
    if _ALGORITHMS.get(protection) != algorithm:
        raise StateError("decryption", f"the record says {protection!r:.40}, its bytes are sealed otherwise")
    key = keys(number)
    header, start = sealed[: _HEADER.size], _HEADER.size
    if algorithm == _HMAC:
        mac, data = sealed[start : start + _MAC_BYTES], sealed[start + _MAC_BYTES :]
        if not hmac.compare_digest(mac, _mac_of(key, header, binding, data)):
            raise _unproven()
        return data
    nonce, body = sealed[start : start + _NONCE_BYTES], memoryview(sealed)[start + _NONCE_BYTES :]
    aead = key.aead()
    from cryptography.exceptions import InvalidTag

    try:
        return aead.decrypt(nonce, body, header + binding)
    except InvalidTag:
        raise _unproven() from None


def key_number_of(sealed: bytes) -> int:
    """Number of the data key that these bytes say sealed them. StateError "decryption" when they are not sealed."""
    return _read_header(sealed)[1]


def unproven_payload_of(sealed: bytes) -> bytes:
    """What `hmac-sha256` authenticates, for readers without the key. Nothing is proven. StateError "decryption"."""
    algorithm, _ = _read_header(sealed)
    if algorithm != _HMAC:
        raise StateError("decryption", "what these bytes hold is encrypted")
    return sealed[_HEADER.size + _MAC_BYTES :]


def _read_header(sealed: bytes) -> tuple[int, int]:
    try:
        magic, version, algorithm, number = _HEADER.unpack_from(sealed)
    except struct.error:
        raise StateError("decryption", f"{len(sealed)} bytes are too few to be sealed ones") from None
    if magic != _MAGIC or version != _VERSION or algorithm not in (_HMAC, _GCM) or number == 0:
        raise StateError("decryption", "these are not sealed bytes of a form that this release knows")
    if len(sealed) < _HEADER.size + (_MAC_BYTES if algorithm == _HMAC else _NONCE_BYTES + _TAG_BYTES):
        raise StateError("decryption", "the sealed bytes are cut short")
    return algorithm, number


def _mac_of(key: DataKey, header: bytes, binding: bytes, data: bytes) -> bytes:
    mac = key.mac()
    # The length tells where the binding ends and the data begin.
    mac.update(b"".join((header, len(binding).to_bytes(8, "big"), binding)))
    mac.update(data)
    return mac.digest()


def _unproven() -> StateError:
    return StateError("decryption", "these are not the bytes that were sealed for this record, or not with this key")


#: By record type: names of the bound fields, their defaults, and how to read them all at once.
_Bound = tuple[tuple[str, ...], tuple[Any, ...], Callable[[Any], tuple[Any, ...]]]
_BOUND: dict[type[Record], _Bound] = {}


def _bound_fields(kind: type[Record]) -> _Bound:
    found = _BOUND.get(kind)
    if found is None:
        bound = [f for f in fields(kind) if f.name not in _UNBOUND]
        names = tuple(f.name for f in bound)
        found = _BOUND[kind] = names, tuple(f.default for f in bound), attrgetter(*names)
    return found


def binding_of(record: Record) -> bytes:
    """What a record's sealed state is bound to: its type, and all fields but the bytes' place and the event's origin.

    Canonical JSON. A field that has its default is left out, so that a field which a later release adds does not make
    what was sealed before unreadable; giving it any other value still does.
    """
    kind = type(record)
    names, defaults, values = _bound_fields(kind)
    bound = {
        name: value
        for name, default, value in zip(names, defaults, values(record), strict=True)
        if default is MISSING or value != default
    }
    return canonical_bytes({"record": kind.__name__, "fields": bound})


def seal_fields(record: R, key: DataKey) -> R:
    """The record with its texts sealed: what a service's people wrote or its code carried. None of them: unchanged."""
    kind = type(record)
    names = SEALED_FIELDS[kind.__name__]
    texts = {name: getattr(record, name) for name in names}
    if getattr(record, "sealed", None) is not None or all(text is None for text in texts.values()):
        return record
    # orjson and not `canonical_bytes`: these texts explain errors, and are written whatever is in them.
    data = orjson.dumps(texts, option=orjson.OPT_SORT_KEYS)
    sealed = seal(data, key, protection="aes-256-gcm", binding=_binding_of_fields(record))
    hidden = {f.name: SEALED_TEXT if f.default is MISSING else None for f in fields(kind) if f.name in names}
    changed: dict[str, Any] = {**hidden, "sealed": sealed}
    return replace(record, **changed)


def unseal_fields(record: R, keys: Callable[[int], DataKey]) -> R:
    """Inverse of `seal_fields`; a record that is not sealed is returned as it is. StateError as `unseal`."""
    sealed = getattr(record, "sealed", None)
    if sealed is None:
        return record
    data = unseal(sealed, protection="aes-256-gcm", binding=_binding_of_fields(record), keys=keys)
    texts = orjson.loads(data)
    changed: dict[str, Any] = {name: texts.get(name) for name in SEALED_FIELDS[type(record).__name__]}
    return replace(record, **{**changed, "sealed": None})


def _binding_of_fields(record: Record) -> bytes:
    kind = type(record).__name__
    if kind in _PASSED_ON:
        names = {"texts_of": "answer", "workflow_id": record.workflow_id, "error_id": getattr(record, "error_id", None)}
    else:
        names = {"texts_of": kind, "workflow_id": record.workflow_id, "event_id": record.event_id}
    return orjson.dumps(names, option=orjson.OPT_SORT_KEYS)
