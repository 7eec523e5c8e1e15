"""From a state to the record that keeps it: canonical JSON, digest, chain, compression."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._schemas.canonical import STATE_SIZE_BYTES_MAX, canonical_bytes, chain_digest_of, compress, digest_of
from ._schemas.errors import StateError

#: The story's `compression` block.
COMPRESS_FROM_BYTES = 1024
EVIDENCE_TEXT_MAX = 100_000
_CRITICAL_STEPS = frozenset({"code_generation", "build", "test", "deployment"})


@dataclass(slots=True)
class Chain:
    """Where a workflow's checkpoints stand: the number and digests of the last one."""

    sequence: int = 0
    digest: str | None = None
    chain_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A state as it is written into a record."""

    codec: str
    size_bytes: int
    digest: str
    state: bytes

    def fields(self) -> dict[str, Any]:
        """The record fields of a state."""
        return {"codec": self.codec, "size_bytes": self.size_bytes, "digest": self.digest, "state": self.state}


def store(document: Mapping[str, Any], *, codec: str = "gzip") -> Stored:
    """Canonical, digested, compressed. StateError names the path that is no JSON data, or the limit."""
    data = canonical_bytes(document)
    used, stored = compress(data, codec=codec, min_size_bytes=COMPRESS_FROM_BYTES)
    return Stored(codec=used, size_bytes=len(data), digest=digest_of(data), state=stored)


def store_evidence(document: Mapping[str, Any], *, codec: str = "gzip") -> Stored:
    """As `store`, but a state that is no JSON data is kept as a repr with a marker: evidence needs no validity."""
    try:
        return store(document, codec=codec)
    except (StateError, RecursionError) as error:
        text = _repr(document.get("data"))
        return store(
            {"$kintsugi": "repr", "reason": str(error)[:500], "repr": text, **_identity(document)}, codec=codec
        )


def _identity(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: document[k] for k in ("workflow_id", "step_id", "status") if k in document}


def _repr(value: object) -> str:
    try:
        text = repr(value)[:EVIDENCE_TEXT_MAX]
    except Exception as error:  # a __repr__ of the service's own may do anything
        text = f"<repr failed: {type(error).__name__}>"
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def next_link(chain: Chain, digest: str) -> Chain:
    """The chain with one more checkpoint."""
    return Chain(chain.sequence + 1, digest, chain_digest_of(chain.chain_digest, digest))


def type_of(step_id: str, moment: str, *, critical: bool) -> str:
    """The checkpoint's type, by rule: a completed critical step is a critical point."""
    if moment == "step_complete" and (critical or step_id in _CRITICAL_STEPS):
        return "critical_point"
    return moment


def json_text(value: Any) -> str | None:
    """JSON for a text field; what is no JSON data is written as its repr. None stays None."""
    if value is None:
        return None
    return json.dumps(value, default=_repr, allow_nan=False) if _finite(value) else json.dumps({"repr": _repr(value)})


def _finite(value: Any) -> bool:
    try:
        json.dumps(value, default=_repr, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def new_id() -> str:
    """A fresh id."""
    return str(uuid.uuid4())


def now_us() -> int:
    """This machine's clock, microseconds since the epoch: only ever written into `occurred_at`."""
    return time.time_ns() // 1000


__all__ = [
    "STATE_SIZE_BYTES_MAX",
    "Chain",
    "Stored",
    "json_text",
    "new_id",
    "next_link",
    "now_us",
    "store",
    "store_evidence",
    "type_of",
]
