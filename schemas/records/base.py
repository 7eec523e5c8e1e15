"""What all records have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A record nested in another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A fact or a command. `NAME` is its Avro name; the fields are those of the .avsc file."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Record):
    """A command to a service."""

    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
