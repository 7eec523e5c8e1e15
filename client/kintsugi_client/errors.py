"""What a service may see, beside the tree in `_schemas.errors`."""

from __future__ import annotations

from ._schemas.errors import KintsugiError, RetriableError


class BufferFullError(RetriableError):
    """Kafka is away and the buffer is full: the record was refused, nothing was dropped."""


class NotDeliveredError(RetriableError):
    """The broker did not confirm the record in time, or refused it. One that waits may still arrive."""


class ClosedError(KintsugiError):
    """The client is closed, or closing: no step begins, and nothing more is recorded."""


class RestoreError(KintsugiError):
    """A checkpoint cannot be restored. `corrupt` when its bytes are not what was saved."""

    def __init__(self, message: str, *, corrupt: bool = False) -> None:
        super().__init__(message)
        self.corrupt = corrupt


class SupersededError(KintsugiError):
    """This run was replaced by a command; what it still does is not recorded. Let it end."""


class PausedError(KintsugiError):
    """The workflow was paused; this run of it ends here, between two steps."""
