"""From a state to bytes: canonical JSON, digest, chain, compression; and what is kept of a state that is none."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._schemas.canonical import canonical_bytes, chain_digest_of, compress, digest_of
from ._schemas.errors import RetriableError, StateError
from .bounded import Bounded
from .policy import CheckpointPolicy
from .texts import describe, outline

EVIDENCE_TEXT_MAX = 100_000
#: How long an error waits for objects in its state to say what they are.
EVIDENCE_TIMEOUT_S = 2.0
_REASON_MAX = 500
_bounded = Bounded()


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a workflow's checkpoints stand: the number and digests of the last one."""

    sequence: int = 0
    digest: str | None = None
    chain_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A state as it is kept."""

    codec: str
    size_bytes: int
    digest: str
    state: bytes

    def fields(self) -> dict[str, Any]:
        """The record fields that tell of it."""
        return {"codec": self.codec, "size_bytes": self.size_bytes, "digest": self.digest}


def canonical(value: Any) -> bytes:
    """`canonical_bytes`; a state that another thread changes meanwhile is a StateError too."""
    try:
        return canonical_bytes(value)
    except RuntimeError as error:
        raise StateError("structure", f"the state was changed while it was being saved: {error}") from error


def evidence(document: Mapping[str, Any]) -> bytes:
    """As `canonical`, but a state that is no JSON data is kept as a repr with a marker: evidence needs no validity.

    Never raises, and ends in bounded time whatever the state holds.
    """
    try:
        return canonical(document)
    except Exception as error:
        marker = {
            "$kintsugi": "repr",
            "reason": describe(error, _REASON_MAX),
            "repr": _outline(document.get("data")),
            **{k: describe(document[k]) for k in ("workflow_id", "step_id", "status") if k in document},
        }
        return canonical(marker)


def _outline(data: object) -> str:
    try:
        return _bounded.call("repr", lambda: outline(data, EVIDENCE_TEXT_MAX), EVIDENCE_TIMEOUT_S)
    except RetriableError as error:
        return f"<{type(data).__name__}: {error}>"
    except BaseException as error:  # an object may raise what it likes
        return f"<{type(data).__name__}: repr() failed with {type(error).__name__}>"


def pack(data: bytes, policy: CheckpointPolicy) -> Stored:
    """Digested, and compressed as the policy says."""
    codec, stored = compress(data, codec=policy.codec, min_size_bytes=policy.compress_from_bytes)
    return Stored(codec=codec, size_bytes=len(data), digest=digest_of(data), state=stored)


def next_link(chain: Chain, digest: str) -> Chain:
    """The chain with one more checkpoint."""
    return Chain(chain.sequence + 1, digest, chain_digest_of(chain.chain_digest, digest))


def new_id() -> str:
    """A fresh id."""
    return str(uuid.uuid4())


def now_us() -> int:
    """This machine's clock, microseconds since the epoch: only ever written, never decided by."""
    return time.time_ns() // 1000
