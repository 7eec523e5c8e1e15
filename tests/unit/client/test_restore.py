"""Where a run goes on: its epoch and the chain of its checkpoints, and states of older versions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from kintsugi_client import ConfigError, ObjectStoreError, StateError, Workflow, restore
from kintsugi_client._schemas import claims
from kintsugi_client._schemas.canonical import canonical_bytes, chain_digest_of, digest_of, parse_state, verify_stored
from kintsugi_client._schemas.migrations import Migrations
from kintsugi_client._schemas.records import Command
from kintsugi_client._schemas.records.commands import RestartWorkflow, ResumeFromCheckpoint, ResumeWorkflow, RetryStep
from kintsugi_client._schemas.records.events import CheckpointCreated, CheckpointRejected, StateMigrated, StateRestored
from kintsugi_client._schemas.state_schema import schema_text
from kintsugi_client.inbox import Received

from .flow import Flow, spoil
from .kit import Service, wait_for


@pytest.fixture
def flow(service: Service, monkeypatch: pytest.MonkeyPatch) -> Flow:
    return Flow(service, monkeypatch)


def saved(service: Service, epoch: int) -> list[CheckpointCreated]:
    return [c for c in service.of(CheckpointCreated) if c.epoch == epoch]


def assert_linked(parent: CheckpointCreated | None, checkpoints: list[CheckpointCreated], first: int) -> None:
    """Numbers go on from `first`, links from `parent`."""
    assert checkpoints
    digest, chain = (None, None) if parent is None else (parent.digest, parent.chain_digest)
    for number, record in enumerate(checkpoints, first):
        chain = chain_digest_of(chain, record.digest)
        assert (record.sequence, record.parent_digest, record.chain_digest) == (number, digest, chain)
        digest = record.digest


def document_of(record: CheckpointCreated | StateRestored) -> dict[str, Any]:
    assert record.state is not None
    return parse_state(
        verify_stored(record.state, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
    )


# -- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
@pytest.mark.parametrize("last", [0, 40])
def test_a_run_writes_in_its_epoch_above_all_numbers_known_and_links_to_what_it_restored(
    service: Service, flow: Flow, held: bool, last: int
) -> None:
    workflow = flow.failed_workflow()
    before = saved(service, 0)
    assert [c.sequence for c in before] == [1, 2, 3, 4] and before[-1].evidence
    if not held:
        flow.forget(workflow)
    place = flow.where(workflow, 0)
    received = flow.send(ResumeFromCheckpoint, workflow, epoch=3, last_sequence=last, **place)
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    (restored,) = service.of(StateRestored)
    assert (restored.epoch, restored.checkpoint_id) == (3, before[0].checkpoint_id)
    known = max(last, 4 if held else 1)
    assert_linked(before[0], saved(service, 3), known + 1)
    assert len(saved(service, 0)) == 4


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_after_a_clean_restart_the_chain_begins_anew(service: Service, flow: Flow, held: bool) -> None:
    workflow = flow.failed_workflow()
    if not held:
        flow.forget(workflow)
    flow.send(RestartWorkflow, workflow, epoch=1, last_sequence=4, **flow.start_of(workflow))
    flow.completed(workflow)
    assert service.of(StateRestored) == []
    assert_linked(None, saved(service, 1), 5)


def test_a_run_that_goes_on_from_memory_links_to_what_is_in_memory(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(service, monkeypatch, checkpoint_types=("step_complete",))
    workflow = flow.failed_workflow()
    before = saved(service, 0)
    flow.send(RetryStep, workflow, step_id="two", epoch=1, last_sequence=1, **flow.start_of(workflow))
    flow.completed(workflow)
    assert_linked(before[-1], saved(service, 1), before[-1].sequence + 1)


def test_commands_of_an_engine_that_counts_no_runs_stay_in_the_epoch_of_the_workflow(
    service: Service, flow: Flow
) -> None:
    workflow = flow.failed_workflow()
    flow.fails["two"] = [ValueError("again")]
    service.answer(flow.send(RetryStep, workflow, step_id="two", epoch=2, **flow.where(workflow)))
    flow.forget(workflow)
    flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    flow.completed(workflow)
    assert [r.epoch for r in service.of(StateRestored)] == [2, 2]
    assert {c.epoch for c in service.of(CheckpointCreated)} == {0, 2}


def test_a_workflow_that_was_paused_goes_on_in_its_epoch(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    flow.fails["two"] = [ValueError("again")]
    service.answer(flow.send(RetryStep, workflow, step_id="two", epoch=1, **flow.where(workflow)))
    wait_for("rest", lambda: workflow.run.phase == "ended")
    workflow.pause("a look")
    flow.send(ResumeWorkflow, workflow)
    flow.completed(workflow)
    assert service.of(CheckpointCreated)[-1].epoch == 1


def test_what_a_replaced_run_would_still_write_keeps_its_epoch(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    old = workflow.run
    flow.send(RetryStep, workflow, step_id="two", epoch=1, **flow.where(workflow))
    flow.completed(workflow)
    assert (old.epoch, workflow.run.epoch) == (0, 1)


def test_a_handler_that_restores_does_so_in_the_commands_epoch(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    before = saved(service, 0)
    found: list[Workflow] = []

    @flow.kind.on("RetryStep")
    def retry(command: Command, held: Workflow | None) -> None:
        again = service.client.restore(command)
        found.append(service.client.restore(command))  # twice for one command: the same run
        assert found[0] is not again
        with found[0].step("two"):
            pass

    received = flow.send(RetryStep, workflow, step_id="two", epoch=5, last_sequence=9, **flow.where(workflow))
    assert service.answer(received) == ("succeeded", None)
    assert [r.epoch for r in service.of(StateRestored)] == [5, 5]
    assert_linked(before[2], saved(service, 5), 10)
    assert found[0].metadata["restore_count"] == 2


@pytest.mark.parametrize(("actor", "reason"), [("engine", None), ("ada", "because")])
def test_an_operators_reason_is_kept(service: Service, flow: Flow, actor: str, reason: str | None) -> None:
    workflow = flow.failed_workflow()
    received = service.command(ResumeFromCheckpoint, workflow.workflow_id, actor=actor, **flow.where(workflow))
    service.client._commands.carry_out(received)
    flow.completed(workflow)
    assert [r.reason for r in service.of(StateRestored)] == [reason]


@pytest.mark.parametrize("count", ["many", -1, 2**31, True, None, 2.5])
def test_a_count_of_restores_that_is_none_begins_anew(service: Service, flow: Flow, count: Any) -> None:
    workflow = flow.failed_workflow()
    workflow.run.metadata["restore_count"] = count
    flow.send(ResumeFromCheckpoint, workflow, **flow.where(workflow))
    flow.completed(workflow)
    assert [r.restore_count for r in service.of(StateRestored)] == [1]


# -- migrations -------------------------------------------------------------------------------------------------------


def upgrade(service: Service, flow: Flow, version: str, migrations: Migrations) -> Workflow:
    """A workflow that failed in version 1, and a service that now runs a newer one."""
    workflow = flow.failed_workflow()
    flow.forget(workflow)
    flow.kind.version, flow.kind.migrations = version, migrations
    return workflow


def chain_to_3(second: Callable[[dict[str, Any]], Any]) -> Migrations:
    migrations = Migrations()

    @migrations.add("1", "2")
    def rename(data: dict[str, Any]) -> dict[str, Any]:
        data["input"] = data.pop("in")
        return data

    migrations.add("2", "3")(second)
    return migrations


def test_a_state_of_an_older_version_is_brought_to_the_services(service: Service, flow: Flow) -> None:
    workflow = upgrade(service, flow, "3", chain_to_3(lambda data: {**data, "unit": "ms"}))
    received = flow.send(RetryStep, workflow, step_id="two", epoch=1, **flow.where(workflow))
    flow.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    first, second = service.of(StateMigrated)
    (restored,) = service.of(StateRestored)
    original = {"in": 1, "done": ["one"]}
    between, after = {"input": 1, "done": ["one"]}, {"input": 1, "done": ["one"], "unit": "ms"}
    digests = [digest_of(canonical_bytes(d)) for d in (original, between, after)]
    assert (first.from_version, first.to_version, first.digest_before, first.digest_after) == ("1", "2", *digests[:2])
    assert (second.from_version, second.to_version, second.digest_before, second.digest_after) == (
        "2",
        "3",
        *digests[1:],
    )
    command = received.command
    assert {m.command_id for m in (first, second)} == {command.command_id}
    assert {m.checkpoint_id for m in (first, second)} == {restored.checkpoint_id}
    assert restored.state_version == "3" and document_of(restored)["data"] == after
    assert [n for n in service.names if n in ("StateMigrated", "StateRestored")] == [
        "StateMigrated",
        "StateMigrated",
        "StateRestored",
    ]
    last = service.of(CheckpointCreated)[-1]
    assert last.state_version == "3"
    assert document_of(last)["data"] == {**after, "done": ["one", "two", "three"]}


def broken(data: dict[str, Any]) -> dict[str, Any]:
    data.clear()
    raise LookupError("no unit")


@pytest.mark.parametrize(
    ("version", "migrations", "reason", "said"),
    [
        ("4", chain_to_3(dict), "migration_missing", "no migration '3' -> '4' is registered"),
        ("3", chain_to_3(broken), "migration_failed", "migration '2' -> '3': LookupError: no unit"),
        ("3", chain_to_3(lambda data: {"at": {1, 2}}), "migration_failed", "$.at: set is not JSON data"),
        ("0", Migrations(), "downgrade", "it is newer than the service"),
    ],
)
def test_what_cannot_be_migrated_is_not_restored_and_says_why(
    service: Service, flow: Flow, version: str, migrations: Migrations, reason: str, said: str
) -> None:
    workflow = upgrade(service, flow, version, migrations)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    status, detail = service.answer(received)
    assert (status, service.reason(received)) == ("failed", reason) and said in (detail or "")
    assert len(flow.errors(workflow)) == 1  # that of the step
    assert not service.of(StateMigrated) and not service.of(StateRestored)


NEEDS_A_UNIT = {"type": "object", "required": ["unit"]}


@pytest.mark.parametrize("unit", ["ms", None])
def test_what_was_migrated_fits_the_schema_of_its_version(service: Service, flow: Flow, unit: str | None) -> None:
    workflow = upgrade(service, flow, "3", chain_to_3(lambda data: {**data, "unit": unit} if unit else data))
    flow.kind.state_schema = schema_text(NEEDS_A_UNIT)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    status, detail = service.answer(received)
    if unit:
        assert status == "succeeded"
        assert [m.state_schema for m in service.of(StateMigrated)] == [None, flow.kind.state_schema]
    else:
        assert (status, service.reason(received)) == ("failed", "migration_failed")
        assert "'2' -> '3': its result is refused: $.data: \"unit\" is a required property" in (detail or "")
        assert not service.of(StateMigrated)


def test_a_state_that_does_not_fit_the_schema_is_not_restored(service: Service, flow: Flow) -> None:
    workflow = flow.failed_workflow()
    flow.kind.state_schema = schema_text(NEEDS_A_UNIT)
    received = flow.send(RetryStep, workflow, step_id="two", **flow.where(workflow))
    assert service.answer(received)[0] == "failed" and service.reason(received) == "schema"
    assert not service.of(StateRestored) and not service.of(CheckpointRejected)


def test_nothing_is_migrated_before_it_is_proven(service: Service, flow: Flow) -> None:
    seen: list[dict[str, Any]] = []
    migrations = Migrations()
    migrations.add("1", "2")(lambda data: seen.append(data) or data)  # type: ignore[func-returns-value]
    workflow = upgrade(service, flow, "2", migrations)
    place = spoil(flow, workflow, digest="0" * 64, state_version="1")
    received = flow.send(RetryStep, workflow, step_id="two", **{**place, "checkpoint_digest": "0" * 64})
    assert service.answer(received)[0] == "failed" and service.reason(received) == "corrupt"
    assert seen == []


def test_migrations_are_declared_with_the_type_or_on_it(service: Service) -> None:
    migrations = chain_to_3(dict)
    kind = service.client.workflow_type("a", version="4", migrations=migrations)

    @kind.migration("3", "4")
    def last(data: dict[str, Any]) -> dict[str, Any]:
        return data

    assert kind.migrations.chain("1", "4") == ("1", "2", "3", "4")
    with pytest.raises(ConfigError, match="leads back"):
        kind.migration("4", "1")(last)
    assert not service.client.workflow_type("b").migrations


# -- object storage that is slow or away ------------------------------------------------------------------------------


def claimed(service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch, get: Callable[..., bytes]) -> Received:
    """A retry from a checkpoint whose state lies in a store that `get` stands for."""
    workflow = flow.failed_workflow()
    place = spoil(flow, workflow, state=None, claim_uri="claim:sha256:" + "0" * 64)
    monkeypatch.setattr(service.client.restorer, "_objects", object())
    monkeypatch.setattr(claims, "get", get)
    return flow.send(RetryStep, workflow, step_id="two", **place)


def test_object_storage_that_is_away_fails_the_command_in_the_end(
    service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> bytes:
        raise ObjectStoreError("no route to the store")

    monkeypatch.setattr(restore, "PATIENCE_S", 0.5)
    received = claimed(service, flow, monkeypatch, away)
    assert service.answer(received) == ("failed", "RestoreError: no route to the store")
    assert service.reason(received) == "unavailable" and not service.of(CheckpointRejected)


def test_object_storage_that_gives_no_answer_is_not_waited_for_without_end(
    service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def hangs(*_: object) -> bytes:
        let_go.wait(60)
        return b""

    monkeypatch.setattr(restore, "PATIENCE_S", 0.3)
    monkeypatch.setattr(restore, "STORE_TIMEOUT_S", 0.2)
    received = claimed(service, flow, monkeypatch, hangs)
    status, detail = service.answer(received)
    let_go.set()
    assert status == "failed" and "object storage: no answer within 0.2 s" in (detail or "")
    assert service.reason(received) == "unavailable"


def test_an_object_that_is_not_there_is_told(service: Service, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> bytes:
        raise StateError("claim_missing", "object claims/00 is not in the object store")

    received = claimed(service, flow, monkeypatch, missing)
    assert service.answer(received)[0] == "failed"
    assert service.reason(received) == "object_missing" and not service.of(CheckpointRejected)
