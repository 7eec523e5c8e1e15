"""Records of `avsc/events`. Written by `python -m schemas.generate`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Part, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged(Record):
    """A breaker opened or closed, told to this partition."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    breaker: str
    kind: str
    state: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCreated(Record):
    """State of a workflow, saved by its service."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    checkpoint_id: str
    step_id: str
    checkpoint_type: str
    sequence: int
    epoch: int = 0
    state_version: str
    codec: str
    protection: str = "none"
    size_bytes: int
    digest: str
    parent_digest: str | None = None
    chain_digest: str
    status: str
    state: bytes | None = None
    claim_uri: str | None = None
    evidence: bool = False
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRejected(Record):
    """A checkpoint did not verify; it is never restored from."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    checkpoint_id: str
    step_id: str
    reason: str
    detail: str
    detected_by: str = "arrival"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsExpired(Record):
    """Checkpoints beyond their retention: no longer restored from, and gone from the tables."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    checkpoint_ids: tuple[str, ...]
    event_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAcknowledged(Record):
    """A service's answer to a command."""

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
    status: str
    step_id: str | None = None
    detail: str | None = None
    duplicate: bool = False
    reason: str | None = None
    sealed: bytes | None = None
    result: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugSessionFinished(Record):
    """The end of a debugging session."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    session_id: str
    status: str
    results: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugSessionStarted(Record):
    """Somebody looks into a workflow."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    session_id: str
    session_type: str
    config: str | None = None
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DependantsHeld(Record):
    """Steps that depend on a failed one wait for its repair."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    step_id: str
    dependants: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DependantsReleased(Record):
    """Steps that were held wait no longer."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    step_id: str
    dependants: tuple[str, ...]
    outcome: str
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorClassified(Record):
    """What kind of error it is."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    root_error_id: str
    error_type: str
    severity: str
    retryable: bool
    fingerprint: str
    rule: str
    disposition: str = "opened"


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentChanged(Record):
    """An incident, as it stands now. Its id is the record's workflow_id."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    incident_id: str
    revision: int
    key: str
    kind: str
    state: str
    page: bool = False
    severity: str
    title: str
    fingerprint: str | None = None
    dependency: str | None = None
    error_type: str
    first_seen_at: int
    last_seen_at: int
    error_count: int
    affected_count: int
    interventions: int = 0
    samples: tuple[str, ...]
    channels: tuple[str, ...]
    owner: str | None = None
    note: str | None = None
    actor: str | None = None
    reason: str
    tried: str = "[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionClaimed(Record):
    """Somebody looks after an intervention."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    intervention_id: str
    actor: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionPointReached(Record):
    """The workflow stands before a step that a human must let it pass."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    reason: str | None = None
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionRequested(Record):
    """A human is asked."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    intervention_id: str
    error_id: str | None = None
    step_id: str
    trigger: str
    reason: str
    deadline_ms: int
    channels: tuple[str, ...]
    fingerprint: str | None = None
    dependency: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionResolved(Record):
    """A human, or the deadline, answered."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    intervention_id: str
    error_id: str | None = None
    step_id: str
    decision: str
    reason: str
    actor: str
    edit: str | None = None
    result: str | None = None
    parameters: str | None = None
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationDelivered(Record):
    """People were told, or could not be."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    notification_id: str
    incident_id: str
    channel: str
    kind: str
    outcome: str
    tries: int
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged(Record):
    """From here on this policy is in force in this partition."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    name: str
    policy_version: str
    policy_text: str
    sequence: int
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryAttemptFinished(Record):
    """The end of an attempt."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    attempt_id: str
    attempt_number: int
    strategy: str
    outcome: str
    action_taken: str
    error_message: str | None = None
    duration_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryDecided(Record):
    """The engine chose a repair; the command follows when this is read back."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    attempt_id: str
    attempt_number: int
    error_type: str
    rung: int
    strategy: str
    step_id: str
    command_type: str | None = None
    command_id: str | None = None
    execute_after_ms: int = 0
    timeout_ms: int | None = None
    checkpoint_id: str | None = None
    checkpoint_partition: int | None = None
    checkpoint_offset: int | None = None
    checkpoint_digest: str | None = None
    policy_version: str
    rule: str
    evidence: str
    alternatives: str
    stage: str = ""
    parameters: str | None = None
    cost: float = 0.0
    ladder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRefused(Record):
    """A repair that an operator asked for cannot be carried out; what was being tried goes on."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    request_id: str
    error_id: str
    strategy: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRequested(Record):
    """An operator asked for one repair of an open error."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    request_id: str
    error_id: str
    strategy: str
    parameters: str | None = None
    plan_id: str | None = None
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairHeld(Record):
    """A command that was due is not sent: a breaker is open."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    attempt_id: str
    breaker: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReleased(Record):
    """A held command may be sent."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    attempt_id: str | None = None
    breaker: str
    wave: int
    canary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceGranted(Record):
    """A lease was granted."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    resource_id: str
    lease_id: str
    amount: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimitNear(Record):
    """Use of a resource nears its limit: a warning, not an error."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str | None = None
    resource: str
    value: float
    limit: float
    crosses_in_ms: int
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceReleased(Record):
    """A lease ended."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    resource_id: str
    lease_id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRequested(Record):
    """A step asks for a resource."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    resource_id: str
    lease_id: str
    amount: int = 1
    priority: int = 0
    wait_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUsageReported(Record):
    """What a workflow uses."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str | None = None
    memory_mb: float | None = None
    cpu_percent: float | None = None
    api_calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequested(Record):
    """An operator asked that a workflow go on from an earlier checkpoint."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    request_id: str
    checkpoint_id: str
    checkpoint_partition: int
    checkpoint_offset: int
    checkpoint_digest: str
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMigrated(Record):
    """A state was brought to a newer version."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    checkpoint_id: str | None = None
    from_version: str
    to_version: str
    digest_before: str
    digest_after: str
    command_id: str | None = None
    state_schema: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePersisted(Record):
    """A version of the state that is no checkpoint."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    version: str
    state_version: str
    codec: str
    protection: str = "none"
    size_bytes: int
    digest: str
    status: str
    state: bytes
    claim_uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRestored(Record):
    """A service continues from an earlier state."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    checkpoint_id: str | None = None
    step_id: str
    command_id: str | None = None
    epoch: int = 0
    state_version: str
    codec: str
    protection: str = "none"
    size_bytes: int
    digest: str
    status: str
    restored_at: int
    restore_count: int
    reason: str | None = None
    state: bytes
    claim_uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompensated(Record):
    """A completed step was undone."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    command_id: str | None = None
    duration_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleted(Record):
    """A run of a step succeeded."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    step_run_id: str
    command_id: str | None = None
    output_digest: str | None = None
    duration_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgressed(Record):
    """Heartbeat of a running step."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    step_run_id: str
    progress: float | None = None
    progress_token: str | None = None
    message: str | None = None
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped(Record):
    """A step was left out."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    reason: str
    command_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Record):
    """A run of a step began."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    step_id: str
    step_run_id: str
    command_id: str | None = None
    timeout_ms: int | None = None
    heartbeat_timeout_ms: int | None = None
    input_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired(Record):
    """A moment that the state was waiting for has passed."""

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
    step_id: str
    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitBegan(Record):
    """A step waits for another workflow."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    wait_id: str
    step_id: str
    awaited_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEnded(Record):
    """A step waits no longer for another workflow."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    wait_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCancelled(Record):
    """A workflow was cancelled."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    reason: str
    actor: str
    command_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCompleted(Record):
    """A workflow reached its end."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    result: str | None = None
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowErrorOccurred(Record):
    """Something went wrong, reported by a service or found by a detector."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    error_id: str
    step_id: str
    step_run_id: str | None = None
    command_id: str | None = None
    error_code: str
    error_message: str
    stack_trace: str | None = None
    context: str | None = None
    checkpoint_id: str | None = None
    detected_by: str
    reason: str | None = None
    fingerprint: str | None = None
    sealed: bytes | None = None
    dependency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFailed(Record):
    """A workflow was given up."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    reason: str
    error_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowKeyErased(Record):
    """The workflow's data keys were erased: its states and texts can be read by nobody any more."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowPaused(Record):
    """A workflow stands still until resumed."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    reason: str
    actor: str
    command_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowResumed(Record):
    """A paused workflow goes on."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    reason: str
    actor: str
    command_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec(Part):
    """One step of a workflow's graph."""

    step_id: str
    depends_on: tuple[str, ...] = ()
    alternative: str | None = None
    compensation: str | None = None
    timeout_ms: int | None = None
    heartbeat_timeout_ms: int | None = None
    critical: bool = False
    idempotent: bool = True
    reconcilable: bool = False
    intervention_point: bool = False
    resources: tuple[str, ...] = ()
    polls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStarted(Record):
    """A workflow began; carries the step graph."""

    event_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    occurred_at: int
    producer: str
    workflow_version: str
    steps: tuple[StepSpec, ...]
    timeout_ms: int | None = None
    input: str | None = None
    state_version: str | None = None
    state_schema: str | None = None
    sealed: bytes | None = None
