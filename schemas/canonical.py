"""State as data: canonical JSON, digests, compression, and the checks that keep it trustworthy.

State is written as RFC 8785 canonical JSON, so its bytes and its value have one SHA-256. It must be JSON data: no NaN,
no duplicate keys, no lone surrogates, no U+0000, limited depth and size. Bytes are verified before they are parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from typing import Any, cast

import orjson
import rfc8785
import zstandard
from isal import isal_zlib

from .errors import StateError

DEPTH_MAX = 64
#: Of one object. A state with more is a table, and belongs in a database.
KEYS_MAX = 100_000
STATE_SIZE_BYTES_MAX = 10 * 1024 * 1024
#: RFC 8785 numbers are IEEE doubles; larger integers would not survive the round trip.
_INTEGER_MAX = 2**53 - 1
_FRACTION_MIN = 1e-4
#: No state is larger, so no window need be; zstd would allocate what a frame asks for.
_ZSTD_WINDOW_BYTES_MAX = 2**24
CODECS = ("identity", "gzip", "zstd")
#: ISA-L's, which has levels of its own: a tenth of the time of zlib's level 4, at 2 KB as at 1 MB of JSON, for 8 % more
#: bytes. What it writes is plain gzip.
_GZIP_LEVEL = 2
#: Below, zlib unpacks as fast.
_ISAL_FROM_BYTES = 8 * 1024
_SIZE_HINT = "keep large results in object storage and only their names in the state"
#: Data from here on is tried in parts before all of it is compressed.
_SAMPLED_FROM_BYTES = 256 * 1024
_SAMPLES, _SAMPLE_BYTES = 8, 4096
#: Of a sample's size. What does not shrink by more is not worth a fifth of a second for 10 MiB.
_SAMPLE_SHARE_MAX = 0.97
#: What the unpackers raise. (ISA-L's type stubs take its class for an instance.)
_DAMAGED = (zlib.error, cast(type[Exception], isal_zlib.error), zstandard.ZstdError)
#: What orjson writes differently from RFC 8785, or takes and a state may not hold: fractions, exponents, integers of 16
#: digits and more. Found inside a text it only costs the slower way. One pattern for each byte that can stand before a
#: number: what begins with one certain byte is found three times as fast.
_NUMBER = rb"-?(?:\d+[.eE]|\d{16})"
_UNUSUAL = tuple(re.compile(before + _NUMBER).search for before in (rb":", rb",", rb"\["))
_DIGEST = re.compile("[0-9a-f]{64}")


def canonical_bytes(value: Any) -> bytes:
    """RFC 8785 form of `value`. StateError names the path and the rule that a value breaks."""
    plain = _check(value)
    data = _write(value, plain)
    if len(data) > STATE_SIZE_BYTES_MAX:
        raise StateError(
            "limit",
            f"the state has {len(data)} bytes, {STATE_SIZE_BYTES_MAX} allowed",
            hint=_SIZE_HINT,
        )
    return data


def _write(value: Any, plain: bool) -> bytes:
    # orjson with sorted keys is byte-identical to RFC 8785 where `_check` says so (ten times as fast); otherwise the
    # reference implementation is used.
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if plain else rfc8785.dumps(value)


class _RefusedError(Exception):
    """What a value breaks; the steps of its path are added on the way out, so that sound states pay nothing for it."""

    def __init__(self, reason: str, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.reason = reason
        self.hint = hint
        self.steps: list[str] = []


def _check(value: Any) -> bool:
    """Check a state; returns whether the fast path is exact for it."""
    try:
        return _weigh(value, 0) > 0
    except _RefusedError as refused:
        path = _printable("$" + "".join(reversed(refused.steps)))
        raise StateError(refused.reason, f"{path:.200}: {refused}", path=path, hint=refused.hint) from None


def _weigh(value: Any, depth: int) -> int:
    """Check a value; returns characters that it has at least when written, negative when the fast path is not exact.

    They are counted because parts may be shared: ten lists, each of ten times the next one, are ten billion values.
    """
    kind = type(value)
    if kind is str:
        return _weigh_text(value)
    if kind is int:
        if not -_INTEGER_MAX <= value <= _INTEGER_MAX:
            raise _RefusedError("structure", "integer beyond 2^53")
        return 1
    if value is None or kind is bool:
        return 1
    if kind is float:
        if not math.isfinite(value):
            raise _RefusedError("structure", f"{value} is not a JSON number")
        # Both write the shortest digits. They differ in whole numbers (`5.0`) and in where exponents begin.
        return 1 if not value.is_integer() and abs(value) >= _FRACTION_MIN else -1
    if depth >= DEPTH_MAX:
        raise _RefusedError("limit", f"nested deeper than {DEPTH_MAX}")
    if kind is dict:
        return _weigh_object(value, depth)
    if kind is list or kind is tuple:
        plain, total = True, 1
        for index, item in enumerate(value):
            try:
                weight = _weigh(item, depth + 1)
            except _RefusedError as refused:
                refused.steps.append(f"[{index}]")
                raise
            if weight < 0:
                plain, weight = False, -weight
            total += weight + 1
            if total > STATE_SIZE_BYTES_MAX:
                raise _too_large()
        return total if plain else -total
    raise _RefusedError("structure", f"{kind.__name__} is not JSON data")


def _weigh_object(value: dict[Any, Any], depth: int) -> int:
    if len(value) > KEYS_MAX:
        raise _RefusedError("limit", f"{len(value)} keys, {KEYS_MAX} allowed")
    plain, total = True, 1
    for key, item in value.items():
        if type(key) is not str:
            raise _RefusedError("structure", f"key {_shown(key)} is not a string")
        if not key.isascii():
            plain = False
            _weigh_text(key)
        elif "\x00" in key:
            raise _RefusedError("structure", "U+0000 is not allowed")
        try:
            weight = _weigh(item, depth + 1)
        except _RefusedError as refused:
            refused.steps.append(f".{key}")
            raise
        if weight < 0:
            plain, weight = False, -weight
        total += weight + len(key) + 4
        if total > STATE_SIZE_BYTES_MAX:
            raise _too_large()
    return total if plain else -total


def _too_large() -> _RefusedError:
    return _RefusedError(
        "limit", f"the state has more than {STATE_SIZE_BYTES_MAX} bytes, no more are allowed", _SIZE_HINT
    )


def _shown(key: object) -> str:
    try:
        return f"{key!r:.80}"
    except Exception:  # its own method may do anything
        return f"<{type(key).__name__}>"


def _weigh_text(text: str) -> int:
    if "\x00" in text:
        raise _RefusedError("structure", "U+0000 is not allowed")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _RefusedError("structure", "lone surrogate") from None
    return len(text) + 2


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def digest_of(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def chain_digest_of(parent_chain_digest: str | None, digest: str) -> str:
    """SHA-256 over the parent's chain digest (32 zero bytes for the first) and this digest, hex."""
    parent = _digest_bytes(parent_chain_digest) if parent_chain_digest else bytes(32)
    return hashlib.sha256(parent + _digest_bytes(digest)).hexdigest()


def _digest_bytes(digest: str) -> bytes:
    if not _DIGEST.fullmatch(digest):
        raise StateError("digest", f"{digest:.80} is not a SHA-256 in hex")
    return bytes.fromhex(digest)


def compress(data: bytes, *, codec: str, min_size_bytes: int) -> tuple[str, bytes]:
    """(codec used, stored bytes). Small or incompressible data is stored as it is."""
    if codec not in CODECS:
        raise StateError("codec", f"unknown codec {codec!r}; one of {', '.join(CODECS)}")
    if codec == "identity" or len(data) < min_size_bytes or not _shrinks(data):
        return "identity", data
    if codec == "gzip":
        packer = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
        stored = packer.compress(data) + packer.flush()
    else:
        stored = zstandard.ZstdCompressor(level=3).compress(data)
    return (codec, stored) if len(stored) < len(data) else ("identity", data)


def _shrinks(data: bytes) -> bool:
    """Whether parts of the data, taken all over it, become smaller."""
    if len(data) < _SAMPLED_FROM_BYTES:
        return True
    step = (len(data) - _SAMPLE_BYTES) // (_SAMPLES - 1)
    sample = b"".join(data[at : at + _SAMPLE_BYTES] for at in range(0, step * _SAMPLES, step))
    return len(isal_zlib.compress(sample, _GZIP_LEVEL)) <= _SAMPLE_SHARE_MAX * len(sample)


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
            data = _unzstd(stored, size_bytes)
        else:
            raise StateError("codec", f"unknown codec {codec!r:.40}; one of {', '.join(CODECS)}")
    except _DAMAGED as error:
        raise StateError("codec", f"damaged {codec} data: {error}") from error
    if len(data) != size_bytes:
        raise StateError(
            "size", f"declared {size_bytes} bytes, found {'more' if len(data) > size_bytes else len(data)}"
        )
    return data


def _gunzip(stored: bytes, size_bytes: int) -> bytes:
    reader = (isal_zlib if size_bytes >= _ISAL_FROM_BYTES else zlib).decompressobj(31)
    data: bytes = reader.decompress(stored, size_bytes + 1)
    # The trailer with the CRC is consumed only at end of stream.
    if len(data) <= size_bytes and not reader.eof:
        data += reader.decompress(reader.unconsumed_tail, 1)
        if not reader.eof:
            raise StateError("codec", "the gzip stream is cut short")
    if reader.unused_data:
        raise StateError("codec", "bytes after the gzip stream")
    return data


def _unzstd(stored: bytes, size_bytes: int) -> bytes:
    # A frame that names its size is given that much at once, whatever `max_output_size` says: so it is compared first.
    named = zstandard.frame_content_size(stored)
    if named not in (-1, size_bytes):
        raise StateError("size", f"declared {size_bytes} bytes, the zstd frame says {named}")
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    return reader.decompress(stored, max_output_size=size_bytes, allow_extra_data=False)


def verify_stored(stored: bytes, *, codec: str, size_bytes: int, digest: str) -> bytes:
    """The canonical bytes, proven to be those that `digest` names. StateError says what is wrong."""
    data = decompress(stored, codec=codec, size_bytes=size_bytes)
    if digest_of(data) != digest:
        raise StateError("digest", "the bytes are not those that were saved")
    return data


def parse_state(data: bytes) -> dict[str, Any]:
    """Parse verified bytes into a state. StateError for anything that `canonical_bytes` would not have written."""
    value = _parse_quickly(data)
    if value is not None:
        return value
    try:
        value = json.loads(data, parse_int=_number)
    except (ValueError, RecursionError) as error:
        raise StateError("structure", f"not JSON: {error}"[:300]) from error
    if not isinstance(value, dict):
        raise StateError("structure", f"a state is a JSON object, not {type(value).__name__}")
    # Writing it again shows what parsing forgives: duplicate keys, white space, another order, `1.0` for `1`.
    if _write(value, _check(value)) != data:
        raise StateError("structure", "not canonical JSON, or a key is there twice")
    return value


def _parse_quickly(data: bytes) -> dict[str, Any] | None:
    """The state that is written exactly so; None when that takes a closer look."""
    try:
        value = orjson.loads(data)
        if not isinstance(value, dict):
            return None
        if _is_plain(data):
            # What opens at most so many objects and lists cannot nest deeper: most states need no walk.
            if data.count(b"{") + data.count(b"[") > DEPTH_MAX or data.count(b":") > KEYS_MAX:
                _check_shape(value)
            plain = True
        else:
            plain = _weigh(value, 0) > 0
        return value if _write(value, plain) == data else None
    except (orjson.JSONDecodeError, _RefusedError):
        return None


def _is_plain(data: bytes) -> bool:
    """Whether orjson writes these values as RFC 8785 does, by the look of the text: half the time of a walk."""
    return data.isascii() and b"\\u0000" not in data and not any(search(data) for search in _UNUSUAL)


def _check_shape(value: dict[str, Any]) -> None:
    """Depth and number of keys, level by level."""
    level: list[Any] = [value]
    for _ in range(DEPTH_MAX + 1):
        if any(type(node) is dict and len(node) > KEYS_MAX for node in level):
            raise _RefusedError("limit", f"more than {KEYS_MAX} keys")
        level = [
            item
            for node in level
            for item in (node.values() if type(node) is dict else node)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return
    raise _RefusedError("limit", f"nested deeper than {DEPTH_MAX}")


def _number(text: str) -> int | float:
    # RFC 8785 writes doubles of 2^53 to 10^21 without a point. `canonical_bytes` takes no such integers.
    value = int(text)
    return value if -_INTEGER_MAX <= value <= _INTEGER_MAX else float(value)
