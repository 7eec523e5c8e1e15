"""A request for a restore is followed to its end, in whatever order the topics give their records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ops import restore
from ops.lineage import Saved
from ops.restore import Again, Plan, Restore, Step
from ops.stack import Addresses
from schemas.errors import ConfigError
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import (
    CommandAcknowledged,
    RecoveryAttemptFinished,
    RecoveryDecided,
    StateRestored,
    WorkflowCompleted,
)

WORKFLOW = derive_id("restore", "workflow")
PLAN = Plan(
    workflow_id=WORKFLOW,
    workflow_type="test",
    external_id=None,
    partition=3,
    checkpoint=Saved(
        checkpoint_id=derive_id("restore", "checkpoint"),
        step_id="one",
        checkpoint_type="manual",
        epoch=0,
        sequence=1,
        state_version="1",
        size_bytes=2,
        digest="0" * 64,
        protection="none",
        partition=3,
        offset=7,
        timestamp_us=0,
    ),
    steps=(
        Again(step_id="two", status="failed", begun=1, completed=0, idempotent=True, compensation=None),
        Again(step_id="three", status="completed", begun=1, completed=1, idempotent=False, compensation=None),
    ),
    errors=(),
    missing=(),
)


@pytest.fixture
def request_(monkeypatch: pytest.MonkeyPatch) -> Restore:
    monkeypatch.setattr(restore, "_LOOK_EVERY_S", 0.0)
    return Restore(Addresses(kafka="", registry="", postgres="", objects=""), PLAN, "because")


def record(kind: type[Record], number: int = 0, **fields: Any) -> Record:
    return kind(
        event_id=derive_id("restore", kind.__name__, number),
        workflow_id=WORKFLOW,
        workflow_type="test",
        occurred_at=0,
        producer="test",
        **fields,
    )


def decided(request: Restore, command_id: str) -> Record:
    texts = ("error_type", "strategy", "step_id", "policy_version", "rule", "evidence", "alternatives")
    return record(
        RecoveryDecided,
        causation_id=request.request.event_id,
        error_id=WORKFLOW,
        attempt_id=derive_id("restore", "attempt"),
        attempt_number=1,
        rung=1,
        command_id=command_id,
        **dict.fromkeys(texts, "x"),
    )


def command(command_id: str) -> Record:
    return record(ResumeFromCheckpoint, command_id=command_id, expires_at=0, reason="x", actor="ann")


def answer(command_id: str, status: str, **fields: Any) -> Record:
    return record(CommandAcknowledged, command_id=command_id, status=status, **fields)


def restored(command_id: str) -> Record:
    texts = dict.fromkeys(("step_id", "state_version", "codec", "status", "digest"), "x")
    return record(
        StateRestored, command_id=command_id, size_bytes=1, restored_at=0, restore_count=2, state=b"", **texts
    )


def followed(request: Restore, looks: Iterable[list[Record]], timeout_s: float = 30.0) -> list[Step]:
    """What is told when each look at the log brings these records."""
    left = iter(looks)
    request._news = lambda: iter(next(left, []))  # type: ignore[method-assign]
    return list(request.follow(timeout_s))


def test_without_a_repair_under_way_the_command_is_named_by_the_request(request_: Restore) -> None:
    mine = derive_id(request_.request.event_id, "command|ResumeFromCheckpoint")
    told = followed(request_, [[], [command(mine)], [answer(mine, "accepted"), restored(mine)]])
    assert [step.what for step in told] == ["requested", "commanded", "accepted", "restored"]
    assert told[-1].detail == "restore 2 of this workflow"


@pytest.mark.parametrize("decision_first", [True, False])
def test_in_the_place_of_a_repair_the_command_is_named_by_its_decision(request_: Restore, decision_first: bool) -> None:
    mine = derive_id("restore", "command")
    pair = [decided(request_, mine), command(mine)]
    told = followed(request_, [pair if decision_first else pair[::-1], [answer(mine, "accepted")], [restored(mine)]])
    assert [step.what for step in told] == ["requested", "commanded", "accepted", "restored"]


def test_what_others_do_to_the_workflow_is_passed_over(request_: Restore) -> None:
    mine, other = derive_id(request_.request.event_id, "command|ResumeFromCheckpoint"), derive_id("restore", "other")
    told = followed(
        request_,
        [
            [command(other), answer(other, "failed"), restored(other)],
            [answer(mine, "failed", duplicate=True), answer(mine, "accepted"), command(mine), restored(mine)],
        ],
    )
    assert [step.what for step in told] == ["requested", "accepted", "restored"], "it gets further, never back"


@pytest.mark.parametrize(
    ("end", "detail", "reason"),
    [
        (lambda mine: answer(mine, "failed", detail="too old", reason="downgrade"), "too old", "downgrade"),
        (lambda mine: answer(mine, "unknown"), "unknown", None),
        (lambda mine: record(WorkflowCompleted), "the workflow ended first", None),
    ],
)
def test_a_failure_says_why(request_: Restore, end: Any, detail: str, reason: str | None) -> None:
    mine = derive_id(request_.request.event_id, "command|ResumeFromCheckpoint")
    told = followed(request_, [[command(mine)], [end(mine)]])
    assert (told[-1].what, told[-1].detail, told[-1].reason) == ("failed", detail, reason)


def test_an_attempt_that_ended_without_an_answer_is_a_failure(request_: Restore) -> None:
    finished = record(
        RecoveryAttemptFinished,
        error_id=WORKFLOW,
        attempt_id=derive_id("restore", "attempt"),
        attempt_number=1,
        strategy="restart_from_checkpoint",
        outcome="unknown",
        action_taken="x",
        error_message="no service accepted the command in time",
        duration_ms=1,
    )
    told = followed(request_, [[decided(request_, WORKFLOW)], [finished]])
    assert told[-1] == Step(what="failed", detail="no service accepted the command in time")


@pytest.mark.parametrize(
    ("looks", "hint"),
    [([], "recovery process"), (["commanded"], "up and listening"), (["commanded", "accepted"], "not restored")],
)
def test_when_the_time_is_over_it_says_what_was_waited_for(request_: Restore, looks: list[str], hint: str) -> None:
    mine = derive_id(request_.request.event_id, "command|ResumeFromCheckpoint")
    records = {"commanded": command(mine), "accepted": answer(mine, "accepted")}
    told = followed(request_, [[records[look] for look in looks]], timeout_s=0.0)
    assert told[-1].what == "timed_out" and hint in told[-1].detail


def test_the_request_names_the_checkpoint_as_the_log_has_it(request_: Restore) -> None:
    asked, saved = request_.request, PLAN.checkpoint
    assert (asked.checkpoint_partition, asked.checkpoint_offset, asked.checkpoint_digest) == (3, 7, saved.digest)
    assert PLAN.not_idempotent == 1


@pytest.mark.parametrize("reason", ["", "x" * 1001])
def test_a_reason_is_neither_empty_nor_a_novel(reason: str) -> None:
    with pytest.raises(ConfigError, match="reason"):
        Restore(Addresses(kafka="", registry="", postgres="", objects=""), PLAN, reason)
