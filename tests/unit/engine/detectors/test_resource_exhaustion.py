"""Use above a limit is an error once per crossing; use that will cross it soon is a warning."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.detectors.resource_exhaustion import crosses_in_us
from engine.fold import evolve
from engine.policy import Policy
from engine.snapshot import dump, load
from engine.state import WorkflowState
from engine.testing import Service, World
from engine.usage import SAMPLES_MAX, SERIES_MAX, Usage
from schemas.records.events import ResourceLimitNear, ResourceUsageReported, WorkflowCompleted

from .kit import errors, policy_with, started

LIMITS = "{resource_exhaustion: {thresholds: {memory: 1000, cpu: 90, api_calls: 100}}}"
POLICY = policy_with(LIMITS)
S = 1_000_000


class Use(NamedTuple):
    """A report, so many seconds after the one before."""

    after_s: int = 10
    memory: float | None = None
    cpu: float | None = None
    calls: int | None = None
    step: str | None = "a"


def memory(*values: float) -> list[Use]:
    return [Use(memory=value) for value in values]


def cpu(*values: float) -> list[Use]:
    return [Use(cpu=value) for value in values]


def calls(*values: int, after_s: int = 10) -> list[Use]:
    return [Use(calls=value, after_s=after_s) for value in values]


EXHAUSTED = {
    "memory above the limit": (memory(500, 1001), ["OUT_OF_MEMORY"]),
    "the first report is above it": (memory(5000), ["OUT_OF_MEMORY"]),
    "it stays above it": (memory(1001, 1002, 1500, 1001), ["OUT_OF_MEMORY"]),
    "it fell and rose again": (memory(1001, 900, 1001), ["OUT_OF_MEMORY"] * 2),
    "at the limit is within it": (memory(1000, 1000), []),
    "well below it": (memory(500, 480, 510, 500), []),
    "a busy processor, twice in a row": (cpu(50, 95, 96), ["CPU_LIMIT_EXCEEDED"]),
    "one spike is no exhaustion": (cpu(50, 99, 50, 99, 50), []),
    "busy for long": (cpu(95, 95, 95, 95), ["CPU_LIMIT_EXCEEDED"]),
    "busy, idle, busy": (cpu(95, 95, 10, 95, 95), ["CPU_LIMIT_EXCEEDED"] * 2),
    "both at once": ([Use(memory=2000, cpu=95), Use(memory=2000, cpu=95)], ["OUT_OF_MEMORY", "CPU_LIMIT_EXCEEDED"]),
    "calls of an hour": (calls(60, 40, 1), ["API_RATE_LIMIT"]),
    "as many calls as are allowed": (calls(60, 40), []),
    "calls go on above the limit": (calls(101, 10, 10), ["API_RATE_LIMIT"]),
    "calls spread over hours": (calls(*[30] * 20, after_s=1_300), []),
    "twice an hour": (calls(*[60] * 12, after_s=1_800), ["API_RATE_LIMIT"]),
    "every hour": (calls(*[100] * 12, after_s=3_600), []),
    "calls of other steps count too": (
        [Use(calls=60, step="a"), Use(calls=60, step="b")],
        ["API_RATE_LIMIT"],
    ),
    "an hour later they count no more": ([*calls(90), Use(calls=90, after_s=3_700)], []),
    "counters that go back say nothing": (calls(90, -80, -1000, 5, 5, 1), ["API_RATE_LIMIT"]),
    "memory that nothing can use says nothing": (memory(500, -1, math.nan, math.inf, 500), []),
    "nonsense does not tell twice": (memory(1001, -1, math.nan, math.inf), ["OUT_OF_MEMORY"]),
    "reports of nothing": ([Use(), Use()], []),
    "a report of no step": ([Use(memory=2000, step=None)], ["OUT_OF_MEMORY"]),
    "a step that is not running": ([Use(memory=2000, step="c")], ["OUT_OF_MEMORY"]),
}


@pytest.mark.parametrize("name", EXHAUSTED)
def test_use_above_a_limit_is_an_error_once_per_crossing(name: str) -> None:
    uses, expected = EXHAUSTED[name]
    world, service = working()
    for use in uses:
        report(service, use)
    assert [e.error_code for e in errors(world, "resource_exhaustion")] == expected


def test_the_error_says_what_was_used_and_which_limit_that_is() -> None:
    world, service = working()
    report(service, Use(memory=1234.5))
    (error,) = errors(world, "resource_exhaustion")
    assert (error.step_id, error.step_run_id) == ("a", service.runs["a"])
    assert error.error_message == "memory: 1234.5 MB, the limit is 1000"
    assert json.loads(error.context or "") == {
        "resource": "memory",
        "value": 1234.5,
        "limit": 1000,
        "rule": "error_detection.resource_exhaustion.thresholds.memory",
    }


def test_a_run_that_repairs_is_judged_anew() -> None:
    world, service = working()
    for use in (Use(memory=2000), Use(calls=200)):
        report(service, use)
    world.advance(60_000)
    command = world.commands[0]
    service.start("a", command)
    for use in (Use(memory=2000), Use(calls=1)):
        report(service, use)
    found = errors(world, "resource_exhaustion")
    assert [e.error_code for e in found] == ["OUT_OF_MEMORY", "API_RATE_LIMIT"] * 2
    assert [e.command_id for e in found] == [None, None, command.command_id, None]  # the third ended that run


def test_the_next_step_is_not_blamed_for_the_one_before() -> None:
    world, service = working()
    report(service, Use(memory=900))
    service.complete("a")
    assert not any(key == ("memory", "a") for key in usage_of(service).series)
    service.start("b")
    report(service, Use(memory=100, step="b"))
    assert not errors(world, "resource_exhaustion")


@pytest.mark.parametrize("detection", ["{resource_exhaustion: {enabled: false}}"])
def test_a_policy_may_look_at_no_reports(detection: str) -> None:
    world, service = working(policy_with(detection))
    for use in (*memory(1e9), *memory(1, 2, 3, 4, 5, 6, 7), *cpu(1e9, 1e9), *calls(10**9)):
        report(service, use)
    assert not errors(world, "resource_exhaustion")
    assert not world.records(ResourceLimitNear)


def test_a_report_that_comes_again_is_counted_once() -> None:
    world, service = working()
    report(service, Use(cpu=95, calls=60))
    for _ in range(3):
        world.append(world.log[-1].record)
        world.settle()
    assert not errors(world, "resource_exhaustion")


NEAR = {
    "memory that grows": (memory(500, 600, 700, 800, 900), ["memory"]),
    "it goes on growing": (memory(500, 600, 700, 800, 900, 950, 1000), ["memory"]),
    "it grows, shrinks and grows again": (
        memory(500, 600, 700, 800, 900, *[100] * 16, 500, 550, 600, 650, 700, 750, 800, 850, 900),
        ["memory", "memory"],
    ),
    "four reports say nothing": (memory(600, 700, 800, 900), []),
    "memory that stays": (memory(*[900] * 20), []),
    "memory that falls": (memory(950, 900, 850, 800, 750, 700), []),
    "memory that jumps up and down": (memory(*[500, 900] * 10), []),
    "it would take long": (memory(100, 101, 102, 103, 104, 105), []),
    "it would take longer than it was seen": (memory(100, 110, 120, 130, 140), []),
    "above the limit is no warning": (memory(600, 700, 800, 1001), []),
    "a processor that gets busier": (cpu(50, 58, 66, 74, 82, 88), ["cpu"]),
    "calls that come steadily": (calls(*[10] * 8), ["api_calls"]),
    "too few calls to matter": (calls(*[1] * 20, after_s=300), []),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_trend_towards_a_limit_is_a_warning_once(name: str) -> None:
    uses, expected = NEAR[name]
    world, service = working()
    for use in uses:
        report(service, use)
    assert [w.resource for w in world.records(ResourceLimitNear)] == expected
    if "above" not in name:
        assert not errors(world, "resource_exhaustion")
        assert not world.commands


def test_the_warning_says_when_the_limit_is_reached() -> None:
    world, service = working()
    for use in memory(500, 600, 700, 800, 900):
        report(service, use)
    (warning,) = world.records(ResourceLimitNear)
    assert (warning.step_id, warning.value, warning.limit) == ("a", 900, 1000)
    assert abs(warning.crosses_in_ms - 10_000) <= 1
    assert warning.rule == "error_detection.resource_exhaustion.thresholds.memory"


@given(
    start=st.floats(0, 500),
    per_s=st.floats(1, 50),
    step_s=st.integers(1, 20),
    count=st.integers(5, SAMPLES_MAX - 1),
)
def test_a_straight_line_crosses_where_it_does(start: float, per_s: float, step_s: int, count: int) -> None:
    samples = [(n * step_s * S, start + per_s * n * step_s) for n in range(count)]
    limit = samples[-1][1] + per_s * step_s
    crosses_us = crosses_in_us(samples, limit)
    assert crosses_us is not None
    assert abs(crosses_us - step_s * S) <= 0.01 * S


def test_reports_at_one_moment_have_no_trend() -> None:
    assert crosses_in_us([(S, float(n)) for n in range(10)], 10) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Use,
            after_s=st.integers(0, 2_000),
            memory=st.none() | st.floats() | st.floats(0, 1_000),
            cpu=st.none() | st.floats(-10, 200),
            calls=st.none() | st.integers(-(2**31), 2**31 - 1),
            step=st.none() | st.sampled_from("abc"),
        ),
        max_size=80,
    ),
    st.integers(0, 1_000),
)
def test_whatever_is_reported_is_bounded_and_survives_a_snapshot(uses: list[Use], cut: int) -> None:
    world, service = working()
    for use in uses:
        report(service, use)
    at = cut % len(world.log)
    half: WorkflowState | None = None
    for event in world.log[:at]:
        half = evolve(half, event)
    state = load(dump([half]))[0] if half else None
    for event in world.log[at:]:
        state = evolve(state, event)
    assert state is not None
    assert dump([state]) == dump([service.state])
    usage = service.state.usage or Usage()
    assert len(usage.calls) <= 60 * 16
    assert all(len(samples) <= SAMPLES_MAX * 16 for samples in usage.series.values())


def test_steps_side_by_side_are_bounded() -> None:
    usage = Usage()
    for number in range(1_000):
        usage.report("memory", f"step {number}", 1.0, number)
    assert len(usage.series) == SERIES_MAX
    assert usage.samples("memory", "step 999")
    assert not usage.samples("memory", "step 0")


def test_a_clock_that_goes_back_loses_no_calls() -> None:
    usage = Usage()
    usage.count(10, 7_200 * S)
    usage.count(10, 7_000 * S)
    assert usage.samples("api_calls", "")[-1][1] == 20


def test_nothing_is_kept_of_a_workflow_that_reports_nothing_or_has_ended() -> None:
    _, service = working()
    assert service.state.usage is None
    report(service, Use(memory=1))
    assert service.state.usage is not None
    service.emit(WorkflowCompleted)
    assert service.state.usage is None


def working(policy: Policy = POLICY) -> tuple[World, Service]:
    world, service = started(policy)
    service.start("a")
    return world, service


def report(service: Service, use: Use) -> None:
    service.world.now_us += use.after_s * S
    service.emit(
        ResourceUsageReported, step_id=use.step, memory_mb=use.memory, cpu_percent=use.cpu, api_calls=use.calls
    )


def usage_of(service: Service) -> Usage:
    assert service.state.usage is not None
    return service.state.usage
