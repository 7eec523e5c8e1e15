"""States of a service on real Kafka: 10 MiB in the log and beside it, sealed, and while object storage is away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kintsugi_client import Client, ObjectStoreError
from kintsugi_client.vault import WITHHELD

from schemas import claims
from schemas.canonical import STATE_SIZE_BYTES_MAX, parse_state, verify_stored
from schemas.keys import KeyRing
from schemas.keystore import Keystore, open_keystore
from schemas.objects import Objects
from schemas.records.events import (
    CheckpointCreated,
    ErrorClassified,
    StatePersisted,
    StepCompleted,
    WorkflowErrorOccurred,
)
from schemas.sealing import SEALED_TEXT, binding_of, unseal, unseal_fields

from .client_kit import Here
from .kit import Role, Topics, wait_for

Serve = Callable[..., Here]
#: Room for all of a state but its data.
FRAME_BYTES = 4096
NOISE = os.urandom((STATE_SIZE_BYTES_MAX - FRAME_BYTES) // 2).hex()
TEXT = "kintsugi " * ((STATE_SIZE_BYTES_MAX - FRAME_BYTES) // 9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    path.write_bytes(KeyRing("first", {"first": os.urandom(32)}).dump())
    return path.as_uri()


def state_of(record: CheckpointCreated | StatePersisted, folder: Path, keys: str) -> dict[str, Any]:
    """The state that a record keeps, proven, wherever it is."""
    stored = record.state or b""
    if record.claim_uri is not None:
        stored = claims.get(Objects(folder.as_uri()), record.claim_uri)
    if record.protection != "none":
        found = keystore(folder, keys).keys_of(record.workflow_id)
        stored = unseal(stored, protection=record.protection, binding=binding_of(record), keys=found)
    return parse_state(verify_stored(stored, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest))


def keystore(folder: Path, keys: str) -> Keystore:
    found = open_keystore(keys, folder.as_uri())
    assert found is not None
    return found


@pytest.mark.parametrize("data", [NOISE, TEXT], ids=["noise", "compressible"])
@pytest.mark.parametrize("claim_from_bytes", [1024 * 1024, 2**30], ids=["beside the log", "in the log"])
@pytest.mark.parametrize("protection", ["none", "aes-256-gcm"])
def test_a_state_of_10_mib(
    topics: Topics, serve: Serve, folder: Path, keys: str, data: str, claim_from_bytes: int, protection: str
) -> None:
    options = {"objects": folder.as_uri(), "keys": "" if protection == "none" else keys}
    client = serve(**options, claim_from_bytes=claim_from_bytes).client
    workflow = client.workflow_type(f"own-{protection}").begin()
    workflow.data["data"] = data
    checkpoint_id = workflow.checkpoint()
    workflow.persist()
    of = {workflow.workflow_id}
    wait_for("the version", lambda: topics.events(StatePersisted, of))
    for record in (*topics.events(CheckpointCreated, of), *topics.events(StatePersisted, of)):
        assert record.protection == protection
        assert (record.claim_uri is not None) == (claim_from_bytes == 1024 * 1024 and data is NOISE)
        assert state_of(record, folder, keys)["data"] == {"data": data}
    assert [c.checkpoint_id for c in topics.events(CheckpointCreated, of)] == [checkpoint_id]
    assert not client.close()


def test_a_service_goes_on_while_object_storage_is_away(topics: Topics, serve: Serve, folder: Path, keys: str) -> None:
    """Keys lie there too: a workflow that has begun needs none, and its states still are sealed."""
    client = serve(objects=folder.as_uri(), keys=keys, claim_from_bytes=0).client
    workflow = client.workflow_type("own").begin({"n": 0})
    assert client.vault.keystore is not None
    shutil.move(folder, f"{folder}.away")
    folder.write_text("no folder")
    client.vault.keystore.forget()  # as after a minute
    with workflow.step("one") as step:
        step.state["n"] = 1
        with pytest.raises(ObjectStoreError):
            step.checkpoint()
    folder.unlink()
    shutil.move(f"{folder}.away", folder)
    with workflow.step("two") as step:
        step.checkpoint()
    of = {workflow.workflow_id}
    wait_for("the steps", lambda: len(topics.events(StepCompleted, of)) == 2)
    saved = topics.events(CheckpointCreated, of)
    assert [(c.checkpoint_type, c.sequence) for c in saved] == [
        ("step_start", 1),
        ("step_complete", 2),
        ("step_start", 3),
        ("manual", 4),
        ("step_complete", 5),
    ]
    assert [c.claim_uri is None for c in saved[:2]] == [True, True] and saved[3].claim_uri is not None
    assert {c.protection for c in saved} == {"aes-256-gcm"}
    assert [state_of(c, folder, keys)["data"]["n"] for c in saved] == [0, 1, 1, 1, 1]


def test_sealed_errors_are_grouped_as_clear_ones_are(
    topics: Topics, serve: Serve, start: Callable[..., Role], folder: Path, keys: str
) -> None:
    start().wait_log("partitions assigned")
    of: list[set[str]] = []
    for options in ({}, {"objects": folder.as_uri(), "keys": keys}):
        kind = serve(**options).client.workflow_type("grouped")
        workflows = [kind.begin(), kind.begin()]
        for number, workflow in enumerate(workflows):
            workflow.report_error("one", code="BROKEN", message=f"order {number} of 'ann' is broken")
        of.append({w.workflow_id for w in workflows})
    clear, sealed = of
    wait_for("their classes", lambda: len(topics.events(ErrorClassified, clear | sealed)) == 4)
    assert len({c.fingerprint for c in topics.events(ErrorClassified, clear | sealed)}) == 1
    for error in topics.events(WorkflowErrorOccurred, sealed):
        assert error.error_message == SEALED_TEXT
        assert "is broken" in unseal_fields(error, keystore(folder, keys).keys_of(error.workflow_id)).error_message


def test_an_error_is_told_without_its_texts_where_no_key_can_be_had(
    topics: Topics, addresses: Any, folder: Path, keys: str
) -> None:
    at = {"kafka": addresses.kafka, "registry": addresses.registry}
    with Client.connect("texts", **at, objects=folder.as_uri(), keys=keys) as client:
        workflow = client.workflow_type("texts").begin()
        keystore(folder, keys).erase(workflow.workflow_id, actor="tester", reason="asked to")
        assert client.vault.keystore is not None
        client.vault.keystore.forget()
        workflow.report_error("one", ValueError("a secret"))
    (error,) = topics.events(WorkflowErrorOccurred, {workflow.workflow_id})
    assert (error.error_code, error.error_message, error.checkpoint_id) == ("ValueError", WITHHELD, None)
    assert topics.events(CheckpointCreated, {workflow.workflow_id}) == []
