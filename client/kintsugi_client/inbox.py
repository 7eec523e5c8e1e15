"""From a Kafka message to a command of this service, or to nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from confluent_kafka import Message

from ._schemas.admission import check
from ._schemas.codec import Codec, Unknown
from ._schemas.errors import PoisonError, RetriableError
from ._schemas.headers import trace_of
from ._schemas.ids import uuid_bytes
from ._schemas.records import Command
from .ledger import Place

_RETRY_S = 0.5

log = logging.getLogger("kintsugi_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignCommand(Command):
    """A command of a newer release: its common fields can be read, and it can be answered, but not carried out."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A command and where it stands in the topic."""

    command: Command
    trace: str | None
    place: Place
    timestamp_ms: int


class Inbox:
    """Reads commands. One thread each, because of its codec."""

    def __init__(self, codec: Codec, wanted: Callable[[str], bool], *, complains: bool = True) -> None:
        self._codec = codec
        self._wanted = wanted
        self._level = logging.WARNING if complains else logging.DEBUG
        self.unreadable = 0

    def read(self, message: Message, stopping: threading.Event) -> Received | None:
        """The command in a message; None when it is unreadable, or no command to this service's workflows.

        Waits while the schema registry is away; None when `stopping` ends the wait.
        """
        while not stopping.is_set():
            try:
                command = self._decode(message)
                break
            except PoisonError as error:
                self.unreadable += 1
                where = f"{message.partition()}@{message.offset()}"
                log.log(self._level, "unreadable command at %s: %s", where, error)
                return None
            except RetriableError as error:
                log.log(self._level, "commands wait: %s", error)
                stopping.wait(_RETRY_S)
        else:
            return None
        if command is None or not self._wanted(command.workflow_type):
            return None
        return Received(
            command=command,
            trace=trace_of(message.headers()),  # type: ignore[arg-type]
            place=(message.partition() or 0, message.offset() or 0),
            timestamp_ms=message.timestamp()[1],
        )

    def _decode(self, message: Message) -> Command | None:
        record = self._codec.decode(message.value())
        if isinstance(record, Unknown):
            return _foreign(record)
        if not isinstance(record, Command):
            return None
        check(record)
        return record


def _foreign(record: Unknown) -> Command | None:
    value: dict[str, Any] = {f.name: record.value.get(f.name) for f in fields(Command)}
    ids = (value["workflow_id"], value["event_id"], value["command_id"])
    if not all(_is_uuid(i) for i in ids) or not (value["error_id"] is None or _is_uuid(value["error_id"])):
        return None  # a record, but no command
    if not isinstance(value["expires_at"], int) or not isinstance(value["workflow_type"], str):
        return None
    value["attempt_number"] = int(value["attempt_number"] or 0)
    return ForeignCommand(name=record.name, **value)


def _is_uuid(text: object) -> bool:
    try:
        return isinstance(text, str) and len(uuid_bytes(text)) == 16
    except ValueError:
        return False
