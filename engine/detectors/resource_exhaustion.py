"""Use of a resource that reached its limit, or will soon if it goes on as it does.

An error comes once per crossing: when a report is above the limit and the one before was not. It is armed again when a
report falls to the limit or below, or a new run of the step begins. One report of a busy processor is no exhaustion:
two in a row are. A trend is a warning, once until it recedes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from schemas.records import Record
from schemas.records.events import ResourceLimitNear, ResourceUsageReported

from ..effects import fact
from ..events import Delivered
from ..policy.model import Detection, Policy
from ..state import WorkflowState
from ..usage import API_CALLS, CPU, MEMORY, SAMPLES_MAX, is_use
from .base import found

NAME = "resource_exhaustion"

#: A line through fewer reports says nothing.
TREND_SAMPLES_MIN = 5
#: A limit that is further away than this is not near.
TREND_HORIZON_US = 300_000_000
#: A trend is followed no longer into the future than this many times the span in which it was seen.
TREND_REACH = 2.0
#: Share of the reports' spread that the line must explain (r squared): what jumps up and down has no trend.
TREND_FIT_MIN = 0.8
#: One report less than is kept, so that what was said when the one before came can be seen again.
_TREND_SAMPLES_MAX = SAMPLES_MAX - 1

Samples = Sequence[tuple[int, float]]


class _Limit(NamedTuple):
    """A resource's threshold, the code of its error, its key in the policy, unit, and reports in a row that count."""

    value: float
    code: str
    key: str
    unit: str
    in_a_row: int


def resource_exhaustion(state: WorkflowState, event: Delivered, policy: Policy) -> Iterator[Record]:
    """Errors and warnings that follow from the usage report just folded."""
    record, limits = event.record, policy.detection
    assert isinstance(record, ResourceUsageReported)
    if not limits.resources_enabled or state.usage is None:
        return
    step_id = record.step_id or ""
    for resource, reported in (
        (MEMORY, record.memory_mb),
        (CPU, record.cpu_percent),
        (API_CALLS, record.api_calls),
    ):
        if reported is None or not is_use(reported):
            continue
        samples = state.usage.samples(resource, "" if resource == API_CALLS else step_id)
        limit = _limit(resource, limits)
        if exceeded(samples, limit.value, limit.in_a_row):
            if not exceeded(samples[:-1], limit.value, limit.in_a_row):
                yield _error(state, event, step_id, resource, samples[-1][1], limit)
            continue
        crosses_us = crosses_in_us(samples[-_TREND_SAMPLES_MAX:], limit.value)
        if crosses_us is not None and crosses_in_us(samples[:-1], limit.value) is None:
            yield fact(
                ResourceLimitNear,
                event,
                f"near|{resource}",
                step_id=record.step_id,
                resource=resource,
                value=samples[-1][1],
                limit=limit.value,
                crosses_in_ms=crosses_us // 1000,
                rule=limit.key,
            )


def exceeded(samples: Samples, limit: float, in_a_row: int) -> bool:
    """Whether the newest reports are all above the limit."""
    return len(samples) >= in_a_row and all(value > limit for _, value in samples[-in_a_row:])


def crosses_in_us(samples: Samples, limit: float) -> int | None:
    """When a line through the reports (least squares) reaches the limit, from the newest on; None when it is not near.

    0 when the line is there already and the newest report is not.
    """
    count = len(samples)
    if count < TREND_SAMPLES_MIN or samples[-1][1] > limit:
        return None
    newest_us = samples[-1][0]
    times = [(at_us - newest_us) / 1e6 for at_us, _ in samples]
    values = [value for _, value in samples]
    mean_time, mean_value = sum(times) / count, sum(values) / count
    time_spread = sum((t - mean_time) * (t - mean_time) for t in times)
    value_spread = sum((v - mean_value) * (v - mean_value) for v in values)  # `**` would raise where `*` is infinite
    together = sum((t - mean_time) * (v - mean_value) for t, v in zip(times, values, strict=True))
    if time_spread <= 0 or together <= 0 or together * together < TREND_FIT_MIN * time_spread * value_spread:
        return None
    slope = together / time_spread
    left_us = (limit - (mean_value - slope * mean_time)) / slope * 1e6
    reach_us = min(TREND_HORIZON_US, TREND_REACH * (newest_us - samples[0][0]))
    if not left_us <= reach_us:  # also when use is beyond what numbers can hold
        return None
    return int(left_us) if left_us > 0 else 0


def _limit(resource: str, limits: Detection) -> _Limit:
    key = f"error_detection.resource_exhaustion.thresholds.{resource}"
    if resource == MEMORY:
        return _Limit(limits.memory_mb, "OUT_OF_MEMORY", key, "MB", 1)
    if resource == CPU:
        return _Limit(limits.cpu_percent, "CPU_LIMIT_EXCEEDED", key, "percent", 2)
    return _Limit(limits.api_calls_per_hour, "API_RATE_LIMIT", key, "calls in an hour", 1)


def _error(state: WorkflowState, event: Delivered, step_id: str, resource: str, value: float, limit: _Limit) -> Record:
    step_id = step_id or state.next_step() or ""
    run = (state.runs or {}).get(state.graph.index.get(step_id, -1))
    return found(
        event,
        NAME,
        f"exceeded|{resource}",
        error=f"error|{resource}",
        step_id=step_id,
        step_run_id=None if run is None else run.run_id,
        command_id=None if run is None else run.command_id,
        error_code=limit.code,
        error_message=f"{resource}: {value:g} {limit.unit}, the limit is {limit.value:g}",
        context={"resource": resource, "value": value, "limit": limit.value, "rule": limit.key},
    )
