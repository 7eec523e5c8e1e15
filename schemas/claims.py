"""Claim checks: stored bytes too large for a record lie in object storage, under the SHA-256 of what they are.

The record names them by `claim:sha256:<hex>`. They are written and confirmed before it, so that whoever reads the
record finds them; bytes that no record names are collected by the keeper after a grace period.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from .canonical import STATE_SIZE_BYTES_MAX
from .errors import StateError
from .objects import Objects, ObjectStoreError, ObjectTooLargeError
from .records.events import CheckpointCreated

FOLDER = "claims"
#: Sealing adds some 50 bytes to what may be a state of full size.
CLAIM_SIZE_BYTES_MAX = STATE_SIZE_BYTES_MAX + 1024
#: An object that was there before is written again when it is older: the keeper must not take for an orphan what a
#: record is about to name. Its grace period is longer than this.
CLAIM_RENEWED_AFTER = timedelta(hours=1)
_URI = re.compile("claim:sha256:(?P<digest>[0-9a-f]{64})")


def uri_of(stored: bytes) -> str:
    """The name of these bytes."""
    return f"claim:sha256:{hashlib.sha256(stored).hexdigest()}"


def path_of(uri: str) -> str:
    """Where the bytes that a record names lie. StateError "claim" when it names none."""
    digest = _digest_of(uri)
    return f"{FOLDER}/{digest[:2]}/{digest}"


def put(objects: Objects, stored: bytes) -> str:
    """Keep these bytes; returns their name once the store has confirmed them. ObjectStoreError when it has not."""
    uri = uri_of(stored)
    path = path_of(uri)
    if objects.put_new(path, stored):
        return uri
    found = objects.info(path)
    sound = found is not None and found.size_bytes == len(stored)
    if not sound or found is None or datetime.now(UTC) - found.modified_at > CLAIM_RENEWED_AFTER:
        objects.put(path, stored)
        found = objects.info(path)
        if found is None or found.size_bytes != len(stored):
            raise ObjectStoreError(f"object {path} is not what was written", hint="kintsugi doctor")
    return uri


def get(objects: Objects, uri: str, *, size_bytes_max: int = CLAIM_SIZE_BYTES_MAX) -> bytes:
    """The bytes that a record names, proven to be those.

    StateError "claim_missing" when they are not there, "claim" when they are others or the name is none;
    ObjectStoreError when the store is away.
    """
    path = path_of(uri)
    try:
        stored = objects.get(path, size_bytes_max=size_bytes_max)
    except ObjectTooLargeError as error:
        raise StateError("claim", str(error)) from None
    if stored is None:
        raise StateError("claim_missing", f"object {path} is not in the object store")
    if hashlib.sha256(stored).hexdigest() != _digest_of(uri):
        raise StateError("claim", f"object {path} is damaged: its {len(stored)} bytes are not those that its name says")
    return stored


def stored_of(record: CheckpointCreated, fetch: Callable[[str], bytes]) -> bytes:
    """A checkpoint's stored bytes: the record's own, else what `fetch` gives for the name it holds.

    StateError "structure" for a record that holds both or neither; else whatever `fetch` raises.
    """
    if record.claim_uri is None:
        if record.state is None:
            raise StateError("structure", "it holds neither a state nor a claim, and must hold one of both")
        return record.state
    if record.state is not None:
        raise StateError("structure", "it holds both a state and a claim, and must hold one of both")
    return fetch(record.claim_uri)


def _digest_of(uri: str) -> str:
    match = _URI.fullmatch(uri)
    if match is None:
        raise StateError("claim", f"{uri!r:.120} names no stored bytes")
    return match["digest"]
