"""The fingerprint that groups equal errors: of the engine, and of a service whose error texts are sealed."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

#: Longest part of a message or stack that a fingerprint looks at, in characters.
_TEXT_MAX = 2000
#: Fingerprints kept: one error is asked for twice, and those of a storm are alike. At most some 10 MB of texts.
_KEPT_MAX = 1024
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+|'[^']{0,200}'|\"[^\"]{0,200}\"")


def fingerprint_of(workflow_type: str, step_id: str, code: str, message: str, stack_trace: str | None) -> str:
    """16 hex digits that are equal for errors alike but for numbers, ids and quoted names."""
    return _of(workflow_type, step_id, code, message[:_TEXT_MAX], (stack_trace or "")[-_TEXT_MAX:])


@lru_cache(maxsize=_KEPT_MAX)
def _of(workflow_type: str, step_id: str, code: str, message: str, stack_trace: str) -> str:
    message = _VARIABLE.sub("#", message)
    last_frame = _VARIABLE.sub("#", stack_trace.rsplit("  File ", 1)[-1])
    text = f"{workflow_type}\n{step_id}\n{code}\n{message}\n{last_frame}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
