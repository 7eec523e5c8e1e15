"""The policy file: the story's YAML, exactly as printed there, and a few optional keys of our own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from schemas.redaction import PATHS_MAX, check_path

from ..recent import RECENT_MAX

_DAY_MS = 24 * 3600 * 1000
#: A policy is read by people; more rules or rungs than these are not a policy any more.
RULES_MAX = 256
RUNGS_MAX = 32
#: Longest glob; each decision matches it against a name or the first characters of a message.
GLOB_CHARS_MAX = 200
NAME_CHARS_MAX = 64
#: Resources whose capacity one policy gives; those left out have one unit.
RESOURCES_MAX = 10_000

Strategy = Literal[
    "retry_step",
    "increase_timeout_and_retry",
    "scale_resources_and_retry",
    "restart_from_checkpoint",
    "restore_from_last_valid_checkpoint",
    "resume_from_step",
    "alternative_path",
    "queue_for_later",
    "compensate",
    "rollback",
    "complete_restart",
    "manual_intervention",
]
Attempts = Annotated[int, Field(ge=1, le=1000)]
HiddenPath = Annotated[str, AfterValidator(check_path)]
Milliseconds = Annotated[int, Field(ge=1, le=365 * _DAY_MS)]
Cost = Annotated[float, Field(ge=0, le=1_000_000)]
Budget = Annotated[float, Field(gt=0, le=1_000_000_000)]
StepName = Annotated[str, Field(min_length=1, max_length=255)]
Glob = Annotated[str, Field(min_length=1, max_length=GLOB_CHARS_MAX)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=NAME_CHARS_MAX)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Retention(_Part):
    max_checkpoints: int = Field(50, ge=1, le=10_000)
    max_age: int = Field(7, ge=1, le=3650, description="days")


class Compression(_Part):
    enabled: bool = True
    algorithm: Literal["gzip", "zstd"] = "gzip"
    min_size: int = Field(1024, ge=0, description="bytes")


class Checkpoints(_Part):
    auto_create: bool = True
    types: tuple[Literal["step_start", "step_complete", "critical_point", "error_recovery", "manual"], ...] = Field(
        ("step_start", "step_complete", "critical_point", "error_recovery"), strict=False
    )
    critical_steps: tuple[str, ...] = Field((), strict=False)
    redact: tuple[HiddenPath, ...] = Field((), strict=False, max_length=PATHS_MAX)
    retention: Retention = Retention()
    compression: Compression = Compression()


class InfiniteLoop(_Part):
    enabled: bool = True
    max_repeats: int = Field(3, ge=2, le=RECENT_MAX // 2)
    detection_window: int = Field(10, ge=2, le=RECENT_MAX // 2, description="steps")


class Thresholds(_Part):
    memory: float = Field(4096, gt=0, description="MB")
    cpu: float = Field(90, gt=0, description="percent")
    api_calls: int = Field(1000, ge=1, description="per hour")


class ResourceExhaustion(_Part):
    enabled: bool = True
    thresholds: Thresholds = Thresholds()


class TimeoutsPart(_Part):
    default_step_timeout: Milliseconds = 300_000
    default_workflow_timeout: Milliseconds = 3_600_000
    critical_step_timeout: Milliseconds = 600_000
    stall_timeout: Milliseconds | None = None


class StateCorruption(_Part):
    enabled: bool = True
    validation_interval: Milliseconds = 30_000
    checksum_verification: bool = True


class ErrorDetection(_Part):
    infinite_loop: InfiniteLoop = InfiniteLoop()
    resource_exhaustion: ResourceExhaustion = ResourceExhaustion()
    timeouts: TimeoutsPart = TimeoutsPart()
    state_corruption: StateCorruption = StateCorruption()


class Recovery(_Part):
    """One error type's entry: a first strategy with its attempts, and a fallback that is tried once."""

    strategy: Strategy
    max_retries: Attempts | None = None
    max_restarts: Attempts | None = None
    max_restore_attempts: Attempts | None = None
    max_scaling_attempts: Attempts | None = None
    scaling_factor: float = Field(2.0, gt=1, le=100)
    timeout_multiplier: float = Field(2.0, ge=1, le=100)
    max_timeout: Milliseconds | None = None
    backoff_strategy: Literal["none", "exponential"] = "none"
    backoff_base: Milliseconds = 1_000
    backoff_max: Milliseconds = 60_000
    queue_delay: Milliseconds = 60_000
    max_time: Milliseconds | None = None
    fallback_strategy: Strategy | None = None
    to_step: StepName | None = None

    @model_validator(mode="after")
    def _human_is_last(self) -> Recovery:
        if self.strategy == "manual_intervention" and self.fallback_strategy not in (None, "manual_intervention"):
            raise ValueError("manual_intervention comes last: no fallback_strategy can follow it")
        return self


class RecoveryStrategies(_Part):
    infinite_loop: Recovery | None = None
    resource_exhaustion: Recovery | None = None
    timeout: Recovery | None = None
    state_corruption: Recovery | None = None
    deadlock: Recovery | None = None
    dependency_failure: Recovery | None = None
    coordination_failure: Recovery | None = None
    unknown_error: Recovery | None = None


class BackoffTimes(_Part):
    """Ours: exponential backoff with full jitter."""

    base: Milliseconds = 1_000
    max: Milliseconds = 60_000


def _none_is_none(value: object) -> object:
    return None if value == "none" else value


class RuleMatch(_Part):
    """Ours: what an error must be like for a rule to hold. Each value is a name or a glob; one left out fits all."""

    error_type: Glob | None = None
    workflow_type: Glob | None = None
    step: Glob | None = None
    error_code: Glob | None = None
    message: Glob | None = None


class RuleRung(_Part):
    """Ours: one strategy of a rule's ladder."""

    strategy: Strategy
    attempts: Attempts = 3
    backoff: Annotated[BackoffTimes | None, BeforeValidator(_none_is_none)] = None
    max_time: Milliseconds | None = None
    cost: Cost = 1.0
    delay: Milliseconds = 60_000
    timeout_multiplier: float = Field(2.0, ge=1, le=100)
    max_timeout: Milliseconds | None = None
    scaling_factor: float = Field(2.0, gt=1, le=100)
    to_step: StepName | None = None


class RecoveryRule(_Part):
    """Ours: a ladder for the errors that match. The first rule that matches an error holds for it."""

    name: Name
    match: RuleMatch
    ladder: tuple[RuleRung, ...] = Field(strict=False, max_length=RUNGS_MAX)
    max_time: Milliseconds | None = None
    max_cost: Budget | None = None


class ManualIntervention(_Part):
    enabled: bool = True
    triggers: tuple[
        Literal["max_recovery_attempts_exceeded", "critical_state_corruption", "all_recovery_strategies_failed"], ...
    ] = Field(
        ("max_recovery_attempts_exceeded", "critical_state_corruption", "all_recovery_strategies_failed"), strict=False
    )
    notification_channels: tuple[Literal["slack", "email", "pagerduty"], ...] = Field((), strict=False)
    auto_pause: bool = True
    timeout: int = Field(86_400, ge=1, le=365 * 86_400, description="seconds")
    max_escalations: int = Field(3, ge=0, le=100)
    on_timeout: Literal["escalate", "retry", "skip", "alternative", "restart", "cancel"] = "escalate"


class ReplayMode(_Part):
    enabled: bool = True
    max_replay_days: int = Field(30, ge=1)
    storage: str = ""


class Tracing(_Part):
    enabled: bool = True
    detail_level: Literal["minimal", "normal", "verbose"] = "verbose"
    include_context: bool = True


class StateInspection(_Part):
    enabled: bool = True
    max_state_size: int = Field(10_485_760, ge=1)
    export_formats: tuple[Literal["json", "yaml"], ...] = Field(("json", "yaml"), strict=False)


class Debugging(_Part):
    replay_mode: ReplayMode = ReplayMode()
    tracing: Tracing = Tracing()
    state_inspection: StateInspection = StateInspection()


class Budgets(_Part):
    """Ours: what one workflow may cost in all, so that ladders of different errors cannot alternate for ever."""

    workflow_max_attempts: Attempts = 30
    workflow_max_time: Milliseconds = _DAY_MS
    workflow_max_cost: Budget | None = None


class Commands(_Part):
    """Ours: how long a command may wait for a service to accept it, and an accepted one for its step to complete."""

    acknowledge_timeout: Annotated[int, Field(ge=100, le=900_000, description="also the command's expiry")] = 15_000
    attempt_timeout: Milliseconds = 3_600_000


class CoordinationPart(_Part):
    """Ours: what becomes of steps beside a failed one, and how long a lease may be waited for."""

    dependants: Literal["hold", "skip", "fail"] = "hold"
    branches: Literal["fail_fast", "continue", "wait_for_all"] = "continue"
    lease_wait: Milliseconds = 600_000
    ageing: Milliseconds = 60_000
    resources: dict[StepName, Annotated[int, Field(ge=1, le=1_000_000)]] = Field({}, max_length=RESOURCES_MAX)


class StormsPart(_Part):
    """Ours: when many workflows fail on one thing, repairs are held and let go in growing waves."""

    enabled: bool = True
    threshold: int = Field(50, ge=2, le=1_000_000, description="workflows")
    window: Milliseconds = 10_000
    hold_max: Milliseconds = 3_600_000
    canaries: int = Field(3, ge=1, le=1_000, description="workflows")
    growth: float = Field(2.0, gt=1, le=100)
    quiet: Milliseconds = 60_000


class ResourceScaling(_Part):
    """Ours: how long more of a resource takes to take effect, and how much more a workflow gets at most."""

    settle_time: Milliseconds = 5_000
    factor_max: float = Field(8.0, gt=1, le=1_000)


class CompensationPart(_Part):
    """Ours: how often undoing one step is tried before a human is asked."""

    attempts: Attempts = 3
    backoff: Annotated[BackoffTimes | None, BeforeValidator(_none_is_none)] = BackoffTimes()


class WorkflowErrorHandling(_Part):
    checkpoints: Checkpoints = Checkpoints()
    error_detection: ErrorDetection = ErrorDetection()
    recovery_strategies: RecoveryStrategies = RecoveryStrategies()
    recovery_rules: tuple[RecoveryRule, ...] = Field((), strict=False, max_length=RULES_MAX)
    manual_intervention: ManualIntervention = ManualIntervention()
    debugging: Debugging = Debugging()
    budgets: Budgets = Budgets()
    commands: Commands = Commands()
    coordination: CoordinationPart = CoordinationPart()
    storms: StormsPart = StormsPart()
    resource_scaling: ResourceScaling = ResourceScaling()
    compensation: CompensationPart = CompensationPart()


class PolicyFile(_Part):
    workflow_error_handling: WorkflowErrorHandling
