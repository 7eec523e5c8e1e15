"""Records of `avsc/coordination`. Written by `python -m schemas.generate`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinationTimerFired(Record):
    """A moment that the coordinator was waiting for has passed."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    kind: str
    subject_id: str
    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEnded(Record):
    """An error is open no longer."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    error_id: str
    fingerprint: str
    dependency: str | None = None
    outcome: str
    strategy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureSeen(Record):
    """An error opened, came again, or a repair of it failed."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    error_id: str
    step_id: str
    error_type: str
    severity: str
    fingerprint: str
    dependency: str | None = None
    attempts: int
    strategy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentNoted(Record):
    """An operator did something with an incident. Its id is the record's workflow_id."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    incident_id: str
    action: str
    owner: str | None = None
    note: str | None = None
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionSeen(Record):
    """A human is asked, has claimed, or has answered."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    intervention_id: str
    error_id: str | None = None
    step_id: str
    state: str
    trigger: str
    error_type: str
    severity: str
    fingerprint: str
    dependency: str | None = None
    channels: tuple[str, ...]
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAsked(Record):
    """A step asks for a resource that workflows share."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    step_id: str
    resource_id: str
    lease_id: str
    amount: int = 1
    priority: int = 0
    wait_ms: int | None = None
    work: int = 0
    began_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReturned(Record):
    """A lease, or the wish for one, ended."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    resource_id: str
    lease_id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairWaiting(Record):
    """A repair is held by a breaker."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    error_id: str
    attempt_id: str
    breaker: str
    fingerprint: str
    dependency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitSeen(Record):
    """A workflow waits for another, or waits no longer."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    wait_id: str
    step_id: str
    awaited_id: str | None = None
    work: int = 0
    began_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowEnded(Record):
    """A workflow ended: nothing of it is held or waited for any more."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    partition: int
    status: str
