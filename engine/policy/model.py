"""The policy as the engine uses it: frozen values, all times in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.records.events import StepSpec

from .matching import Match

#: How a ladder ends, as `manual_intervention.triggers` has it: a budget is spent, the state corrupt, no rung left.
SPENT = "max_recovery_attempts_exceeded"
CORRUPT = "critical_state_corruption"
EXHAUSTED = "all_recovery_strategies_failed"
TRIGGERS = (SPENT, CORRUPT, EXHAUSTED)


def fitting(*, spent: bool, critical: bool) -> tuple[str, ...]:
    """The triggers that fit the end of a ladder, the most telling first. `critical`: of a corrupt state."""
    if spent:
        return (SPENT, CORRUPT) if critical else (SPENT,)
    return (CORRUPT, EXHAUSTED) if critical else (EXHAUSTED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter: a wait is drawn from 0..min(max, base * 2^(n-1))."""

    base_ms: int
    max_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One strategy of a ladder, how often and for how long it may be tried, and what each attempt costs."""

    strategy: str
    attempts_max: int
    backoff: Backoff | None = None
    delay_ms: int = 0
    time_ms_max: int | None = None
    timeout_multiplier: float = 1.0
    timeout_ms_max: int | None = None
    scaling_factor: float = 1.0
    cost: float = 1.0
    to_step: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The repairs of one error type or of one rule, in order. Whether a human comes after them the policy says.

    `name`: the rule's name, or the error type. `error_type` of a rule's ladder is what the rule matches. `human`: the
    policy names a human as the last of its strategies.
    """

    error_type: str
    rungs: tuple[Rung, ...]
    attempts_max: int
    time_ms_max: int
    name: str
    cost_max: float | None = None
    human: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A ladder for the errors that match."""

    name: str
    match: Match
    ladder: Ladder


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
    """When and how a human is asked."""

    enabled: bool
    channels: tuple[str, ...]
    auto_pause: bool
    timeout_ms: int
    escalations_max: int
    on_timeout: str = "escalate"
    triggers: frozenset[str] = frozenset(TRIGGERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """`error_detection`: what the engine looks for by itself, and from where on it is an error."""

    loop_enabled: bool = True
    loop_repeats: int = 3
    loop_window: int = 10
    resources_enabled: bool = True
    memory_mb: float = 4096
    cpu_percent: float = 90
    api_calls_per_hour: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """What becomes of dependants and branches of a failed step, and how leases are waited for.

    `dependants`: hold, skip or fail. `branches`: fail_fast, continue or wait_for_all. `resources`: units of each;
    one that is not named has one.
    """

    dependants: str = "hold"
    branches: str = "continue"
    lease_wait_ms: int = 600_000
    ageing_ms: int = 60_000
    resources: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storms:
    """When failures of one kind are a storm, and how repairs are let go again."""

    enabled: bool = True
    threshold: int = 50
    window_ms: int = 10_000
    hold_ms_max: int = 3_600_000
    canaries: int = 3
    growth: float = 2.0
    quiet_ms: int = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How long more of a resource takes to take effect, and how much more there may be in all."""

    settle_ms: int = 5_000
    factor_max: float = 8.0


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
class ReplayMode:
    """What may be replayed, and where replays are kept: `debugging.replay_mode`. An empty `storage` is a folder of the
    object storage that everything else lies in."""

    enabled: bool = True
    days_max: int = 30
    storage: str = ""


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
    replay_mode: ReplayMode = ReplayMode()
    corruption: Corruption = Corruption()
    retention: Retention = Retention()
    detection: Detection = Detection()
    coordination: Coordination = Coordination()
    storms: Storms = Storms()
    scaling: Scaling = Scaling()
    compensation: Rung = Rung(strategy="compensate", attempts_max=3, backoff=Backoff(base_ms=1_000, max_ms=60_000))
    workflow_cost_max: float | None = None
    rules: tuple[Rule, ...] = ()
    redact: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def ladder(self, error_type: str) -> Ladder:
        """The ladder of an error type; types without one share that of unknown errors."""
        return self.ladders.get(error_type, self.fallback)

    def ladder_for(
        self, error_type: str, workflow_type: str, step_id: str, error_code: str, message: str
    ) -> tuple[Ladder, str]:
        """The ladder of an error, and which part of the policy chose it.

        The first rule that matches; else the entry of the error type; else that of unknown errors. A message that is
        not there, or is sealed, is "".
        """
        for rule in self.rules:
            if rule.match.fits(error_type, workflow_type, step_id, error_code, message):
                return rule.ladder, f"recovery_rules.{rule.name}: {rule.match}"
        found = self.ladders.get(error_type)
        if found is not None:
            return found, f"recovery_strategies.{error_type}"
        return self.fallback, f"recovery_strategies.{self.fallback.name}: {error_type} has no entry"

    def asked_by(self, ladder: Ladder, fits: tuple[str, ...]) -> str | None:
        """The trigger by which a human is asked when a ladder ends; None when nobody is.

        A ladder that names a human as its last strategy asks, whatever is listed.
        """
        if not self.intervention.enabled:
            return None
        listed = [trigger for trigger in fits if trigger in self.intervention.triggers]
        return listed[0] if listed else fits[0] if ladder.human else None

    def step_timeout_ms(self, spec: StepSpec) -> int:
        """Deadline of a run whose start gave none: the graph's, else the policy's for this kind of step."""
        if spec.timeout_ms is not None:
            return spec.timeout_ms
        critical = spec.critical or spec.step_id in self.critical_steps
        return self.timeouts.critical_step_ms if critical else self.timeouts.step_ms
