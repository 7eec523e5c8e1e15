"""Typed records, one frozen dataclass per .avsc file, and the table from Avro name to class."""

from __future__ import annotations

from . import commands as _commands
from . import coordination as _coordination
from . import events as _events
from .base import Command, Part, Record

EVENT_TYPES: dict[str, type[Record]] = {
    name: value
    for name, value in vars(_events).items()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
}
COMMAND_TYPES: dict[str, type[Command]] = {
    name: value
    for name, value in vars(_commands).items()
    if isinstance(value, type) and issubclass(value, Command) and value is not Command
}
COORDINATION_TYPES: dict[str, type[Record]] = {
    name: value
    for name, value in vars(_coordination).items()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
}
RECORD_TYPES: dict[str, type[Record]] = {**EVENT_TYPES, **COMMAND_TYPES, **COORDINATION_TYPES}

__all__ = ["COMMAND_TYPES", "COORDINATION_TYPES", "EVENT_TYPES", "RECORD_TYPES", "Command", "Part", "Record"]
