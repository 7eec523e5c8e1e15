"""The fingerprint that groups equal errors: of the engine, and of a service whose error texts are sealed."""

from __future__ import annotations

import hashlib
import re

#: Longest part of a message or stack that a fingerprint looks at, in characters.
_TEXT_MAX = 2000
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+|'[^']{0,200}'|\"[^\"]{0,200}\"")


def fingerprint_of(workflow_type: str, step_id: str, code: str, message: str, stack_trace: str | None) -> str:
    """16 hex digits that are equal for errors alike but for numbers, ids and quoted names."""
    message = _VARIABLE.sub("#", message[:_TEXT_MAX])
    last_frame = _VARIABLE.sub("#", (stack_trace or "")[-_TEXT_MAX:].rsplit("  File ", 1)[-1])
    text = f"{workflow_type}\n{step_id}\n{code}\n{message}\n{last_frame}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
