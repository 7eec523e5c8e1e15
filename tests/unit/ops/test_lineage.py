"""Which checkpoint a restore by step or by time means, and which steps run again after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.events import Delivered
from ops.lineage import Lineage, done_at
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CheckpointsExpired,
    StateRestored,
    StepCompensated,
    StepCompleted,
    StepSpec,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowKeyErased,
    WorkflowStarted,
)

STEPS = ("one", "two", "three")


class Story:
    """A workflow's events, a second apart; checkpoints are named by a letter."""

    def __init__(self, at_s: int | None = None) -> None:
        self.lineage = Lineage(at_us=None if at_s is None else at_s * 1_000_000)
        self.now_s = 0
        self.run_ids: dict[str, str] = {}

    def add(self, kind: type[Record], rejection: tuple[str, str] | None = None, **fields: Any) -> None:
        self.now_s += 1
        record = kind(
            event_id=derive_id("story", "event", self.now_s),
            workflow_id=derive_id("story", "workflow"),
            workflow_type="test",
            occurred_at=0,
            producer="test",
            **fields,
        )
        self.lineage.add(Delivered(record, 0, self.now_s, self.now_s * 1_000_000, rejection))

    def start(self) -> Story:
        self.add(WorkflowStarted, workflow_version="1", steps=tuple(StepSpec(step_id=s) for s in STEPS))
        return self

    def began(self, step: str) -> Story:
        self.run_ids[step] = derive_id("story", "run", self.now_s)
        self.add(StepStarted, step_id=step, step_run_id=self.run_ids[step])
        return self

    def completed(self, step: str, run_id: str | None = None) -> Story:
        self.add(StepCompleted, step_id=step, step_run_id=run_id or self.run_ids[step], duration_ms=1)
        return self

    def saved(self, name: str, step: str, kind: str = "step_complete", **fields: Any) -> Story:
        given = {"sequence": 1, "state_version": "1", "codec": "identity", "size_bytes": 2, "digest": "0" * 64,
                 "chain_digest": "0" * 64, "status": "running", "state": b"{}", **fields}  # fmt: skip
        self.add(CheckpointCreated, checkpoint_id=id_of(name), step_id=step, checkpoint_type=kind, **given)
        return self

    def restored(self, name: str | None, epoch: int = 0) -> Story:
        self.add(
            StateRestored,
            checkpoint_id=None if name is None else id_of(name),
            step_id="",
            state_version="1",
            codec="identity",
            size_bytes=2,
            digest="0" * 64,
            status="running",
            restored_at=0,
            restore_count=1,
            state=b"{}",
            epoch=epoch,
        )
        return self

    def ran(self, step: str, before: str = "", after: str = "") -> Story:
        """A run as a client writes it: start, checkpoint, checkpoint, completion."""
        self.began(step)
        if before:
            self.saved(before, step, "step_start")
        if after:
            self.saved(after, step)
        return self.completed(step)

    def before(self, step: str) -> str | None:
        found = self.lineage.before_step(step)[1]
        return None if found is None else found.checkpoint_id

    def again(self, name: str) -> list[str]:
        saved = self.lineage.nodes[id_of(name)].saved
        assert saved is not None
        return self.lineage.again(saved)


def id_of(name: str) -> str:
    return derive_id("story", name)


def whole() -> Story:
    return Story().start().ran("one", "a", "b").ran("two", "c", "d").ran("three", "e", "f")


def test_before_a_step_is_the_newest_checkpoint_from_before_it_first_began() -> None:
    story = whole()
    assert [story.before(step) for step in STEPS] == [None, id_of("b"), id_of("d")]
    assert story.lineage.before_step("four") == (False, None)


def test_a_step_that_was_tried_again_is_left_before_its_first_try() -> None:
    story = Story().start().ran("one", "a", "b").began("two").saved("c", "two", "step_start").began("two")
    assert story.before("two") == id_of("b")


def test_what_a_restore_left_behind_is_no_target_by_step_but_one_by_name() -> None:
    story = whole().restored("b").ran("two", "g", "h").began("three")
    assert story.before("three") == id_of("h")
    assert story.before("two") == id_of("b")
    assert story.again("d") == ["three"], "on its own line the second step was done"


def test_a_clean_restart_begins_the_line_anew() -> None:
    story = whole().restored(None).ran("one", after="g").began("two")
    assert story.before("two") == id_of("g")
    assert story.before("one") is None
    assert story.before("three") is None


def test_steps_that_ran_on_any_line_run_again_unless_the_checkpoint_has_them_done() -> None:
    story = whole()
    assert [story.again(name) for name in "abcdef"] == [
        ["one", "two", "three"],
        ["two", "three"],
        ["two", "three"],
        ["three"],
        ["three"],
        [],
    ]
    assert story.restored("b").again("b") == ["two", "three"], "what was undone has run all the same"


def test_a_step_that_never_began_does_not_run_again() -> None:
    story = Story().start().ran("one", "a", "b").began("two")
    assert story.again("b") == ["two"]


def test_a_compensated_step_is_done_no_more() -> None:
    story = Story().start().ran("one", "a", "b")
    story.add(StepCompensated, step_id="one", duration_ms=1)
    story.saved("c", "two", "manual")
    assert done_at(story.lineage.line) == set()
    assert story.again("c") == ["one"]
    assert story.lineage.ran["one"].status == "compensated"


def test_the_line_at_a_time_is_the_one_of_then() -> None:
    def at(second: int) -> str | None:
        story = Story(at_s=second).start().ran("one", "a", "b").ran("two", "c", "d").restored("b").ran("two", "e", "f")
        found = story.lineage.newest(story.lineage.line_at)
        return None if found is None else found.checkpoint_id

    assert [at(s) for s in (1, 3, 4, 8, 9)] == [None, id_of("a"), id_of("b"), id_of("d"), id_of("d")]
    assert at(10) == id_of("b"), "after the restore the state was that one again"
    assert at(99) == id_of("f")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"evidence": True}, "evidence"),
        ({"rejection": ("digest", "other bytes")}, "does not verify: digest"),
    ],
)
def test_what_is_no_sound_state_is_refused_and_passed_over(fields: dict[str, Any], why: str) -> None:
    story = Story().start().ran("one", "a", "b").saved("x", "one", "manual", **fields).began("two")
    assert why in story.lineage.refused[id_of("x")]
    assert story.before("two") == id_of("b")


def test_what_was_refused_later_is_passed_over_too() -> None:
    story = whole()
    story.add(CheckpointRejected, checkpoint_id=id_of("d"), step_id="two", reason="digest", detail="scrub found it")
    story.add(CheckpointsExpired, checkpoint_ids=(id_of("c"),), event_ids=(id_of("c"),), reason="max_age")
    assert story.before("three") == id_of("b")
    assert "rejected: digest" in story.lineage.refused[id_of("d")]
    assert "expired: max_age" in story.lineage.refused[id_of("c")]


def test_a_run_that_was_replaced_writes_no_targets() -> None:
    story = Story().start().ran("one", "a", "b").restored("b", epoch=1).saved("late", "two", epoch=0)
    story.saved("c", "two", epoch=1).began("three")
    assert "replaced" in story.lineage.refused[id_of("late")]
    assert story.before("three") == id_of("c")


def test_a_run_that_was_left_behind_completes_nothing() -> None:
    story = Story().start().ran("one", "a", "b").began("two")
    left = story.run_ids["two"]
    story.restored("b").completed("two", left).began("two").completed("two", left)
    assert done_at(story.lineage.line) == {"one"}
    assert done_at(story.completed("two").lineage.line) == {"one", "two"}


def test_the_end_and_erased_keys_are_known() -> None:
    story = whole()
    assert (story.lineage.ended, story.lineage.erased) == (None, False)
    story.add(WorkflowKeyErased, reason="asked", actor="ann")
    story.add(WorkflowCompleted)
    assert (story.lineage.ended, story.lineage.erased) == ("completed", True)


def test_events_that_come_twice_change_nothing() -> None:
    story = Story().start().ran("one", "a", "b").ran("two", "c", "d")
    again = replace(story.lineage)
    story.saved("b", "one")
    assert story.lineage.newest(story.lineage.line) == again.newest(again.line)
    assert story.lineage.line is again.line


def test_a_failed_step_says_so() -> None:
    story = Story().start().ran("one", "a", "b").began("two")
    story.add(WorkflowErrorOccurred, error_id=id_of("error"), step_id="two", error_code="X", error_message="x",
              detected_by="service")  # fmt: skip
    assert {step: ran.status for step, ran in story.lineage.ran.items()} == {"one": "completed", "two": "failed"}
