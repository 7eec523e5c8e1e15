"""Trace context and CloudEvents headers: carried when valid, derived when not, equal for equal records."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.headers import child_trace, headers_for, trace_of
from schemas.ids import derive_id
from schemas.records.commands import CancelWorkflow

from .kit import WORKFLOW, step_started

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_valid_traceparent_is_found() -> None:
    headers = [("own", b"\xff"), ("traceparent", PARENT.encode()), ("tracestate", b"a=b")]
    assert trace_of(headers) == PARENT


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff\xfe",
        PARENT.upper().encode(),
        PARENT.encode() + b"\n",
        PARENT.encode() + b"-00",
        b" " + PARENT.encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}".encode(),
        f"00-{TRACE[:-1]}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN[:-1]}g-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-0١".encode(),
        b"x" * 1_000_000,
    ],
)
def test_invalid_traceparent_is_ignored(value: bytes | None) -> None:
    assert trace_of([("traceparent", value)]) is None  # type: ignore[list-item]


def test_no_headers_have_no_trace() -> None:
    assert trace_of(None) is None
    assert trace_of([]) is None
    assert trace_of([("Traceparent", PARENT.encode())]) is None


@given(st.binary(max_size=80))
def test_no_value_breaks_the_search(value: bytes) -> None:
    found = trace_of([("traceparent", value)])
    assert found is None or found.encode() == value


def test_child_stays_in_the_trace_and_is_a_span_of_its_own() -> None:
    child = child_trace(f"00-{TRACE}-{SPAN}-00", "event", WORKFLOW)
    version, trace, span, flags = child.split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")
    assert span != SPAN
    assert trace_of([("traceparent", child.encode())]) == child
    assert child_trace(PARENT, "another", WORKFLOW) != child_trace(PARENT, "event", WORKFLOW)


def test_records_without_a_parent_share_their_workflows_trace() -> None:
    first, second = (child_trace(None, event, WORKFLOW) for event in ("a", "b"))
    assert first != second
    assert first[:36] == second[:36]
    assert first[:36] != child_trace(None, "a", derive_id("another", "workflow"))[:36]
    assert trace_of([("traceparent", first.encode())]) == first


def test_derived_trace_never_changes() -> None:
    assert child_trace(None, "event", "workflow") == "00-a14105922b2c03b30875d1192d2cb78d-7b6cb64f09f2bf0e-01"
    assert child_trace(PARENT, "event", "workflow") == "00-4bf92f3577b34da6a3ce929d0e0e4736-7b6cb64f09f2bf0e-01"


def test_same_record_has_the_same_headers() -> None:
    assert headers_for(step_started()) == headers_for(step_started())
    assert headers_for(step_started(), parent=PARENT) == headers_for(step_started(), parent=PARENT)
    assert headers_for(step_started(), parent=PARENT) != headers_for(step_started())


def test_headers_are_cloudevents_in_binary_mode() -> None:
    record = step_started(occurred_at=1_764_000_000_123_456)
    found = dict(headers_for(record, parent=PARENT))
    assert list(found) == [
        "traceparent", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type"
    ]  # fmt: skip
    assert found["traceparent"].decode()[3:35] == TRACE
    assert found["ce_specversion"] == b"1.0"
    assert found["ce_id"] == record.event_id.encode()
    assert found["ce_source"] == record.producer.encode()
    assert found["ce_type"] == b"kintsugi.StepStarted"
    assert found["ce_time"] == b"2025-11-24T16:00:00.123456Z"
    assert found["content-type"] == b"application/avro"


@given(st.integers(0, 253_402_300_799_000_000))
def test_time_is_rfc_3339(occurred_at: int) -> None:
    text = dict(headers_for(step_started(occurred_at=occurred_at)))["ce_time"].decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", text)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert (datetime.fromisoformat(text) - epoch) // timedelta(microseconds=1) == occurred_at


def test_command_says_that_it_is_one() -> None:
    command = CancelWorkflow(
        event_id=derive_id("a", "b"),
        workflow_id=WORKFLOW,
        workflow_type="t",
        occurred_at=0,
        producer="é",
        command_id=derive_id("a", "c"),
        expires_at=0,
        reason="r",
        actor="a",
    )
    found = dict(headers_for(command))
    assert found["ce_type"] == b"kintsugi.CancelWorkflow"
    assert found["ce_source"].decode() == "é"
    assert found["ce_time"] == b"1970-01-01T00:00:00Z"
