"""Exponential backoff with full jitter, drawn from an id instead of a random generator.

The same attempt waits the same time in every process and every replay; different attempts spread as random ones do
("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policy.model import Backoff

#: 2^40 ms is beyond every maximum; larger exponents would only make large numbers.
_EXPONENT_MAX = 40


def jittered_ms(backoff: Backoff, tries: int, attempt_id: str) -> int:
    """Wait before try `tries` (from 1): uniform in 0..min(max, base * 2^(tries-1)), in milliseconds."""
    ceiling = min(backoff.max_ms, backoff.base_ms << min(max(tries, 1) - 1, _EXPONENT_MAX))
    draw = int.from_bytes(hashlib.sha256(attempt_id.encode()).digest()[:8], "big")
    return draw * (ceiling + 1) >> 64
