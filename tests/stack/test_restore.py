"""States on their way back into a service: sealed, claimed, of other versions, damaged, gone. On the real stack."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kintsugi_client import Migrations

from schemas import claims
from schemas.canonical import chain_digest_of
from schemas.keys import KeyRing
from schemas.keystore import Keystore, open_keystore
from schemas.objects import Objects
from schemas.records.commands import RestartWorkflow, ResumeFromCheckpoint, RetryStep
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    CommandAcknowledged,
    StateMigrated,
    StateRestored,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from schemas.sealing import key_number_of

from .client_kit import Desk, Here
from .kit import Role, Topics, wait_for

Serve = Callable[..., Here]
Start = Callable[..., Role]
DONE = (("accepted", False), ("succeeded", False))
REFUSED = (("accepted", False), ("failed", False))
CORRUPT = "fail:STATE_CORRUPTION"


def key_file(path: Path) -> str:
    """A new key file; its URL."""
    path.touch(mode=0o600)
    path.write_bytes(KeyRing("first", {"first": os.urandom(32)}).dump())
    return path.as_uri()


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return key_file(tmp_path / "keys.json")


@pytest.fixture
def objects(tmp_path: Path) -> str:
    """Where the roles that a test starts have their objects too."""
    return (tmp_path / "objects").as_uri()


@pytest.fixture
def keystore(keys: str, objects: str) -> Keystore:
    found = open_keystore(keys, objects)
    assert found is not None
    return found


@pytest.fixture
def sealed(serve: Serve, keys: str, objects: str) -> Serve:
    """Makes services that seal their states."""

    def make(**options: Any) -> Here:
        return serve(**{"keys": keys, "objects": objects, **options})

    return make


@pytest.fixture
def with_keys(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], keys: str) -> None:
    """Roles that a test starts are given the keys."""
    monkeypatch.setitem(environment, "KINTSUGI_KEYS", keys)


def failed(topics: Topics, here: Here, plan: dict[str, list[str]] | None = None) -> str:
    """A workflow that has failed once; its id."""
    workflow = here.kind.start({"plan": plan or {"two": ["fail:BROKEN"]}})
    of = {workflow.workflow_id}
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, of))
    return workflow.workflow_id


def taken_over(here: Here, make: Serve, **options: Any) -> Here:
    """The service's next process, after this one is gone."""
    here.client.close(5.0)
    found = make(**options)
    assert found.client.listen()
    return found


def completed(topics: Topics, workflow_id: str) -> None:
    """Several rungs of a ladder, on a machine that may be busy."""
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, {workflow_id}), 120.0)


def refusal(topics: Topics, desk: Desk, here: Here, workflow_id: str, **named: Any) -> tuple[str | None, str]:
    """(reason, detail) with which a retry from the newest checkpoint, or the one named, fails."""
    place = {**desk.where(workflow_id), **named}
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **place)
    desk.send(command)
    answer = desk.wait_answers(command, *REFUSED)[-1]
    assert topics.events(StateRestored, {workflow_id}) == []
    return answer.reason, answer.detail or ""


def rejections(topics: Topics, workflow_id: str) -> list[tuple[str, str]]:
    return [(r.checkpoint_id, r.reason) for r in topics.events(CheckpointRejected, {workflow_id})]


# -- sealed and claimed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protection", ["aes-256-gcm", "hmac-sha256"])
@pytest.mark.parametrize("claim_from_bytes", [0, 2**30], ids=["claimed", "in the log"])
def test_a_protected_state_is_restored_by_another_process(
    topics: Topics, desk: Desk, sealed: Serve, protection: str, claim_from_bytes: int
) -> None:
    options: dict[str, Any] = {"protection": protection, "claim_from_bytes": claim_from_bytes}
    workflow_id = failed(topics, first := sealed(**options))
    second = taken_over(first, sealed, **options)
    place = desk.where(workflow_id)
    command = desk.build(RetryStep, workflow_id, second.name, step_id="two", epoch=1, last_sequence=4, **place)
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    saved = topics.events(CheckpointCreated, {workflow_id})
    assert {c.protection for c in saved} == {protection}
    assert {c.claim_uri is None for c in saved} == {claim_from_bytes > 0}
    (restored,) = topics.events(StateRestored, {workflow_id})
    assert (restored.protection, restored.claim_uri is None) == (protection, claim_from_bytes > 0)
    assert second.ran(workflow_id) == ["one", "two", "two", "three"]


def test_a_key_may_be_rotated_in_the_middle_of_a_workflow(
    topics: Topics, desk: Desk, sealed: Serve, keystore: Keystore
) -> None:
    workflow_id = failed(topics, first := sealed(), {"two": ["fail:BROKEN"], "three": ["fail:BROKEN"]})
    keystore.rotate(workflow_id)
    second = taken_over(first, sealed)
    before = desk.where(workflow_id)
    for step_id in ("two", "three"):
        command = desk.build(RetryStep, workflow_id, second.name, step_id=step_id, **desk.where(workflow_id))
        desk.send(command)
        desk.wait_answers(command, *DONE)
        wait_for("the next error", lambda: len(topics.events(WorkflowErrorOccurred, {workflow_id})) == 2)
    completed(topics, workflow_id)
    numbers = [key_number_of(c.state or b"") for c in topics.events(CheckpointCreated, {workflow_id})]
    assert numbers == sorted(numbers) and set(numbers) == {1, 2}
    named = [r.checkpoint_id for r in topics.events(StateRestored, {workflow_id})]
    assert named[0] == before["checkpoint_id"] and len(named) == 2


def test_a_restart_opens_the_sealed_input(
    topics: Topics, desk: Desk, sealed: Serve, serve: Serve, objects: str
) -> None:
    workflow_id = failed(topics, first := sealed())
    (begun,) = topics.events(WorkflowStarted, {workflow_id})
    assert begun.input is None and begun.sealed is not None
    second = taken_over(first, serve, objects=objects, keys="")
    place = desk.where(workflow_id)
    command = desk.build(RestartWorkflow, workflow_id, second.name, **place)
    desk.send(command)
    assert desk.wait_answers(command, *REFUSED)[-1].reason == "key_missing"
    third = taken_over(second, sealed)
    command = desk.build(RestartWorkflow, workflow_id, third.name, epoch=1, last_sequence=4, **place)
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    assert third.ran(workflow_id) == ["one", "two", "one", "two", "three"]
    first_again = next(c for c in topics.events(CheckpointCreated, {workflow_id}) if c.epoch == 1)
    assert (first_again.parent_digest, first_again.sequence) == (None, 5)


def test_a_key_that_is_not_here_is_told_and_says_nothing_against_the_state(
    topics: Topics, desk: Desk, sealed: Serve, serve: Serve, objects: str, tmp_path: Path
) -> None:
    workflow_id = failed(topics, first := sealed())
    second = taken_over(first, sealed, keys=key_file(tmp_path / "other.json"))
    reason, detail = refusal(topics, desk, second, workflow_id)
    assert reason == "key_missing" and rejections(topics, workflow_id) == []
    third = taken_over(second, serve, objects=objects, keys="")
    reason, detail = refusal(topics, desk, third, workflow_id)
    assert reason == "key_missing" and "no keys are configured" in detail
    assert rejections(topics, workflow_id) == []


def test_a_key_that_was_erased_is_told_and_nothing_is_rejected(
    topics: Topics, desk: Desk, sealed: Serve, keystore: Keystore
) -> None:
    workflow_id = failed(topics, first := sealed())
    keystore.erase(workflow_id, actor="ada", reason="asked to")
    second = taken_over(first, sealed)
    command = desk.build(RetryStep, workflow_id, second.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    answer = desk.wait_answers(command, *REFUSED)[-1]
    assert answer.reason == "key_erased"
    assert rejections(topics, workflow_id) == [] and topics.events(StateRestored, {workflow_id}) == []


# -- what is not what was saved ---------------------------------------------------------------------------------------


def test_a_state_that_nobody_sealed_is_refused_where_states_are_sealed(
    topics: Topics, desk: Desk, serve: Serve, sealed: Serve
) -> None:
    workflow_id = failed(topics, first := serve())
    second = taken_over(first, sealed)
    reason, _ = refusal(topics, desk, second, workflow_id)
    place = desk.where(workflow_id)
    assert reason == "corrupt" and rejections(topics, workflow_id) == [(place["checkpoint_id"], "unsealed")]
    third = taken_over(second, sealed, keys_optional=True)
    command = desk.build(RetryStep, workflow_id, third.name, step_id="two", **place)
    desk.send(command)
    desk.wait_answers(command, *DONE)
    assert topics.events(CheckpointCreated, {workflow_id})[-1].protection == "aes-256-gcm"


@pytest.mark.parametrize("protected", [True, False], ids=["sealed", "in clear"])
def test_another_workflows_checkpoint_under_this_ones_name_is_refused(
    topics: Topics, desk: Desk, serve: Serve, sealed: Serve, protected: bool
) -> None:
    here = (sealed if protected else serve)()
    assert here.client.listen()
    mine, other = failed(topics, here), failed(topics, here)
    taken = [c for c in topics.events(CheckpointCreated, {other}) if not c.evidence][-1]
    swapped = dataclasses.replace(
        taken, event_id=str(uuid.uuid4()), checkpoint_id=str(uuid.uuid4()), workflow_id=mine, sequence=9
    )
    topics.put(swapped)
    place = desk.where(mine)
    assert place["checkpoint_id"] == swapped.checkpoint_id
    reason, _ = refusal(topics, desk, here, mine)
    fault = "decryption" if protected else "structure"
    assert reason == "corrupt" and rejections(topics, mine) == [(swapped.checkpoint_id, fault)]
    error = topics.events(WorkflowErrorOccurred, {mine})[-1]
    assert (error.error_code, error.reason) == ("STATE_CORRUPTION", fault)


def test_a_claim_whose_bytes_were_changed_is_corrupt(topics: Topics, desk: Desk, sealed: Serve, objects: str) -> None:
    workflow_id = failed(topics, here := sealed(claim_from_bytes=0))
    assert here.client.listen()
    saved = [c for c in topics.events(CheckpointCreated, {workflow_id}) if not c.evidence][-1]
    store = Objects(objects)
    path = claims.path_of(saved.claim_uri or "")
    stored = store.get(path) or b""
    store.put(path, stored[:-1] + bytes([stored[-1] ^ 1]))
    reason, _ = refusal(topics, desk, here, workflow_id)
    assert reason == "corrupt" and rejections(topics, workflow_id) == [(saved.checkpoint_id, "claim")]


# -- what the engine does about it ------------------------------------------------------------------------------------


def test_the_engine_goes_one_further_back_when_an_object_is_missing(
    topics: Topics, sealed: Serve, start: Start, with_keys: None, objects: str
) -> None:
    store = Objects(objects)
    saved: list[str] = []

    def lose_all_but_the_first(record: Any) -> Any:
        if type(record).__name__ == "CheckpointCreated" and record.epoch == 0:
            saved.append(record.checkpoint_id)
            if len(saved) > 1:
                store.delete(claims.path_of(record.claim_uri))
        return record

    start().wait_log("partitions assigned")
    here = sealed(claim_from_bytes=0, interceptors=[lose_all_but_the_first])
    assert here.client.listen()
    workflow_id = here.kind.start({"plan": {"two": [CORRUPT]}}).workflow_id
    of = {workflow_id}
    completed(topics, workflow_id)
    failures = [a.reason for a in topics.events(CommandAcknowledged, of) if a.status == "failed"]
    assert set(failures) - {None} == {"object_missing"}  # None: a busy machine lets a command expire
    (restored,) = topics.events(StateRestored, of)
    assert restored.checkpoint_id == saved[0]
    assert here.ran(workflow_id) == ["one", "two", "one", "two", "three"]
    assert rejections(topics, workflow_id) == []


def test_each_further_restore_goes_further_back_in_an_epoch_of_its_own(
    topics: Topics, serve: Serve, start: Start
) -> None:
    start().wait_log("partitions assigned")
    here = serve()
    assert here.client.listen()
    workflow_id = here.kind.start({"plan": {"two": [CORRUPT, CORRUPT]}}).workflow_id
    of = {workflow_id}
    completed(topics, workflow_id)
    first, second = topics.events(StateRestored, of)
    saved = topics.events(CheckpointCreated, of)
    place = {c.checkpoint_id: number for number, c in enumerate(saved)}
    assert place[second.checkpoint_id or ""] < place[first.checkpoint_id or ""]
    assert (first.restore_count, second.restore_count) == (1, 2)
    epochs = [c.epoch for c in saved]
    assert 0 < first.epoch < second.epoch and epochs == sorted(epochs)
    assert set(epochs) == {0, first.epoch, second.epoch}
    sequences = [c.sequence for c in saved]
    assert sequences == sorted(set(sequences))
    for restored in (first, second):
        parent = saved[place[restored.checkpoint_id or ""]]
        begins = next(c for c in saved if c.epoch == restored.epoch)
        assert begins.parent_digest == parent.digest
        assert begins.chain_digest == chain_digest_of(parent.chain_digest, begins.digest)
    assert rejections(topics, workflow_id) == []


def test_what_a_replaced_run_still_writes_is_never_restored(topics: Topics, serve: Serve, start: Start) -> None:
    start().wait_log("partitions assigned")
    here = serve()
    assert here.client.listen()
    workflow_id = here.kind.start({"plan": {"two": [CORRUPT, "hold"], "three": [CORRUPT]}}).workflow_id
    of = {workflow_id}
    wait_for("the second run", lambda: here.ran(workflow_id) == ["one", "two", "two"])
    # What a process would write that slept through the takeover: well-formed, and linked to its own last checkpoint.
    parent = [c for c in topics.events(CheckpointCreated, of) if c.epoch == 0][-1]
    late = []
    for _ in range(30):
        parent = dataclasses.replace(
            parent,
            event_id=str(uuid.uuid4()),
            checkpoint_id=str(uuid.uuid4()),
            sequence=parent.sequence + 1,
            parent_digest=parent.digest,
            chain_digest=chain_digest_of(parent.chain_digest, parent.digest),
            evidence=False,
        )
        late.append(parent)
    topics.put(*late)
    (here.folder / "release").touch()
    completed(topics, workflow_id)
    first, second = topics.events(StateRestored, of)
    of_first_run = {c.checkpoint_id for c in topics.events(CheckpointCreated, of) if c.epoch == first.epoch}
    assert first.epoch < second.epoch and second.checkpoint_id in of_first_run
    assert rejections(topics, workflow_id) == []


# -- versions ---------------------------------------------------------------------------------------------------------


def migrations_to_3(second: Callable[[dict[str, Any]], Any] = lambda data: {**data, "unit": "ms"}) -> Migrations:
    found = Migrations()

    @found.add("1", "2")
    def name_the_plan(data: dict[str, Any]) -> dict[str, Any]:
        data["name"] = "planned"
        return data

    found.add("2", "3")(second)
    return found


def test_a_new_version_of_a_service_brings_old_states_to_its_version(topics: Topics, desk: Desk, serve: Serve) -> None:
    workflow_id = failed(topics, first := serve(version="1"))
    second = taken_over(first, serve, version="3", migrations=migrations_to_3())
    command = desk.build(ResumeFromCheckpoint, workflow_id, second.name, **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    migrated = topics.events(StateMigrated, {workflow_id})
    assert [(m.from_version, m.to_version) for m in migrated] == [("1", "2"), ("2", "3")]
    assert migrated[0].digest_after == migrated[1].digest_before != migrated[0].digest_before
    assert {m.command_id for m in migrated} == {command.command_id}
    assert [r.state_version for r in topics.events(StateRestored, {workflow_id})] == ["3"]
    assert topics.events(CheckpointCreated, {workflow_id})[-1].state_version == "3"


def broken(data: dict[str, Any]) -> dict[str, Any]:
    raise LookupError("no unit")


@pytest.mark.parametrize(
    ("before", "after", "migrations", "reason", "said"),
    [
        ("1", "4", migrations_to_3(), "migration_missing", "no migration '3' -> '4'"),
        ("1", "3", migrations_to_3(broken), "migration_failed", "LookupError: no unit"),
        ("3", "1", migrations_to_3(), "downgrade", "newer than the service"),
    ],
)
def test_a_state_that_cannot_be_brought_there_is_not_restored(
    topics: Topics, desk: Desk, serve: Serve, before: str, after: str, migrations: Migrations, reason: str, said: str
) -> None:
    workflow_id = failed(topics, first := serve(version=before))
    second = taken_over(first, serve, version=after, migrations=migrations)
    found, detail = refusal(topics, desk, second, workflow_id)
    assert found == reason and said in detail
    assert rejections(topics, workflow_id) == [] and topics.events(StateMigrated, {workflow_id}) == []


# -- size -------------------------------------------------------------------------------------------------------------


def test_a_state_of_10_mib_is_claimed_and_restored(topics: Topics, desk: Desk, sealed: Serve) -> None:
    here = sealed()
    blob = os.urandom(5 * 1024 * 1024 - 1024).hex()
    workflow = here.kind.start({"plan": {"two": ["fail:BROKEN"]}, "blob": blob})
    workflow_id = workflow.workflow_id
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, {workflow_id}))
    here.client.work.forget(workflow)
    assert here.client.listen()
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    saved = topics.events(CheckpointCreated, {workflow_id})
    assert all(c.claim_uri and c.state is None and c.size_bytes > 10 * 1024 * 1024 - 4096 for c in saved)
