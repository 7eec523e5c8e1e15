"""From what a record may hold to what Postgres accepts. Total functions: no input makes them raise."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from schemas.canonical import decompress, verify_stored
from schemas.errors import StateError

_TEXT_IN_MARKER_MAX = 2000


def text(value: str) -> str:
    """Postgres has no U+0000 in text; it becomes the replacement character."""
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def text_or_none(value: str | None) -> str | None:
    """`text`, and None stays None."""
    return None if value is None else text(value)


def json_text(value: str | None) -> str | None:
    """JSON text that jsonb accepts; what is no JSON is kept as text inside a marker."""
    if value is None:
        return None
    return _accepted(value.encode("utf-8", "replace")) or _marker("not JSON", value)


def state_text(
    state: bytes | None, *, codec: str, size_bytes: int, digest: str, rejected: str | None, proven: bool = False
) -> str:
    """A state as jsonb text. One that does not verify is not shown, only marked; every checkpoint has its row.

    `proven`: these bytes were verified on arrival (engine.events), so they are canonical JSON, which jsonb accepts.
    """
    if rejected is not None:
        return _marker(rejected)
    if state is None:
        return _marker("the state lies in object storage")
    return _shown(state, codec, size_bytes, digest, proven)


@lru_cache(maxsize=1)  # a checkpoint's state goes into two tables, one after the other
def _shown(state: bytes, codec: str, size_bytes: int, digest: str, proven: bool) -> str:
    try:
        if proven:
            return decompress(state, codec=codec, size_bytes=size_bytes).decode()
        data = verify_stored(state, codec=codec, size_bytes=size_bytes, digest=digest)
    except StateError as error:
        return _marker(str(error))
    return _accepted(data) or _marker("not JSON that Postgres accepts")


def _accepted(data: bytes) -> str | None:
    """The JSON written anew, without numbers, surrogates or U+0000 that jsonb refuses; None when it is no JSON."""
    try:
        value: Any = orjson.loads(data)
        written = orjson.dumps(value)
        if b"\\u0000" in written:
            written = orjson.dumps(_without_nul(value))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return None
    return written.decode()


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {text(key): _without_nul(item) for key, item in value.items()}
    return value


def _marker(reason: str, content: str | None = None) -> str:
    marker = {"$kintsugi": "unreadable", "reason": text(reason)}
    if content is not None:
        marker["text"] = text(content[:_TEXT_IN_MARKER_MAX].encode("utf-8", "replace").decode())
    return orjson.dumps(marker).decode()
