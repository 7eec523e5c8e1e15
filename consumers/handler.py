"""What a role gives to the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from confluent_kafka import Message

from schemas.errors import KintsugiError

from .deadline import Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """A partition as it is when it is taken over: first and next offset of the log, and the group's position."""

    partition: int
    low: int
    high: int
    committed: int | None


class Handler(Protocol):
    """A role. All methods run on the loop's thread, between polls.

    `assigned`, `handle` and `flush` may report a RetriableError (the partition is paused and taken up again later,
    beginning with `assigned`), a FencedError (the partition is dropped) or a FatalError (the process stops).
    """

    def assigned(self, log: LogRange) -> int | None:
        """Take a partition, or take it up again, dropping what was kept of it. Returns the offset to start at;
        None for the group's position, else the beginning."""

    def handle(self, partition: int, messages: Sequence[Message]) -> None:
        """Process records in their order. What it leaves undone is done by the end of the next `flush`."""

    def flush(self) -> Mapping[int, KintsugiError]:
        """Make everything handled durable; what did not succeed, by partition."""

    def committed(self, partition: int, next_offset: int) -> None:
        """The batch up to `next_offset` is durable."""

    def tick(self, now_us: int, caught_up: Callable[[int], bool]) -> int | None:
        """Do what is due at broker time `now_us`; a `flush` follows. Returns when to come again; None for never.
        `caught_up` says whether all records now in a partition's log have been handled."""

    def revoked(self, partitions: Sequence[int], deadline: Deadline) -> None:
        """Partitions go to another member, or the process stops: last chance to save, all is flushed."""

    def lost(self, partitions: Sequence[int]) -> None:
        """Partitions belong to another member already: forget them, write nothing."""


@runtime_checkable
class OwnPosition(Protocol):
    """What a handler has besides when it keeps records back beyond `flush`, and its own store says where it stands.

    The loop then commits only what is stored, as a bookmark for those who watch the lag, and does not take offence
    when the group's position is outside the log.
    """

    def stored(self, partition: int) -> int:
        """Everything before this offset is stored. Asked after `flush` and after `revoked`."""


@runtime_checkable
class Pipelined(Protocol):
    """What a handler has besides when the next records may be handled while its effects are still on their way.

    `handle` may then only take records in, to be handled by `work` in an order of the handler's own. The loop waits in
    `flush` only when there is nothing else to do, and commits what is `durable`; how much may be on its way is the
    handler's to bound.
    """

    @property
    def on_its_way(self) -> int:
        """Effects that are not durable yet."""

    @property
    def backlog(self) -> int:
        """Records taken in that `work` has not handled yet."""

    @property
    def full(self) -> bool:
        """Whether no more may be taken in before `work` has been done."""

    def work(self) -> Mapping[int, KintsugiError]:
        """Handle some of what was taken in, or nothing while too much is on its way; what failed, by partition."""

    def poll(self) -> Mapping[int, KintsugiError]:
        """As `flush`, without waiting."""

    def durable(self, partition: int) -> int | None:
        """What was handled before this offset is durable; None when that is no more than when last asked."""
