"""From a state to the record that keeps it: canonical JSON, digest, chain, compression."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._schemas.canonical import canonical_bytes, chain_digest_of, compress, digest_of
from ._schemas.errors import StateError
from .texts import describe, represent

#: The story's `compression` block.
COMPRESS_FROM_BYTES = 1024
#: The story's `critical_steps`; a service that names its steps otherwise gives its own, or declares steps critical.
CRITICAL_STEPS_DEFAULT = frozenset({"code_generation", "build", "test", "deployment"})
EVIDENCE_TEXT_MAX = 100_000
_REASON_MAX = 500


@dataclass(frozen=True, slots=True)
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
    data = canonical(document)
    used, stored = compress(data, codec=codec, min_size_bytes=COMPRESS_FROM_BYTES)
    return Stored(codec=used, size_bytes=len(data), digest=digest_of(data), state=stored)


def canonical(value: Any) -> bytes:
    """`canonical_bytes`; a state that another thread changes meanwhile is a StateError too."""
    try:
        return canonical_bytes(value)
    except RuntimeError as error:
        raise StateError("structure", f"the state was changed while it was being saved: {error}") from error


def store_evidence(document: Mapping[str, Any], *, codec: str = "gzip") -> Stored:
    """As `store`, but a state that is no JSON data is kept as a repr with a marker: evidence needs no validity."""
    try:
        return store(document, codec=codec)
    except Exception as error:
        marker = {
            "$kintsugi": "repr",
            "reason": describe(error, _REASON_MAX),
            "repr": represent(document.get("data"), EVIDENCE_TEXT_MAX),
            **{k: describe(document[k]) for k in ("workflow_id", "step_id", "status") if k in document},
        }
        return store(marker, codec=codec)


def next_link(chain: Chain, digest: str) -> Chain:
    """The chain with one more checkpoint."""
    return Chain(chain.sequence + 1, digest, chain_digest_of(chain.chain_digest, digest))


def type_of(moment: str, *, critical: bool) -> str:
    """The checkpoint's type, by rule: a completed critical step is a critical point."""
    return "critical_point" if moment == "step_complete" and critical else moment


def new_id() -> str:
    """A fresh id."""
    return str(uuid.uuid4())


def now_us() -> int:
    """This machine's clock, microseconds since the epoch: only ever written, never decided by."""
    return time.time_ns() // 1000
