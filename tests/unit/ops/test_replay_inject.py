"""What an injection does to the records of a range: exactly that, and the same for the same seed."""

from __future__ import annotations

import pytest

from ops.replay_inject import INJECTIONS_MAX, check, failure_of, inject, parse, parse_all
from ops.replay_range import Range, ReplayError
from schemas.codec import Codec
from schemas.log_record import LogRecord
from schemas.records.commands import RetryStep
from schemas.records.events import StepSpec, WorkflowErrorOccurred, WorkflowStarted

W = "6b696e74-7375-4769-8000-000000000001"
COMMAND = "6b696e74-7375-4769-8000-000000000002"
CODEC = Codec()


def at(offset: int, *, partition: int = 0) -> LogRecord:
    record = WorkflowErrorOccurred(
        event_id=f"6b696e74-7375-4769-9000-{offset:012d}",
        workflow_id=W,
        workflow_type="development",
        occurred_at=1,
        producer="test",
        error_id=W,
        step_id="build",
        error_code="ValueError",
        error_message="no",
        detected_by="service",
    )
    return LogRecord(partition, offset, offset, 2, W.encode(), CODEC.encode(record), ())


LOG = [at(offset) for offset in range(10, 16)]


def changed(*specs: str, seed: int = 0, log: list[LogRecord] | None = None) -> list[tuple[int, bool]]:
    items = inject(LOG if log is None else log, parse_all(specs), CODEC, seed)
    return [(item.record.offset, item.moved) for item in items]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no injection"),
        ("drop", "no injection"),
        ("explode@0:1", "no injection"),
        ("drop@", "no injection"),
        ("drop@0", "no PARTITION:OFFSET"),
        ("drop@-1:5", "no PARTITION:OFFSET"),
        ("drop@0:1,records=2", "knows no 'records'"),
        ("delay@0:1", "how many"),
        ("delay@0:1,records=0", "how many"),
        ("delay@0:1,records=100001", "how many"),
        ("delay@0:1,records=" + "9" * 5_000, "how many"),
        ("delay@0:1,records", "name=value"),
        ("replace@0:1", "which field"),
        ("replace@0:1,=x", "name=value"),
        ("fail@Explode", "names no command"),
        ("fail@0:1", "names no command"),
    ],
)
def test_what_is_no_injection_is_refused_with_the_forms(text: str, said: str) -> None:
    with pytest.raises(ReplayError, match=said) as refused:
        parse(text)
    assert refused.value.reason == "inject" and refused.value.hint
    assert len(str(refused.value)) < 300


def test_an_injection_is_read_whole() -> None:
    found = parse("replace@3:17,error_code=A=B,error_message=two\nlines")
    assert (found.kind, found.place) == ("replace", (3, 17))
    assert found.options == {"error_code": "A=B", "error_message": "two\nlines"}
    assert parse(f"fail@{COMMAND},detail=away").place is None
    assert parse("fail@RetryStep").target == "RetryStep"


def test_there_are_only_so_many() -> None:
    assert len(parse_all(["drop@0:1"] * INJECTIONS_MAX)) == INJECTIONS_MAX
    with pytest.raises(ReplayError, match="allowed"):
        parse_all(["drop@0:1"] * (INJECTIONS_MAX + 1))


def test_a_place_outside_the_range_is_refused_before_anything_is_read() -> None:
    ranges = [Range(partition=0, first=0, start=10, end=16)]
    check(parse_all(["drop@0:10", "kill@0:15", "fail@RetryStep"]), ranges)
    for text in ("drop@0:9", "drop@0:16", "kill@1:12"):
        with pytest.raises(ReplayError, match="outside the range"):
            check([parse(text)], ranges)


@pytest.mark.parametrize(
    ("spec", "offsets"),
    [
        ("drop@0:12", [10, 11, 13, 14, 15]),
        ("duplicate@0:12", [10, 11, 12, (12,), 13, 14, 15]),
        ("delay@0:12,records=2", [10, 11, 13, 14, (12,), 15]),
        ("delay@0:12,records=100", [10, 11, 13, 14, 15, (12,)]),
        ("corrupt@0:12", [10, 11, (12,), 13, 14, 15]),
        ("replace@0:12,error_code=TIMEOUT", [10, 11, (12,), 13, 14, 15]),
        ("kill@0:12", [10, 11, 12, 13, 14, 15]),
        ("fail@RetryStep", [10, 11, 12, 13, 14, 15]),
    ],
)
def test_one_record_is_changed_and_all_others_stay(spec: str, offsets: list[int | tuple[int]]) -> None:
    assert changed(spec) == [(o[0], True) if isinstance(o, tuple) else (o, False) for o in offsets]


def test_several_follow_each_other_in_the_order_given() -> None:
    assert [o for o, _ in changed("duplicate@0:12", "drop@0:12")] == [10, 11, 12, 13, 14, 15]
    assert [o for o, _ in changed("delay@0:10,records=1", "drop@0:11", "duplicate@0:15")] == [10, 12, 13, 14, 15, 15]


def test_a_place_without_a_record_is_said_and_another_partitions_is_none_of_ours() -> None:
    with pytest.raises(ReplayError, match="no record at 0:99"):
        changed("drop@0:99")
    with pytest.raises(ReplayError, match="no record at 0:12"):
        changed("drop@0:12", "drop@0:12")
    other = parse("drop@1:12")
    assert len(inject(LOG, [other], CODEC, 0)) == len(LOG) and other.applied == 0


def test_one_bit_behind_the_schemas_id_is_turned_over_and_the_seed_says_which() -> None:
    def flipped(seed: int) -> tuple[int, ...]:
        value = inject(LOG, [parse("corrupt@0:12")], CODEC, seed)[2].record.value
        before = LOG[2].value
        assert before is not None and value is not None and len(value) == len(before)
        return tuple(8 * n + bit for n in range(len(value)) for bit in range(8) if (before[n] ^ value[n]) >> bit & 1)

    found = {seed: flipped(seed) for seed in range(40)}
    assert {seed: flipped(seed) for seed in range(40)} == found
    assert all(len(bits) == 1 and bits[0] >= 80 for bits in found.values())
    assert len(set(found.values())) > 30


@pytest.mark.parametrize("value", [None, b"", b"\x00"])
def test_what_holds_next_to_nothing_is_corrupted_all_the_same(value: bytes | None) -> None:
    [item] = inject([LogRecord(0, 1, 1, 2, None, value, ())], [parse("corrupt@0:1")], CODEC, 3)
    assert (item.record.value == value) is (not value)


def test_fields_are_replaced_as_the_schema_reads_them() -> None:
    # A text stays text; what held none is JSON, and what is no JSON is text.
    spec = "replace@0:12,error_code=5,occurred_at=77,dependency=null,stack_trace=line 1"
    [item] = [i for i in inject(LOG, [parse(spec)], CODEC, 0) if i.moved]
    found = CODEC.decode(item.record.value)
    assert isinstance(found, WorkflowErrorOccurred)
    assert (found.error_code, found.occurred_at, found.dependency) == ("5", 77, None)
    assert (found.stack_trace, found.error_message) == ("line 1", "no")


def started() -> LogRecord:
    record = WorkflowStarted(
        event_id=W,
        workflow_id=W,
        workflow_type="development",
        occurred_at=1,
        producer="test",
        workflow_version="1",
        steps=(StepSpec(step_id="build"),),
    )
    return LogRecord(0, 20, 20, 2, W.encode(), CODEC.encode(record), ())


@pytest.mark.parametrize(
    ("record", "option", "said"),
    [
        (LOG[2], "nothing=1", "has no nothing"),
        (LOG[2], "occurred_at=soon", "does not allow"),
        (LOG[2], "occurred_at=99999999999999999999", "does not allow"),
        (LOG[2], "dependency=5", "does not allow"),
        (LOG[2], "error_id=none", "does not allow|cannot be read"),
        (LOG[2], f"workflow_id={COMMAND}", "cannot be read"),
        (started(), 'steps=[{"step_id": "a"}]', "does not allow"),
        (started(), "steps=5", "does not allow"),
        (LogRecord(0, 20, 20, 2, W.encode(), b"garbage", ()), "step_id=a", "cannot be read"),
        (LogRecord(0, 20, 20, 2, W.encode(), None, ()), "step_id=a", "cannot be read"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused(record: LogRecord, option: str, said: str) -> None:
    spec = f"replace@0:{record.offset},{option}"
    with pytest.raises(ReplayError, match=said) as refused:
        inject([record], [parse(spec)], CODEC, 0)
    assert refused.value.reason == "inject"


def test_a_services_failure_names_the_command_it_answers() -> None:
    command = RetryStep(
        event_id=W,
        workflow_id=W,
        workflow_type="development",
        occurred_at=1,
        producer="test",
        command_id=COMMAND,
        error_id=W,
        attempt_number=2,
        expires_at=2,
        reason="",
        actor="kintsugi",
        step_id="build",
    )
    answer = failure_of(command, "")
    assert (answer.command_id, answer.status, answer.detail) == (COMMAND, "failed", "failed by --inject")
    assert failure_of(command, "away") == failure_of(command, "away")
    assert failure_of(command, "away").detail == "away"
