"""What may stand in a line of the log: fields named here, of plain types, bounded. Everything else is left out.

Whoever logs an object by mistake, or an error that quotes one, logs no state, message, stack trace, context or key of a
workflow. Errors raised on purpose say what happened in words of ours. Any other error may quote what it stumbled over:
of it the class and the places in the code are logged.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any

from schemas.errors import KintsugiError, PoisonError, StateError

#: Fields of lines. A test holds them against what the roles log.
FIELDS = frozenset(
    (
        *(
            "event",
            "level",
            "timestamp",
            "role",
            "error",
            "at",
            "hint",
            "reason",
            "warning",
            "metrics",
            "group",
            "logger",
        ),
        *(
            "partition",
            "partitions",
            "offset",
            "start",
            "effects_from",
            "states",
            "first",
            "next",
            "seconds",
            "timeout_s",
        ),
        *("workflow_id", "checkpoint_id", "error_id", "command_id", "trace_id", "command", "attempt", "checkpoints"),
        *("policy", "sequence"),
        *("facility", "text", "fatal", "path", "place", "what", "job", "interval_s", "archive_ends"),
        *("incident_id", "channel", "kind", "tries"),
    )
)
NOT_LOGGED = "[not logged]"
TEXT_CHARS_MAX = 500
#: Members of a list or mapping: a process owns no more partitions.
MEMBERS_MAX = 100
#: Places in the code, the innermost last.
PLACES_MAX = 6


def only_loggable(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the line with what may be logged."""
    shown: dict[str, Any] = {}
    for name, value in line.items():
        if name not in FIELDS:
            shown[_text(name)] = NOT_LOGGED
        elif isinstance(value, BaseException):
            shown[name] = said(value)
            if not isinstance(value, KintsugiError):
                shown["at"] = places(value.__traceback__)
        else:
            shown[name] = _plain(value)
    return shown


def said(error: BaseException) -> str:
    """An error in words that quote nothing: what we wrote ourselves, except about a record or a state."""
    name = type(error).__name__
    if isinstance(error, PoisonError | StateError):
        return f"{name}: {error.reason}"
    return f"{name}: {error}"[:TEXT_CHARS_MAX] if isinstance(error, KintsugiError) else name


def places(found: TracebackType | None) -> list[str]:
    """Where an error came from: modules and lines."""
    frames = [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in traceback.walk_tb(found)]
    return frames[-PLACES_MAX:]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {_text(str(k)): _scalar(v) for k, v in list(value.items())[:MEMBERS_MAX]}
    if isinstance(value, list | tuple | set | frozenset):
        return [_scalar(item) for item in list(value)[:MEMBERS_MAX]]
    return NOT_LOGGED


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    return value if value is None or isinstance(value, bool | int | float) else NOT_LOGGED


def _text(value: str) -> str:
    return value[:TEXT_CHARS_MAX]


class Foreign(logging.Handler):
    """Lines of libraries, through Python's logging: which one, how bad and where it was written. Not what it says:
    a library's texts quote what it was given."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of ours about theirs."""
        self._write(record.name, f"{record.module}:{record.lineno}")


def take_over(line: Callable[[str, str], None], defect: Callable[[BaseException], None]) -> None:
    """Let what would be written to stderr by itself become lines: what libraries say, and errors that nobody caught."""
    root = logging.getLogger()
    root.handlers = [Foreign(line)]
    logging.captureWarnings(True)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            defect(error.with_traceback(trace))

    def in_thread(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None:
            uncaught(found.exc_type, found.exc_value, found.exc_traceback)

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        if found.exc_value is not None:
            uncaught(found.exc_type, found.exc_value, found.exc_traceback)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
