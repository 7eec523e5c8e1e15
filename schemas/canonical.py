"""State as data: canonical JSON, digests, compression, and the checks that keep it trustworthy.

State is written as RFC 8785 canonical JSON, so its bytes and its value have one SHA-256. It must be JSON data: no NaN,
no duplicate keys, no lone surrogates, no U+0000, limited depth and size. Bytes are verified before they are parsed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import orjson
import rfc8785
import zstandard

from .errors import StateError

DEPTH_MAX = 64
STATE_SIZE_BYTES_MAX = 10 * 1024 * 1024
#: RFC 8785 numbers are IEEE doubles; larger integers would not survive the round trip.
_INTEGER_MAX = 2**53 - 1
CODECS = ("identity", "gzip", "zstd")


def canonical_bytes(value: Any) -> bytes:
    """RFC 8785 form of `value`. StateError names the path and the rule that a value breaks."""
    plain = _check(value, "$", 0)
    # orjson with sorted keys is byte-identical to RFC 8785 when all keys are ASCII and there are no floats (their
    # shortest forms differ) and no DEL-like escapes; otherwise the slower reference implementation is used.
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if plain else rfc8785.dumps(value)
    if len(data) > STATE_SIZE_BYTES_MAX:
        raise StateError(
            "limit",
            f"the state has {len(data)} bytes, {STATE_SIZE_BYTES_MAX} allowed",
            hint="keep large results in object storage and only their names in the state",
        )
    return data


def _check(value: Any, path: str, depth: int) -> bool:
    """Check one value; returns whether the fast path is exact for it."""
    kind = type(value)
    if kind is str:
        return _check_text(value, path)
    if kind is int:
        if not -_INTEGER_MAX <= value <= _INTEGER_MAX:
            raise StateError("structure", f"{path}: integer beyond 2^53", path=path)
        return True
    if value is None or kind is bool:
        return True
    if kind is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise StateError("structure", f"{path}: {value} is not a JSON number", path=path)
        return False
    if depth >= DEPTH_MAX:
        raise StateError("limit", f"{path}: nested deeper than {DEPTH_MAX}", path=path)
    plain = True
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise StateError("structure", f"{path}: key {key!r:.80} is not a string", path=path)
            plain &= _check_text(key, path) & key.isascii()
            plain &= _check(item, f"{path}.{key}", depth + 1)
        return plain
    if kind is list or kind is tuple:
        for index, item in enumerate(value):
            plain &= _check(item, f"{path}[{index}]", depth + 1)
        return plain
    raise StateError("structure", f"{path}: {kind.__name__} is not JSON data", path=path)


def _check_text(text: str, path: str) -> bool:
    if "\x00" in text:
        raise StateError("structure", f"{path}: U+0000 is not allowed", path=path)
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StateError("structure", f"{path}: lone surrogate", path=path) from None
    return True


def digest_of(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def chain_digest_of(parent_chain_digest: str | None, digest: str) -> str:
    """SHA-256 over the parent's chain digest (32 zero bytes for the first) and this digest, hex."""
    parent = bytes.fromhex(parent_chain_digest) if parent_chain_digest else bytes(32)
    return hashlib.sha256(parent + bytes.fromhex(digest)).hexdigest()


def compress(data: bytes, *, codec: str, min_size_bytes: int) -> tuple[str, bytes]:
    """(codec used, stored bytes). Small or incompressible data is stored as it is."""
    if codec == "identity" or len(data) < min_size_bytes:
        return "identity", data
    if codec == "gzip":
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        stored = packer.compress(data) + packer.flush()
    elif codec == "zstd":
        stored = zstandard.ZstdCompressor(level=3).compress(data)
    else:
        raise StateError("codec", f"unknown codec {codec!r}; one of {', '.join(CODECS)}")
    return (codec, stored) if len(stored) < len(data) else ("identity", data)


def decompress(stored: bytes, *, codec: str, size_bytes: int) -> bytes:
    """Inverse of `compress`; never allocates more than the declared size, nor that beyond the limit."""
    if not 0 <= size_bytes <= STATE_SIZE_BYTES_MAX:
        raise StateError("limit", f"declared size {size_bytes} is outside 0..{STATE_SIZE_BYTES_MAX}")
    try:
        if codec == "identity":
            data = stored
        elif codec == "gzip":
            data = _gunzip(stored, size_bytes)
        elif codec == "zstd":
            reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(stored)
            data = reader.read(size_bytes + 1)
        else:
            raise StateError("codec", f"unknown codec {codec!r:.40}; one of {', '.join(CODECS)}")
    except (zlib.error, zstandard.ZstdError) as error:
        raise StateError("codec", f"damaged {codec} data: {error}") from error
    if len(data) != size_bytes:
        raise StateError(
            "size", f"declared {size_bytes} bytes, found {'more' if len(data) > size_bytes else len(data)}"
        )
    return data


def _gunzip(stored: bytes, size_bytes: int) -> bytes:
    reader = zlib.decompressobj(31)
    data = reader.decompress(stored, size_bytes + 1)
    # The trailer with the CRC is consumed only at end of stream.
    if len(data) <= size_bytes and not reader.eof:
        data += reader.decompress(reader.unconsumed_tail, 1)
        if not reader.eof:
            raise StateError("codec", "the gzip stream is cut short")
    if reader.unused_data:
        raise StateError("codec", "bytes after the gzip stream")
    return data


def verify_stored(stored: bytes, *, codec: str, size_bytes: int, digest: str) -> bytes:
    """The canonical bytes, proven to be those that `digest` names. StateError says what is wrong."""
    data = decompress(stored, codec=codec, size_bytes=size_bytes)
    if digest_of(data) != digest:
        raise StateError("digest", "the bytes are not those that were saved")
    return data


def parse_state(data: bytes) -> dict[str, Any]:
    """Parse verified bytes into a state. StateError for anything that `canonical_bytes` would not have written."""
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StateError("structure", f"not JSON: {error}"[:300]) from error
    if not isinstance(value, dict):
        raise StateError("structure", f"a state is a JSON object, not {type(value).__name__}")
    _check(value, "$", 0)
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
