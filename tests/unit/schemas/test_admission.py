"""The one door: what passes can be folded and written without another look; what does not pass says why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from schemas import release
from schemas.admission import STATE_SCHEMA_CHARS_MAX, STEPS_MAX, admit, check
from schemas.catalog import shipped
from schemas.codec import Codec, Unknown
from schemas.errors import AdmissionError, DecodeError
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.commands import RetryStep
from schemas.records.events import (
    CheckpointCreated,
    CheckpointsExpired,
    InterventionRequested,
    RecoveryDecided,
    ResourceUsageReported,
    StateMigrated,
    StepSpec,
    StepStarted,
    TimerFired,
    WorkflowErrorOccurred,
    WorkflowStarted,
)

from .kit import NAMES, WORKFLOW, Ids, records, step_started

CODEC = Codec()
KEY = WORKFLOW.encode()
REASONS = ("bad_id", "too_long", "bad_time", "bad_number", "too_many_steps")


def sample(kind: type[Record], **fields: Any) -> Record:
    """A sound record of any type, with some fields changed."""
    return replace(release.sample(shipped()[kind.__name__], bare=False), **fields)


def started(*steps: StepSpec) -> Record:
    return sample(WorkflowStarted, steps=steps)


def refused(key: bytes | None, record: Record) -> str:
    with pytest.raises(AdmissionError) as caught:
        admit(CODEC, key, CODEC.encode(record))
    assert caught.value.poison
    assert len(str(caught.value)) < 300
    return caught.value.reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bare", [False, True])
def test_sound_record_passes(name: str, bare: bool) -> None:
    record = release.sample(shipped()[name], bare=bare)
    assert admit(CODEC, record.workflow_id.encode(), CODEC.encode(record)) == record


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "null_key"),
        (b"", "wrong_key"),
        (b"\xff\xfe", "wrong_key"),
        (WORKFLOW.upper().encode(), "wrong_key"),
        (derive_id("another", "workflow").encode(), "wrong_key"),
        (b"x" * 1_000_000, "wrong_key"),
    ],
)
def test_key_must_be_the_workflow(key: bytes | None, reason: str) -> None:
    assert refused(key, step_started()) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (step_started(workflow_id="order-17"), "bad_id"),
        (step_started(workflow_id=WORKFLOW.upper()), "bad_id"),
        (step_started(workflow_id=""), "bad_id"),
        (step_started(event_id="x" * 100_000), "bad_id"),
        (step_started(step_run_id="1"), "bad_id"),
        (step_started(command_id="\x00" * 36), "bad_id"),
        (sample(RetryStep, command_id="1"), "bad_id"),
        (sample(CheckpointCreated, checkpoint_id="1"), "bad_id"),
        (sample(RecoveryDecided, attempt_id="1"), "bad_id"),
        (sample(WorkflowErrorOccurred, error_id=""), "bad_id"),
        (step_started(step_id="x" * 256), "too_long"),
        (step_started(workflow_type="x" * 256), "too_long"),
        (step_started(producer="漢" * 256), "too_long"),
        (step_started(external_id="x" * 256), "too_long"),
        (sample(WorkflowErrorOccurred, error_code="x" * 101), "too_long"),
        (sample(CheckpointCreated, checkpoint_type="x" * 51), "too_long"),
        (sample(CheckpointCreated, status="x" * 21), "too_long"),
        (sample(CheckpointCreated, digest="a" * 65), "too_long"),
        (sample(RecoveryDecided, command_type="x" * 101), "too_long"),
        (started(StepSpec(step_id="")), "too_long"),
        (started(StepSpec(step_id="a"), StepSpec(step_id="x" * 256)), "too_long"),
        (step_started(occurred_at=-1), "bad_time"),
        (step_started(occurred_at=253_402_300_799_000_001), "bad_time"),
        (step_started(occurred_at=2**63 - 1), "bad_time"),
        (sample(RetryStep, expires_at=-(2**63)), "bad_time"),
        (sample(TimerFired, due_at=2**63 - 1), "bad_time"),
        (step_started(timeout_ms=-1), "bad_time"),
        (step_started(heartbeat_timeout_ms=2**63 - 1), "bad_time"),
        (sample(InterventionRequested, deadline_ms=2**63 - 1), "bad_time"),
        (sample(RecoveryDecided, execute_after_ms=2**53 + 1), "bad_time"),
        (started(StepSpec(step_id="a", timeout_ms=2**60)), "bad_time"),
        (started(StepSpec(step_id="a", heartbeat_timeout_ms=-1)), "bad_time"),
        (sample(RetryStep, attempt_number=2**31), "bad_number"),
        (sample(CheckpointCreated, size_bytes=-(2**31) - 1), "bad_number"),
        (sample(ResourceUsageReported, memory_mb=math.nan), "bad_number"),
        (sample(ResourceUsageReported, cpu_percent=math.inf), "bad_number"),
        (started(*(StepSpec(step_id=str(n)) for n in range(STEPS_MAX + 1))), "too_many_steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_record_that_breaks_a_rule_says_which(record: Record, reason: str) -> None:
    assert refused(record.workflow_id.encode(), record) == reason


@pytest.mark.parametrize(
    "record",
    [
        step_started(step_id="x" * 255, producer="漢" * 255, workflow_type="😀" * 255),
        step_started(occurred_at=0),
        step_started(occurred_at=253_402_300_799_000_000),
        step_started(timeout_ms=0, heartbeat_timeout_ms=2**53),
        step_started(workflow_type="", producer="\x00"),  # a projection replaces U+0000
        started(),
        started(*(StepSpec(step_id=str(n)) for n in range(STEPS_MAX))),
        sample(RetryStep, attempt_number=2**31 - 1, expires_at=0),
        sample(ResourceUsageReported, memory_mb=1e308, cpu_percent=-0.0, api_calls=None),
    ],
    ids=lambda record: type(record).__name__,
)
def test_record_at_the_very_limit_passes(record: Record) -> None:
    assert admit(CODEC, record.workflow_id.encode(), CODEC.encode(record)) == record


@pytest.mark.parametrize("name", NAMES)
def test_no_record_breaks_the_check_itself(name: str) -> None:
    def reason_of(record: Record) -> str:
        try:
            check(record)
        except AdmissionError as error:
            return error.reason
        return ""

    @settings(max_examples=25, deadline=None)
    @given(records(name))
    def holds(record: Record) -> None:
        assert reason_of(record) == "bad_id"
        ids: dict[str, Any] = {
            n: WORKFLOW for n in record.__dataclass_fields__ if n.endswith("_id") and n != "external_id"
        }
        ids |= {n: (WORKFLOW,) for n in record.__dataclass_fields__ if n.endswith("_ids")}
        assert reason_of(replace(record, **ids)) in ("", *REASONS[1:])

    holds()


def test_unreadable_bytes_are_told_before_the_key_is_looked_at() -> None:
    with pytest.raises(DecodeError) as caught:
        admit(CODEC, None, b"")
    assert caught.value.reason == "empty"


def test_record_of_another_type_passes_unread_whatever_its_key() -> None:
    ids = Ids()
    schema_id = ids.add({"type": "record", "name": "Other", "fields": [{"name": "n", "type": "int"}]})
    assert admit(Codec(ids), None, b"\x00" + schema_id.to_bytes(4, "big") + b"\x02") == Unknown("Other")


def test_rules_follow_the_schema_not_the_class_seen_first() -> None:
    check(step_started())
    assert isinstance(sample(StepStarted), StepStarted)
    assert refused(KEY, step_started(timeout_ms=-5)) == "bad_time"


IDS = (WORKFLOW,) * 3


@pytest.mark.parametrize(
    ("checkpoints", "events"), [(IDS, IDS[1:]), ((*IDS, "x"), (*IDS, WORKFLOW)), (IDS * 334, IDS * 334)]
)
def test_expired_checkpoints_are_pairs_of_uuids_and_not_too_many(
    checkpoints: tuple[str, ...], events: tuple[str, ...]
) -> None:
    sound = sample(CheckpointsExpired)
    check(sound)
    with pytest.raises(AdmissionError) as caught:
        check(sample(CheckpointsExpired, checkpoint_ids=checkpoints, event_ids=events))
    assert caught.value.reason == "bad_id"


@pytest.mark.parametrize("kind", [WorkflowStarted, StateMigrated])
def test_a_schema_of_more_than_a_few_pages_is_refused(kind: type[Record]) -> None:
    check(sample(kind, state_schema="x" * STATE_SCHEMA_CHARS_MAX))
    with pytest.raises(AdmissionError, match="state_schema") as caught:
        check(sample(kind, state_schema="x" * (STATE_SCHEMA_CHARS_MAX + 1)))
    assert caught.value.reason == "too_long"
