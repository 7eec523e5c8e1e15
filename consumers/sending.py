"""What the recovery role sends: facts and commands that follow from records, and records set aside."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from engine.effects import Append, Coordinate, Effect
from schemas.codec import Codec
from schemas.headers import headers_for
from schemas.records import Record
from schemas.topics import COMMANDS, COORDINATION, EVENTS

from . import telemetry
from .outbox import Outbox

#: Finding a counter by its labels costs more than a fold.
_count = cache(telemetry.EFFECTS.labels)


class Sending:
    """Hands records to the producer, in the order of the effects."""

    def __init__(self, codec: Codec, outbox: Outbox) -> None:
        self._codec = codec
        self._outbox = outbox
        self._log = telemetry.log()

    def act(self, effects: Iterable[Effect], partition: int, trace: str | None) -> None:
        """Carry out what the engine decided on a record of `partition`; `trace` is the record's trace."""
        for effect in effects:
            if isinstance(effect, Append):
                self.append(effect.record, partition, trace)
                continue
            if isinstance(effect, Coordinate):
                self._tell_coordinator(effect.record, partition, trace)
                continue
            command = effect.command
            _count(type(command).__name__).inc()
            headers = headers_for(command, parent=trace)
            self._outbox.send(
                COMMANDS, command.workflow_id.encode(), self._codec.encode(command), headers, cause=partition
            )
            self._log.info(
                "command",
                command=type(command).__name__,
                workflow_id=command.workflow_id,
                error_id=command.error_id,
                command_id=command.command_id,
                attempt=command.attempt_number,
                trace_id=headers[0][1][3:35].decode(),
            )

    def append(self, record: Record, partition: int, trace: str | None) -> None:
        """To the partition the cause came from, whatever partitioner the service's client uses."""
        _count(type(record).__name__).inc()
        self._outbox.send(
            EVENTS,
            record.workflow_id.encode(),
            self._codec.encode(record),
            headers_for(record, parent=trace),
            cause=partition,
            partition=partition,
        )

    def _tell_coordinator(self, record: Record, partition: int, trace: str | None) -> None:
        _count(type(record).__name__).inc()
        headers = headers_for(record, parent=trace)
        self._outbox.send(
            COORDINATION, record.workflow_id.encode(), self._codec.encode(record), headers, cause=partition
        )
