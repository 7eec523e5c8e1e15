"""What kind of error it is, by the story's rules, and the fingerprint that groups equal errors."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from schemas.records.events import WorkflowErrorOccurred

INFINITE_LOOP = "infinite_loop"
RESOURCE_EXHAUSTION = "resource_exhaustion"
TIMEOUT = "timeout"
STATE_CORRUPTION = "state_corruption"
DEADLOCK = "deadlock"
DEPENDENCY_FAILURE = "dependency_failure"
COORDINATION_FAILURE = "coordination_failure"
UNKNOWN = "unknown_error"

ERROR_TYPES = (
    INFINITE_LOOP,
    RESOURCE_EXHAUSTION,
    TIMEOUT,
    STATE_CORRUPTION,
    DEADLOCK,
    DEPENDENCY_FAILURE,
    COORDINATION_FAILURE,
    UNKNOWN,
)


@dataclass(frozen=True, slots=True)
class Classification:
    """Type, severity, whether running again can help, and the rule that said so."""

    error_type: str
    severity: str
    retryable: bool
    rule: str


_RESOURCE_CODES = ("OUT_OF_MEMORY", "CPU_LIMIT_EXCEEDED", "API_RATE_LIMIT", "DISK_FULL", "CONNECTION_LIMIT")
_BY_CODE: dict[str, Classification] = {
    **{c: Classification(RESOURCE_EXHAUSTION, "high", True, f"code {c}") for c in _RESOURCE_CODES},
    **{
        c: Classification(TIMEOUT, "medium", True, f"code {c}")
        for c in ("TIMEOUT", "HEARTBEAT_TIMEOUT", "WORKFLOW_TIMEOUT", "STALLED", "TimeoutError")
    },
    "STATE_CORRUPTION": Classification(STATE_CORRUPTION, "critical", False, "code STATE_CORRUPTION"),
    "INFINITE_LOOP": Classification(INFINITE_LOOP, "high", False, "code INFINITE_LOOP"),
    "DEADLOCK": Classification(DEADLOCK, "high", True, "code DEADLOCK"),
    "DEPENDENCY_FAILURE": Classification(DEPENDENCY_FAILURE, "medium", True, "code DEPENDENCY_FAILURE"),
    "COORDINATION_FAILURE": Classification(COORDINATION_FAILURE, "medium", True, "code COORDINATION_FAILURE"),
    "MemoryError": Classification(RESOURCE_EXHAUSTION, "high", True, "exception MemoryError"),
}
_DEFAULT = Classification(UNKNOWN, "medium", True, "no rule matches")


def classify(error: WorkflowErrorOccurred) -> Classification:
    """The story's classification, by error code; everything else is unknown, and never dropped."""
    return _BY_CODE.get(error.error_code, _DEFAULT)


#: Longest part of a message or stack that a fingerprint looks at, in characters.
_TEXT_MAX = 2000
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+|'[^']{0,200}'|\"[^\"]{0,200}\"")


def fingerprint(error: WorkflowErrorOccurred) -> str:
    """16 hex digits that are equal for errors alike but for numbers, ids and quoted names."""
    message = _VARIABLE.sub("#", error.error_message[:_TEXT_MAX])
    last_frame = _VARIABLE.sub("#", (error.stack_trace or "")[-_TEXT_MAX:].rsplit("  File ", 1)[-1])
    text = f"{error.workflow_type}\n{error.step_id}\n{error.error_code}\n{message}\n{last_frame}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
