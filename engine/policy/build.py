"""From a policy file that was read to the policy the engine uses."""

from __future__ import annotations

import hashlib
import json

from .. import classify
from .file import BackoffTimes, Recovery, RecoveryRule, RuleRung, WorkflowErrorHandling
from .matching import Match, Pattern
from .model import (
    Backoff,
    Coordination,
    Corruption,
    Detection,
    Intervention,
    Ladder,
    Policy,
    ReplayMode,
    Retention,
    Rule,
    Rung,
    Scaling,
    StateInspection,
    Storms,
    Timeouts,
)

_ATTEMPTS_DEFAULT = 3
_DAY_MS = 24 * 3600 * 1000
_DEFAULT_UNKNOWN = Recovery(strategy="retry_step", max_retries=3, backoff_strategy="exponential")
_HUMAN = "manual_intervention"


def build(parsed: WorkflowErrorHandling, warnings: tuple[str, ...]) -> Policy:
    """The policy; its version is a digest of all that decides a repair."""
    strategies, budgets, scaling = parsed.recovery_strategies, parsed.budgets, parsed.resource_scaling
    ladders = {
        name: _ladder(name, entry, budgets.workflow_max_time)
        for name in classify.ERROR_TYPES
        if (entry := getattr(strategies, name)) is not None
    }
    unknown = strategies.unknown_error or _DEFAULT_UNKNOWN
    inspection, compensation = parsed.debugging.state_inspection, parsed.compensation
    replays = parsed.debugging.replay_mode
    corruption, retention = parsed.error_detection.state_corruption, parsed.checkpoints.retention
    # What is hidden from people decides no repair: a version is that of the decisions made by it.
    content = json.dumps(parsed.model_dump(mode="json", exclude={"checkpoints": {"redact"}}), sort_keys=True)
    return Policy(
        version=hashlib.sha256(content.encode()).hexdigest()[:16],
        critical_steps=frozenset(parsed.checkpoints.critical_steps),
        redact=parsed.checkpoints.redact,
        timeouts=_timeouts(parsed),
        ladders=ladders,
        fallback=_ladder(classify.UNKNOWN, unknown, budgets.workflow_max_time),
        rules=tuple(_rule(rule, budgets.workflow_max_time) for rule in parsed.recovery_rules),
        workflow_attempts_max=budgets.workflow_max_attempts,
        workflow_time_ms_max=budgets.workflow_max_time,
        workflow_cost_max=budgets.workflow_max_cost,
        intervention=_intervention(parsed),
        state_inspection=StateInspection(
            enabled=inspection.enabled,
            state_size_bytes_max=inspection.max_state_size,
            export_formats=inspection.export_formats,
        ),
        replay_mode=ReplayMode(enabled=replays.enabled, days_max=replays.max_replay_days, storage=replays.storage),
        corruption=Corruption(
            enabled=corruption.enabled,
            verify_on_arrival=corruption.enabled and corruption.checksum_verification,
            validation_interval_ms=corruption.validation_interval,
        ),
        retention=Retention(checkpoints_max=retention.max_checkpoints, age_ms_max=retention.max_age * _DAY_MS),
        detection=_detection(parsed),
        coordination=_coordination(parsed),
        storms=_storms(parsed),
        scaling=Scaling(settle_ms=scaling.settle_time, factor_max=scaling.factor_max),
        compensation=Rung(
            strategy="compensate", attempts_max=compensation.attempts, backoff=_backoff(compensation.backoff)
        ),
        warnings=warnings,
    )


def _timeouts(parsed: WorkflowErrorHandling) -> Timeouts:
    timeouts, commands = parsed.error_detection.timeouts, parsed.commands
    return Timeouts(
        step_ms=timeouts.default_step_timeout,
        critical_step_ms=timeouts.critical_step_timeout,
        workflow_ms=timeouts.default_workflow_timeout,
        stall_ms=timeouts.stall_timeout or timeouts.default_step_timeout,
        acknowledge_ms=commands.acknowledge_timeout,
        attempt_ms=commands.attempt_timeout,
    )


def _intervention(parsed: WorkflowErrorHandling) -> Intervention:
    people = parsed.manual_intervention
    return Intervention(
        enabled=people.enabled,
        channels=people.notification_channels,
        auto_pause=people.auto_pause,
        timeout_ms=people.timeout * 1000,
        escalations_max=people.max_escalations,
        on_timeout=people.on_timeout,
        triggers=frozenset(people.triggers),
    )


def _detection(parsed: WorkflowErrorHandling) -> Detection:
    loop, resources = parsed.error_detection.infinite_loop, parsed.error_detection.resource_exhaustion
    return Detection(
        loop_enabled=loop.enabled,
        loop_repeats=loop.max_repeats,
        loop_window=loop.detection_window,
        resources_enabled=resources.enabled,
        memory_mb=resources.thresholds.memory,
        cpu_percent=resources.thresholds.cpu,
        api_calls_per_hour=resources.thresholds.api_calls,
    )


def _coordination(parsed: WorkflowErrorHandling) -> Coordination:
    given = parsed.coordination
    return Coordination(
        dependants=given.dependants,
        branches=given.branches,
        lease_wait_ms=given.lease_wait,
        ageing_ms=given.ageing,
        resources=dict(given.resources),
    )


def _storms(parsed: WorkflowErrorHandling) -> Storms:
    given = parsed.storms
    return Storms(
        enabled=given.enabled,
        threshold=given.threshold,
        window_ms=given.window,
        hold_ms_max=given.hold_max,
        canaries=given.canaries,
        growth=given.growth,
        quiet_ms=given.quiet,
    )


def _ladder(error_type: str, entry: Recovery, time_ms_max: int) -> Ladder:
    given = (entry.max_retries, entry.max_restarts, entry.max_restore_attempts, entry.max_scaling_attempts)
    attempts = max((n for n in given if n is not None), default=_ATTEMPTS_DEFAULT)
    backoff = (
        Backoff(base_ms=entry.backoff_base, max_ms=max(entry.backoff_base, entry.backoff_max))
        if entry.backoff_strategy == "exponential"
        else None
    )
    names = [(entry.strategy, attempts, backoff)]
    if entry.fallback_strategy is not None and entry.fallback_strategy != entry.strategy:
        names.append((entry.fallback_strategy, 1, None))
    rungs = tuple(
        Rung(
            strategy=name,
            attempts_max=count,
            backoff=wait,
            delay_ms=entry.queue_delay if name == "queue_for_later" else 0,
            time_ms_max=entry.max_time,
            timeout_multiplier=entry.timeout_multiplier,
            timeout_ms_max=entry.max_timeout,
            scaling_factor=entry.scaling_factor,
            to_step=entry.to_step,
        )
        for name, count, wait in names
        if name != _HUMAN
    )
    return Ladder(
        error_type=error_type,
        name=error_type,
        rungs=rungs,
        attempts_max=sum(r.attempts_max for r in rungs),
        time_ms_max=entry.max_time or time_ms_max,
        human=_HUMAN in (entry.strategy, entry.fallback_strategy),
    )


def match_of(rule: RecoveryRule) -> Match:
    """What a rule of the file is for."""
    given = rule.match
    return Match(
        error_type=_pattern(given.error_type),
        workflow_type=_pattern(given.workflow_type),
        step=_pattern(given.step),
        error_code=_pattern(given.error_code),
        message=None if given.message is None else Pattern(given.message, ignore_case=True),
    )


def _pattern(text: str | None) -> Pattern | None:
    return None if text is None else Pattern(text)


def _rule(rule: RecoveryRule, time_ms_max: int) -> Rule:
    rungs = tuple(_rung(rung) for rung in rule.ladder if rung.strategy != _HUMAN)
    return Rule(
        name=rule.name,
        match=match_of(rule),
        ladder=Ladder(
            error_type=rule.match.error_type or "*",
            name=rule.name,
            rungs=rungs,
            attempts_max=sum(r.attempts_max for r in rungs),
            time_ms_max=rule.max_time or time_ms_max,
            cost_max=rule.max_cost,
            human=any(rung.strategy == _HUMAN for rung in rule.ladder),
        ),
    )


def _rung(rung: RuleRung) -> Rung:
    return Rung(
        strategy=rung.strategy,
        attempts_max=rung.attempts,
        backoff=_backoff(rung.backoff),
        delay_ms=rung.delay if rung.strategy == "queue_for_later" else 0,
        time_ms_max=rung.max_time,
        timeout_multiplier=rung.timeout_multiplier,
        timeout_ms_max=rung.max_timeout,
        scaling_factor=rung.scaling_factor,
        cost=rung.cost,
        to_step=rung.to_step,
    )


def _backoff(given: BackoffTimes | None) -> Backoff | None:
    return None if given is None else Backoff(base_ms=given.base, max_ms=max(given.base, given.max))
