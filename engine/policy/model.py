"""The policy as the engine uses it: frozen values, all times in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.records.events import StepSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter: a wait is drawn from 0..min(max, base * 2^(n-1))."""

    base_ms: int
    max_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One strategy of a ladder, how often and for how long it may be tried."""

    strategy: str
    attempts_max: int
    backoff: Backoff | None = None
    delay_ms: int = 0
    time_ms_max: int | None = None
    timeout_multiplier: float = 1.0
    timeout_ms_max: int | None = None
    scaling_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The repairs of one error type, in order. After the last comes a human."""

    error_type: str
    rungs: tuple[Rung, ...]
    attempts_max: int
    time_ms_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long things may take, and how long the engine waits for an answer."""

    step_ms: int
    critical_step_ms: int
    workflow_ms: int
    stall_ms: int
    acknowledge_ms: int
    attempt_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """How a human is asked."""

    enabled: bool
    channels: tuple[str, ...]
    auto_pause: bool
    timeout_ms: int
    escalations_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """`error_detection.state_corruption`. Without `enabled` a bad checkpoint is never restored, but is no error either.

    `verify_on_arrival`: whether the bytes are proven when they arrive; a restore proves them in any case.
    """

    enabled: bool = True
    verify_on_arrival: bool = True
    validation_interval_ms: int = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """`checkpoints.retention`: how many checkpoints of a workflow stay, and for how long."""

    checkpoints_max: int = 50
    age_ms_max: int = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StateInspection:
    """What people may look into: `debugging.state_inspection`."""

    enabled: bool = True
    state_size_bytes_max: int = 10 * 1024 * 1024
    export_formats: tuple[str, ...] = ("json", "yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy as loaded; `version` is a digest of its content, written into every decision.

    `redact`: paths of fields that are shown to nobody, for `schemas.redaction`.
    """

    version: str
    critical_steps: frozenset[str]
    timeouts: Timeouts
    ladders: Mapping[str, Ladder]
    fallback: Ladder
    workflow_attempts_max: int
    workflow_time_ms_max: int
    intervention: Intervention
    state_inspection: StateInspection = StateInspection()
    corruption: Corruption = Corruption()
    retention: Retention = Retention()
    redact: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def ladder(self, error_type: str) -> Ladder:
        """The ladder of an error type; types without one share that of unknown errors."""
        return self.ladders.get(error_type, self.fallback)

    def step_timeout_ms(self, spec: StepSpec) -> int:
        """Deadline of a run whose start gave none: the graph's, else the policy's for this kind of step."""
        if spec.timeout_ms is not None:
            return spec.timeout_ms
        critical = spec.critical or spec.step_id in self.critical_steps
        return self.timeouts.critical_step_ms if critical else self.timeouts.step_ms
