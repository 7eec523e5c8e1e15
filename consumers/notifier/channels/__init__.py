"""Ways to reach people. A channel is one file here; `consumers.notifier.settings` makes those that are configured."""

from __future__ import annotations

from typing import Protocol

from schemas.errors import KintsugiError, RetriableError

from ..notice import Notice

#: Every wait of a sender: to connect, to write, to read. A whole HTTP request takes twice as long at most.
IO_TIMEOUT_S = 10.0
#: Of what a channel answered, for people.
ANSWER_CHARS_MAX = 160


class ChannelAwayError(RetriableError):
    """The channel did not take the message; it may later, but not before `retry_after_s`, if it said so."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ChannelRefusedError(KintsugiError):
    """The channel will never take this message."""


class Channel(Protocol):
    """Sends notices. Called by several threads."""

    #: As policies call it.
    name: str
    #: Whether the other side takes messages with one dedup key for one page, so that sending twice is harmless.
    keyed: bool
    #: So many messages a second in the long run, and so many at once.
    rate_per_s: float
    burst: int

    def send(self, notice: Notice) -> str:
        """Deliver; what the channel answered. ChannelAwayError or ChannelRefusedError, which hold no secret."""

    def close(self) -> None:
        """Let go of connections."""
