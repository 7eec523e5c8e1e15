"""From what a record may hold to what Postgres accepts. Total functions: no input makes them raise.

A state or context is shown less what the policy hides (`schemas.redaction`); what cannot be looked into for it is then
not shown at all.
"""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache
from typing import Any

import orjson

from engine.events import Delivered
from engine.inspection import deliver
from schemas.canonical import decompress, verify_stored
from schemas.errors import StateError
from schemas.records.events import CheckpointCreated, StatePersisted, StateRestored
from schemas.redaction import NOTHING, REDACTED, Redaction
from schemas.sealing import key_number_of, unproven_payload_of

_TEXT_IN_MARKER_MAX = 2000

StateRecord = CheckpointCreated | StatePersisted | StateRestored


def text(value: str) -> str:
    """Postgres has no U+0000 in text; it becomes the replacement character."""
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def text_or_none(value: str | None) -> str | None:
    """`text`, and None stays None."""
    return None if value is None else text(value)


def json_text(value: str | None, redaction: Redaction = NOTHING) -> str | None:
    """JSON text that jsonb accepts; what is no JSON is kept as text inside a marker."""
    if value is None:
        return None
    shown, _ = _accepted(value.encode("utf-8", "replace"), redaction)
    return shown or _marker("not JSON", REDACTED if redaction else value)


def rejection_of(event: Delivered) -> str | None:
    """Why a checkpoint does not verify, as everybody sees it, whatever keys there are. What only a holder of keys finds
    is in the log, as CheckpointRejected."""
    if event.rejection is None:
        return None
    record, found = event.record, event.rejection
    assert isinstance(record, CheckpointCreated)
    if record.protection != "none" or found[0] == "unsealed":
        own = deliver(record, event.partition, event.offset, event.timestamp_us).rejection
        if own is None:
            return None
        found = own
    return f"{found[0]}: {found[1]}"


def state_text(
    record: StateRecord, *, rejected: str | None = None, proven: bool = False, redaction: Redaction = NOTHING
) -> tuple[str, bool]:
    """A record's state as jsonb text, and whether fields of it are hidden. One that does not verify is not shown, only
    marked; every checkpoint has its row. Nothing is decrypted.

    `proven`: its bytes were verified on arrival (engine.inspection), so they are canonical JSON, which jsonb accepts;
    otherwise they are verified here.
    """
    if rejected is not None:
        return _marker(rejected), False
    if record.protection == "aes-256-gcm":
        return _sealed(record), False
    if not record.state:
        return _claim(record), False
    return _shown(record.state, record.codec, record.size_bytes, record.digest, record.protection, proven, redaction)


def _sealed(record: StateRecord) -> str:
    sealed: dict[str, Any] = {"$kintsugi": "sealed", "protection": record.protection}
    if not record.state:
        return _dumped({**sealed, "claim": text_or_none(record.claim_uri), "size_bytes": record.size_bytes})
    try:
        number = key_number_of(record.state)
    except StateError as error:
        return _marker(str(error))
    return _dumped({**sealed, "key": number, "sealed": b64encode(record.state).decode()})


def _claim(record: StateRecord) -> str:
    if record.claim_uri is None:
        return _marker("there is no state")
    return _dumped({"$kintsugi": "claim", "uri": text(record.claim_uri), "size_bytes": record.size_bytes})


@lru_cache(maxsize=1)  # a checkpoint's state goes into two tables, one after the other
def _shown(
    state: bytes, codec: str, size_bytes: int, digest: str, protection: str, proven: bool, redaction: Redaction
) -> tuple[str, bool]:
    try:
        if proven and protection == "none" and not redaction:
            return decompress(state, codec=codec, size_bytes=size_bytes).decode(), False
        if protection == "hmac-sha256":
            state = unproven_payload_of(state)
        elif protection != "none":
            return _marker(f"protection {protection!r:.40} is not known"), False
        data = verify_stored(state, codec=codec, size_bytes=size_bytes, digest=digest)
    except StateError as error:
        return _marker(str(error)), False
    shown, hidden = _accepted(data, redaction)
    return shown or _marker("not JSON that Postgres accepts"), hidden


def _accepted(data: bytes, redaction: Redaction) -> tuple[str | None, bool]:
    """The JSON written anew, without numbers, surrogates or U+0000 that jsonb refuses, and whether fields of it are
    hidden; None when it is no JSON."""
    try:
        value: Any = orjson.loads(data)
        value, hidden = _hidden(value, redaction)
        written = orjson.dumps(value)
        if b"\\u0000" in written:
            written = orjson.dumps(_without_nul(value))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return None, False
    return written.decode(), hidden


def _hidden(value: Any, redaction: Redaction) -> tuple[Any, bool]:
    if not redaction:
        return value, False
    value, hidden = redaction.apply(value)
    if isinstance(value, dict) and value.get("$kintsugi") in ("repr", "cut"):  # a text: no path leads into it
        return {**value, **{name: REDACTED for name in ("repr", "text") if name in value}}, True
    return value, hidden


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
    return _dumped(marker)


def _dumped(marker: dict[str, Any]) -> str:
    return orjson.dumps(marker).decode()
