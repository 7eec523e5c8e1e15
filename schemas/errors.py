"""The error tree.

    KintsugiError
    +-- RetriableError      the same call may succeed later (broker or database away)
    |   +-- ParkingFullError  no more workflows or events may be parked; the partition stops until some are freed
    |   +-- DiskFullError  a disk has no room; what was to be written is written when it has
    +-- PoisonError         this record can never be read or applied; set it aside and go on
    |   +-- DecodeError     not one of our records, or damaged
    |   +-- AdmissionError  readable, but breaks a rule that every record obeys
    +-- FatalError          going on would do harm; stop the process
    |   +-- ConfigError     wrong configuration; names the key
    +-- FencedError         another owner took over this partition; drop it and write nothing
    +-- StateError          a state that cannot be saved or restored

Each class says what a caller may do with it: `retriable`, `poison`, `fatal`.
"""

from __future__ import annotations

from typing import ClassVar


class KintsugiError(Exception):
    """Root of every error raised on purpose. `hint` tells the reader what to do next."""

    retriable: ClassVar[bool] = False
    poison: ClassVar[bool] = False
    fatal: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class RetriableError(KintsugiError):
    """The same call may succeed later."""

    retriable = True


class ParkingFullError(RetriableError):
    """No more workflows or events may be parked. Nothing is dropped: the partition stops until some are freed."""


class DiskFullError(RetriableError):
    """A disk has no room, or a quota leaves none. Nothing is lost: what was to be written is written when there is."""


class PoisonError(KintsugiError):
    """This record can never be read or applied. `reason` is a short word for counters and headers."""

    poison = True

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class DecodeError(PoisonError):
    """The bytes are not one of our records, or are damaged."""


class AdmissionError(PoisonError):
    """The record can be read, but breaks a rule that every record obeys."""


class FatalError(KintsugiError):
    """Going on would do harm; the process stops."""

    fatal = True


class ConfigError(FatalError):
    """Wrong configuration. The message names the key, its value and what is allowed."""


class FencedError(KintsugiError):
    """Another process owns this partition now. Nothing was written; drop the partition."""


class StateError(KintsugiError):
    """A state that cannot be saved or restored. `reason` is a short word: limit, structure, digest, codec, size."""

    def __init__(self, reason: str, message: str, *, path: str = "$", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.path = path
