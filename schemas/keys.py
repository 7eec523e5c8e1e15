"""Key providers: who keeps the key-encryption keys (KEKs) that wrap workflows' data keys.

`file:///path/keys.json` and `env:VARIABLE` are here. A KMS is added by a package of its own: an entry point of the
group `kintsugi.key_providers`, named like its URL's scheme (`kms+aws`), is called with the URL and returns a
`KeyProvider`.

A KEK is in no message, no repr and no exception, also not in one behind another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import orjson

from .errors import ConfigError, KintsugiError, StateError
from .sealing import SECRET_BYTES, needs_cryptography

VARIABLE = "KINTSUGI_KEYS"
ENTRY_POINTS = "kintsugi.key_providers"
#: Some hundred KEKs. A larger file is not one of ours, and is not read.
KEY_FILE_BYTES_MAX = 64 * 1024
#: Read, write and search by group and others.
_OTHERS = 0o077
_NONCE_BYTES = 12
_KEK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_log = logging.getLogger(__name__)

#: What a wrapped key belongs to: names and values, as a KMS wants its encryption context.
Context = Mapping[str, str]


class KeyProvider(Protocol):
    """Wraps and unwraps secrets of 32 bytes by keys that it alone knows. Thread-safe.

    RetriableError when it is away. StateError "key_missing" from `unwrap` for a KEK it does not have, or for bytes that
    were not wrapped by it in this context. Whatever else it raises is taken for "away".
    """

    @property
    def current(self) -> str:
        """Id of the KEK that wraps from now on."""

    def names(self) -> tuple[str, ...]:
        """Ids of all KEKs that can unwrap, oldest first where that is known."""

    def wrap(self, secret: bytes, context: Context) -> tuple[str, bytes]:
        """(id of the KEK, wrapped secret), bound to the context."""

    def unwrap(self, kek_id: str, wrapped: bytes, context: Context) -> bytes:
        """Inverse of `wrap`."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """KEKs by id, oldest first, and which of them wraps."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def names(self) -> tuple[str, ...]:
        """As `KeyProvider`."""
        return tuple(self.keys)

    def wrap(self, secret: bytes, context: Context) -> tuple[str, bytes]:
        """As `KeyProvider`."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _aead(self.keys[self.current]).encrypt(nonce, secret, _aad(self.current, context))
        return self.current, nonce + sealed

    def unwrap(self, kek_id: str, wrapped: bytes, context: Context) -> bytes:
        """As `KeyProvider`."""
        from cryptography.exceptions import InvalidTag

        kek = self.keys.get(kek_id)
        if kek is None:
            raise StateError(
                "key_missing",
                f"the data key is wrapped by key {kek_id!r:.80}, which {VARIABLE} does not have",
                hint="add the old key again; kintsugi keys status",
            )
        try:
            secret: bytes = _aead(kek).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _aad(kek_id, context))
        except (InvalidTag, ValueError):
            raise StateError(
                "key_missing",
                f"the wrapped data key does not open with key {kek_id!r:.80}: another key, or damaged",
                hint=f"compare {VARIABLE} with the one that wrapped it; kintsugi keys status",
            ) from None
        return secret

    def dump(self) -> bytes:
        """The content of a key file."""
        keys = {kek_id: base64.b64encode(kek).decode() for kek_id, kek in self.keys.items()}
        return json.dumps({"current": self.current, "keys": keys}, indent=2).encode() + b"\n"


def _aead(kek: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise needs_cryptography(error) from error
    return AESGCM(kek)


def _aad(kek_id: str, context: Context) -> bytes:
    return orjson.dumps({"kek_id": kek_id, **context}, option=orjson.OPT_SORT_KEYS)


def parse_ring(data: bytes, where: str) -> KeyRing:
    """Keys from a key file's content. ConfigError says what is wrong, and shows nothing of it."""
    wrong, ring = _try_ring(data)
    if ring is None:  # raised here, where no exception that holds the document is behind it
        raise ConfigError(
            f"{VARIABLE}: {where}: {wrong}",
            hint='{"current": ID, "keys": {ID: base64 of 32 bytes}}; kintsugi keys init writes one',
        )
    return ring


def _try_ring(data: bytes) -> tuple[str, KeyRing | None]:
    if len(data) > KEY_FILE_BYTES_MAX:
        return f"larger than {KEY_FILE_BYTES_MAX} bytes", None
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in found}) != len(found):
            twice.append("a name is there twice")
        return dict(found)

    try:
        raw = json.loads(data, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return "not JSON", None
    if twice:
        return twice[0], None
    if not isinstance(raw, dict) or set(raw) != {"current", "keys"} or not isinstance(raw["keys"], dict):
        return "not an object of `current` and `keys`", None
    keys: dict[str, bytes] = {}
    for number, (kek_id, text) in enumerate(raw["keys"].items(), 1):
        if not _KEK_ID.fullmatch(kek_id):
            return f"the id of key {number} is not one of up to 64 letters, digits and ._:-", None
        kek = decode_kek(text)
        if kek is None:
            return f"key {number} is not the base64 of {SECRET_BYTES} bytes", None
        if kek in keys.values():
            return f"key {number} is the same as one before it", None
        keys[kek_id] = kek
    if not isinstance(raw["current"], str) or raw["current"] not in keys:
        return "`current` is not the id of one of the keys", None
    return "", KeyRing(raw["current"], keys)


def decode_kek(text: object) -> bytes | None:
    """The key that a text is the base64 of; None when it is none."""
    try:
        kek = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return None
    return kek if len(kek) == SECRET_BYTES else None


def read_key_file(path: Path) -> KeyRing:
    """Keys from a file. ConfigError when it is not there, wrong, or readable by others than its owner."""
    try:
        with path.open("rb") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            data = handle.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{VARIABLE}: {path} cannot be read: {error.strerror}", hint="kintsugi keys init makes a new one"
        ) from error
    if mode & _OTHERS:
        raise ConfigError(
            f"{VARIABLE}: {path} can be read or written by others than its owner ({stat.filemode(mode)})",
            hint=f"chmod 600 {path}; who else could read it may know the keys: kintsugi keys rotate",
        )
    return parse_ring(data, str(path))


class FileKeys:
    """KEKs from a file, read again when it changes: a rotated file needs no restart.

    A changed file that cannot be used is warned of once; the keys read before stay in use.
    """

    def __init__(self, path: Path) -> None:
        """ConfigError as `read_key_file`."""
        self.path = path
        self._lock = threading.Lock()
        self._seen = self._signature()  # before it is read: a change in between is seen the next time
        self._ring = read_key_file(path)

    def __repr__(self) -> str:
        return f"FileKeys({str(self.path)!r})"

    @property
    def current(self) -> str:
        """As `KeyProvider`."""
        return self._read().current

    def names(self) -> tuple[str, ...]:
        """As `KeyProvider`."""
        return self._read().names()

    def wrap(self, secret: bytes, context: Context) -> tuple[str, bytes]:
        """As `KeyProvider`."""
        return self._read().wrap(secret, context)

    def unwrap(self, kek_id: str, wrapped: bytes, context: Context) -> bytes:
        """As `KeyProvider`."""
        return self._read().unwrap(kek_id, wrapped, context)

    def _read(self) -> KeyRing:
        with self._lock:
            signature = self._signature()
            if signature != self._seen:
                self._seen = signature
                try:
                    self._ring = read_key_file(self.path)
                except ConfigError as error:
                    _log.warning("the key file changed and cannot be used, the keys before it stay: %s", error)
            return self._ring

    def _signature(self) -> tuple[int, int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def environment_ring(variable: str) -> KeyRing:
    """Keys from an environment variable: a key file's content, or one key in base64."""
    text = os.environ.get(variable, "").strip()
    if not text:
        raise ConfigError(f"{VARIABLE}: the environment variable {variable} is not set", hint="set it to a key")
    kek = decode_kek(text)
    if kek is None:
        return parse_ring(text.encode(errors="replace"), f"environment variable {variable}")
    # Named by what it is: a value that changes is another key, and says so instead of failing to open anything.
    kek_id = f"env-{hashlib.sha256(b'kintsugi key id|' + kek).hexdigest()[:8]}"
    return KeyRing(kek_id, {kek_id: kek})


def open_provider(url: str) -> KeyProvider:
    """The provider that a URL names. ConfigError names the schemes there are."""
    scheme, _, rest = url.partition(":")
    if scheme == "file":
        path = unquote(urlsplit(url).path)
        if not path.startswith("/") or urlsplit(url).netloc:
            raise ConfigError(f"{VARIABLE}: {url!r:.200} names no file", hint="file:///absolute/path/keys.json")
        return FileKeys(Path(path))
    if scheme == "env" and rest:
        return environment_ring(rest)
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme not in found or not rest:
        # The value itself may be a key, set by mistake: it is not shown.
        others = "".join(f", {name}:..." for name in sorted(found))
        raise ConfigError(
            f"{VARIABLE} names no key provider",
            hint=f"file:///path/keys.json, env:VARIABLE{others}; others come with a package of their own",
        )
    return _load(found[scheme].load(), url)


def _load(opener: Callable[[str], KeyProvider], url: str) -> KeyProvider:
    try:
        return opener(url)
    except KintsugiError:
        raise
    except Exception as error:
        raise ConfigError(f"{VARIABLE}: {url.split(':')[0]}: {type(error).__name__} when it was opened") from error
