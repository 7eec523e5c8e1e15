"""Records of `avsc/commands`. Written by `python -m schemas.generate`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Command


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelStep(Command):
    """Stop a running step whose branch is given up."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str
    step_run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWorkflow(Command):
    """Stop for good."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompensateStep(Command):
    """Undo a completed step."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseWorkflow(Command):
    """Stop at the next step boundary."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileStep(Command):
    """Find out whether a run took effect."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str
    step_run_id: str | None = None
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartWorkflow(Command):
    """Start again with clean state."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    epoch: int = 0
    last_sequence: int = 0
    started_partition: int | None = None
    started_offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeFromCheckpoint(Command):
    """Restore a checkpoint and go on from it."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    epoch: int = 0
    last_sequence: int = 0
    step_id: str | None = None
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None
    edit: str | None = None
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeWorkflow(Command):
    """Go on after a pause."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStep(Command):
    """Run a step again."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    epoch: int = 0
    last_sequence: int = 0
    step_id: str
    timeout_ms: int | None = None
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None
    edit: str | None = None
    approved: bool = False
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackTo(Command):
    """Undo completed steps back to a checkpoint."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    epoch: int = 0
    last_sequence: int = 0
    step_id: str | None = None
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAlternativePath(Command):
    """Run another step instead."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    epoch: int = 0
    last_sequence: int = 0
    step_id: str
    alternative_step_id: str
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResources(Command):
    """Give a workflow more of a resource."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    step_id: str | None = None
    resource: str
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipStep(Command):
    """Leave a step out, with the result a human supplies."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    command_id: str
    error_id: str | None = None
    attempt_number: int = 0
    expires_at: int
    reason: str
    actor: str
    epoch: int = 0
    last_sequence: int = 0
    step_id: str
    result: str | None = None
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    started_partition: int | None = None
    started_offset: int | None = None
    sealed: bytes | None = None
    dependants: tuple[str, ...] = ()
