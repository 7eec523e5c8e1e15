"""From the text of a policy file to a Policy, or to an error that names the path, the value and what is allowed."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files

import yaml
from pydantic import ValidationError

from schemas.errors import ConfigError

from .. import classify
from ..strategies import STRATEGIES
from .file import PolicyFile, Recovery, WorkflowErrorHandling
from .model import (
    Backoff,
    Corruption,
    Intervention,
    Ladder,
    Policy,
    Retention,
    Rung,
    StateInspection,
    Timeouts,
)

#: A policy file is a page of YAML; anything larger is not one.
TEXT_SIZE_BYTES_MAX = 1024 * 1024
_ATTEMPTS_DEFAULT = 3
_DAY_MS = 24 * 3600 * 1000
_DEFAULT_UNKNOWN = Recovery(
    strategy="retry_step", max_retries=3, backoff_strategy="exponential", fallback_strategy="manual_intervention"
)


def load_policy(text: str, source: str) -> Policy:
    """Parse and validate. ConfigError lists every problem with its path, value and what is allowed."""
    if len(text) > TEXT_SIZE_BYTES_MAX:
        raise ConfigError(f"{source}: {len(text)} characters, {TEXT_SIZE_BYTES_MAX} allowed")
    try:
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: the top level must be a mapping with the key 'workflow_error_handling'")
    try:
        parsed = PolicyFile.model_validate(raw).workflow_error_handling
    except ValidationError as error:
        raise ConfigError(_describe(error, source), hint="see docs/policy.md for every key") from None
    return _build(parsed)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and YAML's aliases, whose expansion has no bound."""

    def compose_node(self, parent: object, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a policy")
        return super().compose_node(parent, index)  # type: ignore[arg-type]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [k.value for k, _ in node.value]
        twice = {str(k) for k in keys if keys.count(k) > 1}
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key given twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


@cache
def default_policy() -> Policy:
    """The story's configuration file, which ships with the engine."""
    text = (files(__package__) / "default.yaml").read_text(encoding="utf-8")
    return load_policy(text, "default policy")


def _describe(error: ValidationError, source: str) -> str:
    lines = [f"{source}: {error.error_count()} problem(s)"]
    for problem in error.errors(include_url=False):
        path = ".".join(str(p) for p in problem["loc"])
        value = problem["input"]
        shown = "" if problem["type"] in ("missing", "extra_forbidden") else f" (got {value!r:.80})"
        message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"  {path}: {message}{shown}")
    return "\n".join(lines)


def _build(parsed: WorkflowErrorHandling) -> Policy:
    strategies = parsed.recovery_strategies
    ladders = {
        name: _ladder(name, entry, parsed.budgets.workflow_max_time)
        for name in classify.ERROR_TYPES
        if (entry := getattr(strategies, name)) is not None
    }
    unknown = strategies.unknown_error or _DEFAULT_UNKNOWN
    fallback = _ladder(classify.UNKNOWN, unknown, parsed.budgets.workflow_max_time)
    timeouts, commands, people = parsed.error_detection.timeouts, parsed.commands, parsed.manual_intervention
    inspection = parsed.debugging.state_inspection
    corruption, retention = parsed.error_detection.state_corruption, parsed.checkpoints.retention
    # What is hidden from people decides no repair: a version is that of the decisions made by it.
    content = json.dumps(parsed.model_dump(mode="json", exclude={"checkpoints": {"redact"}}), sort_keys=True)
    return Policy(
        version=hashlib.sha256(content.encode()).hexdigest()[:16],
        critical_steps=frozenset(parsed.checkpoints.critical_steps),
        redact=parsed.checkpoints.redact,
        timeouts=Timeouts(
            step_ms=timeouts.default_step_timeout,
            critical_step_ms=timeouts.critical_step_timeout,
            workflow_ms=timeouts.default_workflow_timeout,
            stall_ms=timeouts.stall_timeout or timeouts.default_step_timeout,
            acknowledge_ms=commands.acknowledge_timeout,
            attempt_ms=commands.attempt_timeout,
        ),
        ladders=ladders,
        fallback=fallback,
        workflow_attempts_max=parsed.budgets.workflow_max_attempts,
        workflow_time_ms_max=parsed.budgets.workflow_max_time,
        intervention=Intervention(
            enabled=people.enabled,
            channels=people.notification_channels,
            auto_pause=people.auto_pause,
            timeout_ms=people.timeout * 1000,
            escalations_max=people.max_escalations,
        ),
        state_inspection=StateInspection(
            enabled=inspection.enabled,
            state_size_bytes_max=inspection.max_state_size,
            export_formats=inspection.export_formats,
        ),
        corruption=Corruption(
            enabled=corruption.enabled,
            verify_on_arrival=corruption.enabled and corruption.checksum_verification,
            validation_interval_ms=corruption.validation_interval,
        ),
        retention=Retention(checkpoints_max=retention.max_checkpoints, age_ms_max=retention.max_age * _DAY_MS),
        warnings=tuple(_warnings(ladders)),
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
        )
        for name, count, wait in names
        if name != "manual_intervention"
    )
    return Ladder(
        error_type=error_type,
        rungs=rungs,
        attempts_max=sum(r.attempts_max for r in rungs),
        time_ms_max=entry.max_time or time_ms_max,
    )


def _warnings(ladders: dict[str, Ladder]) -> list[str]:
    return [
        f"recovery_strategies.{ladder.error_type}: {rung.strategy} is not available in this version; "
        "its rung is passed over and every decision says so"
        for ladder in ladders.values()
        for rung in ladder.rungs
        if rung.strategy not in STRATEGIES
    ]
