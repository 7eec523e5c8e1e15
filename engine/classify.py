"""What kind of error it is, by its code."""

from __future__ import annotations

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
#: Which resource an error says ran out.
_RESOURCES = {
    "OUT_OF_MEMORY": "memory",
    "MemoryError": "memory",
    "CPU_LIMIT_EXCEEDED": "cpu",
    "API_RATE_LIMIT": "api_calls",
    "DISK_FULL": "disk",
    "CONNECTION_LIMIT": "connections",
}
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


def resource_of(error_code: str) -> str | None:
    """The resource that ran out; None when the code names none."""
    return _RESOURCES.get(error_code)
