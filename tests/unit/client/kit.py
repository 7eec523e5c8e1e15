"""A client whose outbox keeps the records instead of sending them. Where Kafka is claimed, the stack tests are."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from kintsugi_client import BufferFullError, Client, Undelivered
from kintsugi_client._schemas.codec import Codec
from kintsugi_client._schemas.records import Command, Record
from kintsugi_client.errors import ClosedError
from kintsugi_client.inbox import Received
from kintsugi_client.outbox import Delivery

R = TypeVar("R", bound=Record)
WAIT_S = 20.0


class Written:
    """What a delivery report says of a record."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_700_000_000_000


class KeptOutbox:
    """Encodes every record, as the real one does, and keeps it. `full_for` names the records it has no room for."""

    def __init__(self, *_: object) -> None:
        self.records: list[Record] = []
        self.full_for: set[str] = set()
        self.confirms = True
        self._codec = Codec()
        self._lock = threading.Lock()
        self._closed = False

    def send(self, record: Record, *, parent: str | None = None) -> Delivery:
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed")
            self._codec.encode(record)
            if type(record).__name__ in self.full_for:
                raise BufferFullError("the buffer is full")
            self.records.append(record)
            delivery = Delivery()
            if self.confirms:
                delivery.settle(None, Written(len(self.records)))  # type: ignore[arg-type]
            return delivery

    def close(self, timeout_s: float) -> Undelivered:
        self._closed = True
        return Undelivered(waiting=0, given_up=0, refused=0, by_type={})


class Service:
    """A client, and what it has written."""

    def __init__(self, client: Client, outbox: KeptOutbox) -> None:
        self.client = client
        self.outbox = outbox

    @property
    def names(self) -> list[str]:
        """Types of the records, in order."""
        return [type(r).__name__ for r in list(self.outbox.records)]

    def of(self, kind: type[R]) -> list[R]:
        """Records of one type."""
        return [r for r in list(self.outbox.records) if isinstance(r, kind)]

    def command(self, kind: type[Command], workflow_id: str, **fields: Any) -> Received:
        """A command as the listener hands it on once it is accepted."""
        known = kind.__dataclass_fields__
        name = fields.pop("workflow_type", "development")
        command = kind(
            event_id=str(uuid.uuid4()),
            workflow_id=workflow_id,
            workflow_type=name,
            occurred_at=1,
            producer="test",
            command_id=str(uuid.uuid4()),
            expires_at=2**50,
            reason="because",
            actor=fields.pop("actor", "engine"),
            **{k: v for k, v in fields.items() if k in known},
        )
        return Received(command=command, trace=None, place=(0, 0), timestamp_ms=1)

    def carry_out(self, kind: type[Command], workflow_id: str, **fields: Any) -> Received:
        """Carry a command out."""
        received = self.command(kind, workflow_id, **fields)
        self.client._commands.carry_out(received)
        return received

    def answers(self, received: Received) -> list[tuple[str, str | None]]:
        """Answers to a command so far."""
        from kintsugi_client._schemas.records.events import CommandAcknowledged

        wanted = received.command.command_id
        return [(a.status, a.detail) for a in self.of(CommandAcknowledged) if a.command_id == wanted]

    def answer(self, received: Received) -> tuple[str, str | None]:
        """The one answer to a command."""
        found: list[tuple[str, str | None]] = wait_for("an answer", lambda: self.answers(received))
        (one,) = found
        return one

    def reason(self, received: Received) -> str | None:
        """The short reason in the answer to a command."""
        from kintsugi_client._schemas.records.events import CommandAcknowledged

        wanted = received.command.command_id
        (one,) = [a.reason for a in self.of(CommandAcknowledged) if a.command_id == wanted]
        return one


def wait_for(what: str, check: Callable[[], Any]) -> Any:
    """The first true answer of `check`."""
    end = time.monotonic() + WAIT_S
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.005)
