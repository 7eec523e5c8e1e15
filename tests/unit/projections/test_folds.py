"""Given a workflow's events, when folded, then these rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings

from engine.events import Delivered
from engine.policy import default_policy
from engine.testing import Service, World
from projections.catalog import TABLES
from projections.fold import Rows, fold, touched
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    DebugSessionFinished,
    DebugSessionStarted,
    InterventionClaimed,
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    StatePersisted,
    StateRestored,
    StepSpec,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowResumed,
)
from schemas.sealing import SECRET_BYTES, DataKey, binding_of, seal

from ..engine.test_ladders import damaged, saved
from ..engine.test_properties import POLICY, moves, play

PLAN = touched(TABLES)
COLUMNS = {table.name: [column.name for column in table.columns] for table in TABLES}
STEPS = (StepSpec(step_id="build"), StepSpec(step_id="test", depends_on=("build",)))


def tables(events: list[Delivered]) -> Rows:
    rows: Rows = {}
    fold(rows, events, PLAN)
    return rows


def named(rows: Rows, table: str) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS[table], row, strict=True)) for row in rows.get(table, {}).values()]


def only(rows: Rows, table: str) -> dict[str, Any]:
    (row,) = named(rows, table)
    return row


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, STEPS)


def test_a_healthy_workflow_is_one_row_that_ends_completed(world: World, service: Service) -> None:
    for step in ("build", "test"):
        service.start(step)
        service.complete(step)
    service.emit(WorkflowCompleted)
    row = only(tables(world.log), "workflows")
    assert (row["status"], row["steps"], orjson.loads(row["completed"])) == ("completed", 2, ["build", "test"])
    assert row["started_at"] and row["ended_at"]
    assert (row["log_partition"], row["first_offset"]) == (0, 0)


def test_an_error_its_attempt_and_its_end_are_followed(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    open_ = tables(world.log)
    assert only(open_, "workflows")["status"] == "recovering"
    error = only(open_, "workflow_errors")
    assert (error["error_type"], error["status"], error["recovery_successful"]) == ("timeout", "recovering", None)
    attempt = only(open_, "workflow_recovery_attempts")
    assert (attempt["status"], attempt["success"], attempt["attempt_number"]) == ("sent", None, 1)
    command = world.commands[-1]
    service.acknowledge(command)
    assert only(tables(world.log), "workflow_recovery_attempts")["status"] == "accepted"
    service.start("build", command)
    service.complete("build", command)
    ended = tables(world.log)
    assert only(ended, "workflows")["status"] == "running"
    error = only(ended, "workflow_errors")
    assert (error["status"], error["recovery_successful"], error["recovery_attempts"]) == ("recovered", True, 1)
    assert error["recovery_strategy"] == "increase_timeout_and_retry"
    attempt = only(ended, "workflow_recovery_attempts")
    assert (attempt["status"], attempt["success"], attempt["error_id"]) == ("succeeded", True, error["id"])
    assert attempt["rule"].startswith("recovery_strategies.timeout: rung 1")
    assert "deadline of 1200000 ms" in attempt["action_taken"]


def test_a_failed_attempt_is_false_and_its_repetition_joins_the_first_error(world: World, service: Service) -> None:
    service.start("build")
    first = service.fail("build", "TIMEOUT")
    command = world.commands[-1]
    service.acknowledge(command)
    service.start("build", command)
    second = service.fail("build", "TIMEOUT", command)
    rows = tables(world.log)
    attempts = named(rows, "workflow_recovery_attempts")
    assert [(a["attempt_number"], a["status"], a["success"]) for a in attempts] == [
        (1, "failed", False),
        (2, "sent", None),
    ]
    assert {a["error_id"] for a in attempts} == {first.error_id}
    errors = {e["id"]: e for e in named(rows, "workflow_errors")}
    assert (errors[first.error_id]["status"], errors[first.error_id]["recovery_attempts"]) == ("recovering", 2)
    assert (errors[second.error_id]["status"], errors[second.error_id]["root_error_id"]) == ("joined", first.error_id)


def test_an_attempt_nobody_answers_is_unknown_and_neither_true_nor_false(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "TIMEOUT")
    world.advance(16_000)
    first = named(tables(world.log), "workflow_recovery_attempts")[0]
    assert (first["status"], first["success"]) == ("unknown", None)


def test_a_wait_is_decided_first_and_sent_when_its_timer_fired(world: World, service: Service) -> None:
    service.start("build")
    service.fail("build", "Boom")
    decision = service.decisions[0]
    assert decision.execute_after_ms > 0
    assert only(tables(world.log), "workflow_recovery_attempts")["status"] == "decided"
    world.advance(decision.execute_after_ms)
    row = only(tables(world.log), "workflow_recovery_attempts")
    assert (row["status"], row["sent_at"] is not None) == ("sent", True)


def test_a_human_is_asked_and_answers(world: World, service: Service) -> None:
    service.start("build")
    error = service.fail("build", "Boom")
    request = _until_human(world, service)
    asked = tables(world.log)
    assert only(asked, "workflows")["status"] == "waiting_for_human"
    assert only(asked, "workflows")["reason"]
    assert named(asked, "workflow_errors")[0]["status"] == "waiting_for_human"
    row = only(asked, "workflow_interventions")
    assert (row["status"], row["error_id"], row["trigger"]) == (
        "open",
        error.error_id,
        "all_recovery_strategies_failed",
    )
    assert row["deadline_at"] - row["requested_at"] == 86_400_000_000
    service.emit(
        InterventionResolved,
        intervention_id=request.intervention_id,
        error_id=error.error_id,
        step_id="build",
        decision="retry",
        reason="fixed the disk",
        actor="ann",
    )
    answered = tables(world.log)
    row = only(answered, "workflow_interventions")
    assert (row["status"], row["decision"], row["actor"], row["resolution"]) == (
        "resolved",
        "retry",
        "ann",
        "fixed the disk",
    )
    assert only(answered, "workflows")["status"] == "recovering"


def test_an_intervention_says_what_can_be_done_and_who_looks_after_it(world: World, service: Service) -> None:
    service.start("build")
    error = service.fail("build", "Boom")
    request = _until_human(world, service)
    row = only(tables(world.log), "workflow_interventions")
    assert "retry" in orjson.loads(row["options"])
    assert row["fingerprint"] == named(tables(world.log), "workflow_errors")[0]["fingerprint"]
    assert (row["claimed_by"], row["edited"]) == (None, False)
    service.emit(InterventionClaimed, intervention_id=request.intervention_id, actor="ann")
    fields = {"intervention_id": request.intervention_id, "error_id": error.error_id, "step_id": "build"}
    service.emit(InterventionResolved, decision="no such", reason="r", actor="eve", **fields)
    row = only(tables(world.log), "workflow_interventions")
    assert (row["status"], row["claimed_by"]) == ("open", "ann")
    assert only(tables(world.log), "workflows")["status"] == "waiting_for_human"
    service.emit(InterventionResolved, decision="retry_edited", reason="r", actor="ann", edit="{}", **fields)
    service.emit(InterventionClaimed, intervention_id=request.intervention_id, actor="eve")
    row = only(tables(world.log), "workflow_interventions")
    assert (row["status"], row["decision"], row["claimed_by"], row["edited"]) == (
        "resolved",
        "retry_edited",
        "ann",
        True,
    )


def test_an_intervention_point_is_no_error(world: World, service: Service) -> None:
    service.emit(InterventionPointReached, step_id="build", reason="big")
    made = tables(world.log)
    assert named(made, "workflow_errors") == []
    row = only(made, "workflow_interventions")
    assert (row["trigger"], row["reason"]) == ("intervention_point", "big")
    assert only(made, "workflows")["status"] == "waiting_for_human"


def _until_human(world: World, service: Service) -> InterventionRequested:
    for _ in range(10):
        world.advance(10_000)  # longer than the backoff, shorter than the wait for an answer
        found = world.records(InterventionRequested)
        if found:
            return found[0]
        command = world.commands[-1]
        service.acknowledge(command)
        service.start("build", command)
        service.fail("build", "Boom", command)
    raise AssertionError("no human was asked")


def test_a_pause_shows_until_it_ends(world: World, service: Service) -> None:
    service.emit(WorkflowPaused, reason="maintenance", actor="ann")
    assert only(tables(world.log), "workflows")["status"] == "paused"
    service.emit(WorkflowResumed, reason="done", actor="ann")
    assert only(tables(world.log), "workflows")["status"] == "running"


def test_checkpoints_are_one_row_each_and_a_damaged_one_shows_no_state(world: World, service: Service) -> None:
    service.start("build")
    good = service.checkpoint("build", saved)
    bad = service.checkpoint("build", damaged)
    rows = {r["id"]: r for r in named(tables(world.log), "workflow_checkpoints")}
    fine, broken = rows[good.checkpoint_id], rows[bad.checkpoint_id]
    assert (fine["verified"], orjson.loads(fine["state_data"])["step_id"]) == (True, "build")
    assert (fine["checksum"], fine["log_offset"] > 0) == (good.digest, True)
    assert (broken["verified"], broken["rejection"].split(":")[0]) == (False, "digest")
    assert orjson.loads(broken["state_data"])["$kintsugi"] == "unreadable"
    history = named(tables(world.log), "workflow_state_history")
    assert [h["id"] for h in history] == [good.event_id], "only states that verified have a version"


def test_a_rejection_has_a_row_of_its_own(world: World, service: Service) -> None:
    service.start("build")
    bad = service.checkpoint("build", damaged)
    row = only(tables(world.log), "workflow_checkpoint_rejections")
    (fact,) = world.records(CheckpointRejected)
    assert (row["id"], row["checkpoint_id"], row["workflow_id"]) == (
        fact.event_id,
        bad.checkpoint_id,
        service.workflow_id,
    )
    assert (row["reason"], row["detected_by"], row["step_id"]) == ("digest", "arrival", "build")


@pytest.mark.parametrize(
    ("protection", "rejection", "verified"),
    [
        ("none", ("digest", "not those"), False),
        ("none", ("unsealed", "nobody sealed it"), True),
        ("aes-256-gcm", ("decryption", "not with this key"), True),
        ("hmac-sha256", ("digest", "not those"), True),
    ],
)
def test_a_row_is_the_same_whatever_keys_its_reader_has(
    world: World, service: Service, protection: str, rejection: tuple[str, str], verified: bool
) -> None:
    """What only a holder of keys can say is in the log, as CheckpointRejected."""
    service.checkpoint("build", saved)
    (event,) = [e for e in world.log if isinstance(e.record, CheckpointCreated)]
    assert isinstance(event.record, CheckpointCreated)
    record = replace(event.record, protection=protection)
    if protection != "none":
        key = DataKey(record.workflow_id, 1, bytes(SECRET_BYTES))
        sealed = seal(record.state or b"", key, protection=protection, binding=binding_of(record))
        record = replace(record, state=sealed)
    rows = tables([replace(event, record=record, rejection=rejection, state=None)])
    assert only(rows, "workflow_checkpoints")["verified"] == verified
    assert len(rows.get("workflow_state_history", {})) == verified


def test_a_claimed_checkpoint_shows_its_place(world: World, service: Service) -> None:
    def claimed(workflow_id: str, step_id: str) -> dict[str, object]:
        return {**saved(workflow_id, step_id), "state": None, "claim_uri": "claim:sha256:00", "epoch": 3}

    service.checkpoint("build", claimed)
    rows = tables(world.log)
    row = only(rows, "workflow_checkpoints")
    assert (row["verified"], row["epoch"], row["codec"], row["protection"]) == (True, 3, "identity", "none")
    assert row["claim_uri"] == "claim:sha256:00"
    assert orjson.loads(row["state_data"])["$kintsugi"] == "claim"
    assert only(rows, "workflow_state_history")["state_data"] == row["state_data"]


def test_sealed_texts_of_an_error_stay_sealed(world: World, service: Service) -> None:
    service.emit(
        WorkflowErrorOccurred,
        error_id=world.new_id(),
        step_id="build",
        error_code="Boom",
        error_message="(sealed)",
        detected_by="detector:state_corruption",
        reason="decryption",
        fingerprint="f",
        sealed=b"KS...",
    )
    row = only(tables(world.log), "workflow_errors")
    assert (row["error_message"], row["stack_trace"], row["context"]) == ("(sealed)", None, None)
    assert (row["sealed"], row["reason"]) == (b"KS...", "decryption")


def test_versions_of_the_state_are_kept_with_where_they_came_from(world: World, service: Service) -> None:
    service.start("build")
    checkpoint = service.checkpoint("build", saved)
    kept = saved(service.workflow_id, "build")
    service.emit(StatePersisted, step_id="build", version="7", state_version="1", status="running", **kept)
    service.emit(
        StateRestored,
        checkpoint_id=checkpoint.checkpoint_id,
        step_id="build",
        state_version="1",
        status="running",
        restored_at=world.now_us,
        restore_count=2,
        epoch=2,
        reason="an operator asked",
        **kept,
    )
    rows = tables(world.log)
    history = named(rows, "workflow_state_history")
    assert [(h["version"], h["source"], h["restore_count"]) for h in history] == [
        ("1", "checkpoint", 0),
        ("7", "persisted", 0),
        ("r2", "restored", 2),
    ]
    assert history[-1]["restored_from"] == checkpoint.checkpoint_id
    assert [(h["epoch"], h["restored_at"], h["reason"]) for h in history] == [
        (0, None, None),
        (None, None, None),
        (2, world.now_us, "an operator asked"),
    ]
    assert only(rows, "workflows")["restores"] == 2


def test_a_debug_session_has_a_beginning_and_an_end(world: World, service: Service) -> None:
    session_id = world.new_id()
    service.emit(DebugSessionStarted, session_id=session_id, session_type="replay", actor="ann", config="{}")
    assert only(tables(world.log), "workflow_debug_sessions")["status"] == "running"
    service.emit(DebugSessionFinished, session_id=session_id, status="finished", results='{"decisions": 3}')
    row = only(tables(world.log), "workflow_debug_sessions")
    assert (row["status"], orjson.loads(row["results"])) == ("finished", {"decisions": 3})


def test_an_error_after_the_end_is_kept_and_ignored(world: World, service: Service) -> None:
    service.emit(WorkflowCompleted)
    service.fail("build", "Boom")
    rows = tables(world.log)
    assert only(rows, "workflow_errors")["status"] == "ignored"
    assert only(rows, "workflows")["status"] == "completed"


def test_a_workflow_never_started_has_a_row_without_a_start(world: World) -> None:
    stray = Service(world)
    stray.fail("build", "Boom")
    row = only(tables(world.log), "workflows")
    assert (row["started_at"], row["version"], row["status"]) == (None, None, "recovering")


def test_no_workflow_changes_the_rows_of_another(world: World, service: Service) -> None:
    service.start("build")
    error = service.fail("build", "TIMEOUT")
    before = tables(world.log)["workflow_errors"][error.error_id]
    stranger = Service(world, STEPS)
    world.append(
        stranger.build(
            WorkflowErrorOccurred,
            error_id=error.error_id,
            step_id="build",
            error_code="Boom",
            error_message="not yours",
            detected_by="service",
        )
    )
    world.settle()
    assert tables(world.log)["workflow_errors"][error.error_id] == before


@settings(max_examples=100, deadline=None)
@given(moves)
def test_events_that_come_twice_change_nothing_but_the_time_of_change(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    once = tables(world.log)
    twice = tables([event for event in world.log for _ in range(2)])
    assert once == twice


@settings(max_examples=100, deadline=None)
@given(moves)
@example(
    [  # a decision comes again after its repair is over
        ("start", "a"),
        ("start", "a"),
        ("start", "b"),
        ("start", "c"),
        ("complete", "a"),
        ("wait", 400000),
        ("start", "a"),
        ("complete", "c"),
        ("again", 189),
    ]
)
def test_tables_agree_with_the_engine_about_what_is_open(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    service = Service(world, STEPS)
    play(world, service, made)
    world.advance(60 * 24 * 3_600_000)
    rows = tables(world.log)
    states = {e["id"]: e["status"] for e in named(rows, "workflow_errors")}
    assert {i for i, s in states.items() if s in ("open", "recovering", "waiting_for_human")} == set(
        service.state.cases or {}
    )
    open_attempts = {a["id"] for a in named(rows, "workflow_recovery_attempts") if a["finished_at"] is None}
    assert open_attempts == {c.attempt.decision.attempt_id for c in (service.state.cases or {}).values() if c.attempt}
    assert set(orjson.loads(only(rows, "workflows")["repairs"])) == set(service.state.cases or {})
