"""Sealed states and texts, large states in object storage, and what happens when either place is away."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import resource
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kintsugi_client import ConfigError, ObjectStoreError, RetriableError, StateError, StepContext
from kintsugi_client._schemas import claims
from kintsugi_client._schemas.canonical import parse_state, verify_stored
from kintsugi_client._schemas.fingerprint import fingerprint_of
from kintsugi_client._schemas.keystore import Keystore, open_keystore
from kintsugi_client._schemas.objects import Objects
from kintsugi_client._schemas.records import Record
from kintsugi_client._schemas.records.commands import CancelWorkflow, RetryStep
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    StatePersisted,
    StateRestored,
    StepProgressed,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from kintsugi_client._schemas.sealing import SEALED_TEXT, binding_of, seal_fields, unseal, unseal_fields
from kintsugi_client.vault import WITHHELD

from .conftest import Connect
from .kit import Service, wait_for

Kept = CheckpointCreated | StatePersisted | StateRestored
#: Low, so that tests need no megabytes.
FROM_BYTES = 20_000
SECRET = "nobody reads this"


def noise(size_bytes: int) -> str:
    """Text that hardly compresses."""
    return base64.b64encode(random.Random(size_bytes).randbytes(size_bytes * 3 // 4)).decode()


class Places:
    """An object store in a folder and a key in the environment; both can be taken away."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.url = folder.as_uri()
        monkeypatch.setenv("TEST_KEK", base64.b64encode(os.urandom(32)).decode())
        self.keys = "env:TEST_KEK"
        self.objects = Objects(self.url)
        store = open_keystore(self.keys, self.url)
        assert store is not None
        self.keystore: Keystore = store

    def away(self) -> None:
        """A file stands where the folder was: nothing can be read or written."""
        shutil.move(self.folder, f"{self.folder}.away")
        self.folder.write_text("")

    def back(self) -> None:
        self.folder.unlink()
        shutil.move(f"{self.folder}.away", self.folder)

    def state_of(self, record: Kept) -> dict[str, Any]:
        """The state that a record keeps, proven, wherever it is."""
        stored = record.state or b""
        if record.claim_uri is not None:
            assert not record.state
            stored = claims.get(self.objects, record.claim_uri)
        if record.protection != "none":
            keys = self.keystore.keys_of(record.workflow_id)
            stored = unseal(stored, protection=record.protection, binding=binding_of(record), keys=keys)
        data = verify_stored(stored, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
        return parse_state(data)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(tmp_path / "objects", monkeypatch)


@pytest.fixture
def claiming(connect: Connect, places: Places) -> Service:
    """A client with object storage."""
    return connect(objects=places.url, claim_from_bytes=FROM_BYTES)


@pytest.fixture
def sealing(connect: Connect, places: Places) -> Service:
    """A client with object storage and keys."""
    return connect(objects=places.url, keys=places.keys, claim_from_bytes=FROM_BYTES)


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


# -- object storage -------------------------------------------------------------------------------------------------


def test_large_states_are_in_object_storage_before_the_log_names_them(claiming: Service, places: Places) -> None:
    seen: list[bool] = []
    send = claiming.outbox.send

    def sending(record: Record, *, parent: str | None = None) -> Any:
        if isinstance(record, CheckpointCreated | StatePersisted) and record.claim_uri is not None:
            seen.append(places.state_of(record)["data"]["text"] == text)
        return send(record, parent=parent)

    claiming.outbox.send = sending  # type: ignore[method-assign]
    text = noise(2 * FROM_BYTES)
    workflow = claiming.client.workflow_type("t", checkpoint_types=("step_complete",)).begin({"text": "small"})
    with workflow.step("one") as step:
        step.checkpoint()
        step.state["text"] = text
        step.checkpoint()
        step.persist()
    assert seen == [True, True, True]
    assert [c.claim_uri is None for c in claiming.of(CheckpointCreated)] == [True, False, False]
    assert [c.state for c in claiming.of(CheckpointCreated)[1:]] == [None, None]
    assert [p.state for p in claiming.of(StatePersisted)] == [b""]
    assert claiming.client.stats()["claimed"] == 3


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize(
    "text", [noise(9 * 1024 * 1024), "ab" * (4 * 1024 * 1024 + 1000)], ids=["noise", "compressible"]
)
def test_a_state_of_almost_10_mib(connect: Connect, places: Places, text: str, sealed: bool) -> None:
    service = connect(objects=places.url, keys=places.keys if sealed else "")
    service.client.workflow_type("t").begin({"text": text}).checkpoint()
    (found,) = service.of(CheckpointCreated)
    assert places.state_of(found)["data"] == {"text": text}
    assert (found.claim_uri is not None) == (text[0] != "a")
    assert found.codec == "gzip"


def test_without_object_storage_large_states_go_into_the_log(service: Service) -> None:
    service.client.workflow_type("t").begin({"text": noise(9 * 1024 * 1024)}).checkpoint()
    (found,) = service.of(CheckpointCreated)
    assert found.claim_uri is None and found.state is not None and len(found.state) > 5 * 1024 * 1024


def test_while_object_storage_is_away_the_caller_is_told_and_automatic_ones_go_into_the_log(
    claiming: Service, places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = claiming.client.workflow_type("t").begin({"text": noise(2 * FROM_BYTES)})
    places.away()
    with workflow.step("one") as step:
        before = workflow.chain
        for call in (step.checkpoint, step.persist, workflow.checkpoint):
            with pytest.raises(ObjectStoreError):
                call()
        assert workflow.chain == before
    places.back()
    found = claiming.of(CheckpointCreated)
    assert [(c.checkpoint_type, c.sequence, c.claim_uri) for c in found] == [
        ("step_start", 1, None),
        ("step_complete", 2, None),
    ]
    assert [places.state_of(c)["completed_steps"] for c in found] == [[], ["one"]]
    assert claiming.client.stats()["claims_inline"] == 2
    assert "large states go into the log" in caplog.text
    workflow.checkpoint()  # back again: manual ones always try
    assert claiming.of(CheckpointCreated)[-1].claim_uri is not None
    with workflow.step("two"):
        pass
    assert [c.claim_uri is None for c in claiming.of(CheckpointCreated)[-2:]] == [False, False]


def test_what_does_not_fit_the_log_either_is_lost_and_counted(
    claiming: Service, places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = claiming.client.workflow_type("t").begin({"text": noise(2 * FROM_BYTES)})
    places.away()
    claiming.outbox.full_for = {"CheckpointCreated"}
    with workflow.step("one"):
        pass
    assert claiming.client.stats()["unsaved"] == 2
    assert "is lost" in caplog.text and workflow.completed == ["one"]


def test_object_storage_that_never_answers_is_waited_for_within_a_bound(
    connect: Connect, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kintsugi_client.vault.CLAIM_TIMEOUT_S", 0.2)
    for name, value in (("ENDPOINT_URL", silent), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "none")
    service = connect(objects="s3://bucket/folder", claim_from_bytes=FROM_BYTES)
    workflow = service.client.workflow_type("t", checkpoint_types=("step_complete",)).begin(
        {"text": noise(2 * FROM_BYTES)}
    )
    with workflow.step("one") as step, pytest.raises(ObjectStoreError, match=r"no answer within 0\.2 s"):
        step.checkpoint()
    assert [c.claim_uri for c in service.of(CheckpointCreated)] == [None]


def test_a_full_disk_is_told(claiming: Service) -> None:
    workflow = claiming.client.workflow_type("t").begin({"text": noise(2 * FROM_BYTES)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FROM_BYTES // 2, hard))
    try:
        with pytest.raises(ObjectStoreError, match="could not be written"):
            workflow.checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    workflow.checkpoint()
    assert [c.sequence for c in claiming.of(CheckpointCreated)] == [1]


def test_a_command_does_not_wait_for_a_slow_upload(claiming: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is replaced at once; what was being saved for the old one is not recorded."""
    uploading, release = threading.Event(), threading.Event()
    put = claims.put

    def slow(objects: Objects, stored: bytes) -> str:
        uploading.set()
        release.wait(20)
        return put(objects, stored)

    monkeypatch.setattr("kintsugi_client.vault.claims.put", slow)
    workflow = claiming.client.workflow_type("t").begin({"text": noise(2 * FROM_BYTES)})
    ended: list[BaseException] = []

    def save() -> None:
        try:
            workflow.checkpoint()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    assert uploading.wait(20)
    claiming.carry_out(CancelWorkflow, workflow.workflow_id, workflow_type="t")
    assert workflow.status == "cancelled"
    release.set()
    thread.join()
    assert [type(error).__name__ for error in ended] == ["SupersededError"]
    assert claiming.of(CheckpointCreated) == []


def test_the_event_loop_goes_on_during_an_upload(
    claiming: Service, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    put = claims.put

    def slow(objects: Objects, stored: bytes) -> str:
        assert release.wait(20)
        return put(objects, stored)

    monkeypatch.setattr("kintsugi_client.vault.claims.put", slow)

    async def flow() -> None:
        workflow = claiming.client.workflow_type("t", checkpoint_types=()).begin(
            {"text": noise(2 * FROM_BYTES), "n": 0}
        )
        async with workflow.step("one") as step:
            saving = []
            for number in range(3):
                step.state["n"] = number
                saving.append(asyncio.create_task(step.checkpoint_async()))
                await asyncio.sleep(0)
            step.state["n"] = "changed later"
            release.set()  # the loop was here while all three waited
            await asyncio.gather(*saving)

    asyncio.run(flow())
    found = claiming.of(CheckpointCreated)
    assert [c.sequence for c in found] == [1, 2, 3]
    states = [places.state_of(record) for record in found]
    assert [state["data"]["n"] for state in states] == [0, 1, 2]


# -- seals ----------------------------------------------------------------------------------------------------------


def clear_bytes(service: Service) -> bytes:
    """All that was written, as it lies in the log."""
    return b"".join(repr(record).encode() for record in list(service.outbox.records))


def test_with_keys_nothing_of_the_service_is_in_clear(sealing: Service, places: Places) -> None:
    kind = sealing.client.workflow_type("t")
    workflow = kind.begin({"secret": SECRET})

    def work() -> None:
        with workflow.step("one") as step:
            step.checkpoint()
            step.persist()
            step.heartbeat(0.5, message=SECRET)
            step.error_context["secret"] = SECRET
            raise RuntimeError(SECRET)

    with pytest.raises(RuntimeError):
        work()
    workflow.complete({"secret": SECRET})
    assert SECRET.encode() not in clear_bytes(sealing)
    keys = places.keystore.keys_of(workflow.workflow_id)
    for record in (*sealing.of(CheckpointCreated), *sealing.of(StatePersisted)):
        assert record.protection == "aes-256-gcm"
        assert places.state_of(record)["data"] == {"secret": SECRET}
    (started,) = sealing.of(WorkflowStarted)
    assert unseal_fields(started, keys).input == f'{{"secret":"{SECRET}"}}'
    assert unseal_fields(sealing.of(WorkflowCompleted)[0], keys).result == f'{{"secret": "{SECRET}"}}'
    assert unseal_fields(sealing.of(StepProgressed)[0], keys).message == SECRET
    (told,) = sealing.of(WorkflowErrorOccurred)
    error = unseal_fields(told, keys)
    assert (told.error_message, told.stack_trace, told.context) == (SEALED_TEXT, None, None)
    assert error.error_message == SECRET and SECRET in (error.context or "")
    assert told.error_code == "RuntimeError"
    assert told.fingerprint == fingerprint_of("t", "one", "RuntimeError", SECRET, error.stack_trace)


def test_answers_to_commands_are_sealed(sealing: Service, places: Places) -> None:
    kind = sealing.client.workflow_type("t")
    workflow = kind.begin()

    @kind.on("CancelWorkflow")
    def fail(command: object, workflow: object) -> None:
        raise RuntimeError(SECRET)

    received = sealing.carry_out(CancelWorkflow, workflow.workflow_id, workflow_type="t")
    wait_for("an answer", lambda: sealing.answers(received))
    (answer,) = sealing.of(CommandAcknowledged)
    assert answer.detail is None
    keys = places.keystore.keys_of(workflow.workflow_id)
    assert SECRET in (unseal_fields(answer, keys).detail or "")


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_sealed_edit_is_opened_with_the_workflows_key(sealing: Service, places: Places, spoiled: bool) -> None:
    kind = sealing.client.workflow_type("development")
    found: list[dict[str, Any]] = []

    @kind.step("one")
    def one(ctx: StepContext) -> None:
        found.append(dict(ctx.state))
        if len(found) == 1:
            raise ValueError("broken")

    workflow = kind.start({"n": 1})
    wait_for("rest", lambda: workflow.run.phase == "ended")
    received = sealing.command(RetryStep, workflow.workflow_id, step_id="one", edit=f'{{"n": "{SECRET}"}}')
    sealed = seal_fields(received.command, places.keystore.current(workflow.workflow_id))
    assert isinstance(sealed, RetryStep) and sealed.edit is None
    if spoiled:
        sealed = replace(sealed, sealed=b"KS" + (sealed.sealed or b"")[2:-1] + b"?")
    sealing.client._commands.carry_out(replace(received, command=sealed))
    status, _ = sealing.answer(received)
    if spoiled:
        assert (status, sealing.reason(received), len(found)) == ("failed", "edit_invalid", 1)
    else:
        assert (status, found[1:]) == ("succeeded", [{"n": SECRET}])


def test_by_option_states_are_only_authenticated(connect: Connect, places: Places) -> None:
    service = connect(objects=places.url, keys=places.keys, protection="hmac-sha256")
    workflow = service.client.workflow_type("t").begin({"n": 1})
    with pytest.raises(RuntimeError), workflow.step("one"):
        raise RuntimeError("in clear")
    assert {c.protection for c in service.of(CheckpointCreated)} == {"hmac-sha256"}
    assert places.state_of(service.of(CheckpointCreated)[0])["data"] == {"n": 1}
    (error,) = service.of(WorkflowErrorOccurred)
    assert (error.error_message, error.sealed, error.fingerprint) == ("in clear", None, None)


def test_a_workflow_is_not_begun_without_its_key(
    sealing: Service, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = sealing.client.workflow_type("t")
    kind.step("one")(lambda ctx: None)
    monkeypatch.setattr("kintsugi_client.vault.KEYS_AWAY_S", 0.0)
    places.away()
    for start in (kind.begin, kind.start):
        with pytest.raises(RetriableError):
            start()
    assert sealing.names == [] and sealing.client.workflows() == []
    places.back()
    kind.begin()


def test_a_keystore_that_never_answers_is_waited_for_within_a_bound(
    sealing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kintsugi_client.vault.KEY_TIMEOUT_S", 0.1)
    release = threading.Event()
    monkeypatch.setattr(Keystore, "current", lambda *_: release.wait(20))
    kind = sealing.client.workflow_type("t")
    with pytest.raises(RetriableError, match=r"no answer within 0\.1 s"):
        kind.begin()
    began_s = time.monotonic()
    for _ in range(50):  # what is known to be away is not asked again by each of many workflows
        with pytest.raises(RetriableError, match="is away"):
            kind.begin()
    assert time.monotonic() - began_s < 50 * 0.1
    release.set()


def test_while_the_keystore_is_away_the_key_that_is_known_is_used(
    sealing: Service, places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = sealing.client.workflow_type("t").begin({"n": 1})
    vault = sealing.client.vault
    assert vault.keystore is not None
    vault.keystore.forget()  # as after a minute
    places.away()
    with workflow.step("one") as step:
        step.checkpoint()
    places.back()
    assert [places.state_of(c)["data"] for c in sealing.of(CheckpointCreated)] == [{"n": 1}] * 3
    assert caplog.text.count("the keystore is away") == 1


def test_a_rotated_key_is_used(sealing: Service, places: Places) -> None:
    workflow = sealing.client.workflow_type("t").begin()
    workflow.checkpoint()
    places.keystore.rotate(workflow.workflow_id)
    assert sealing.client.vault.keystore is not None
    sealing.client.vault.keystore.forget()
    workflow.checkpoint()
    numbers = [sealing.client.vault.key(workflow.workflow_id).number, 2]
    assert numbers == [2, 2]
    for record in sealing.of(CheckpointCreated):
        places.state_of(record)


def test_a_workflow_that_ended_leaves_no_key_behind(sealing: Service) -> None:
    workflow = sealing.client.workflow_type("t").begin()
    assert workflow.workflow_id in sealing.client.vault._kept
    workflow.complete()
    assert sealing.client.vault._kept == {}


def test_after_its_key_was_erased_a_workflow_can_save_nothing(sealing: Service, places: Places) -> None:
    workflow = sealing.client.workflow_type("t").begin({"secret": SECRET})
    places.keystore.erase(workflow.workflow_id, actor="tester", reason="asked to")
    assert sealing.client.vault.keystore is not None
    sealing.client.vault.keystore.forget()
    with pytest.raises(StateError) as refused:
        workflow.checkpoint()
    assert refused.value.reason == "key_erased"
    with pytest.raises(StateError), workflow.step("one"):
        pytest.fail("the step must not run")
    places.away()
    with pytest.raises(StateError):  # also while nobody can be asked again
        workflow.checkpoint()
    (error,) = sealing.of(WorkflowErrorOccurred)
    assert (error.error_message, error.stack_trace, error.sealed) == (WITHHELD, None, None)
    assert sealing.of(CheckpointCreated) == []
    assert SECRET.encode() not in clear_bytes(sealing)
    assert sealing.client.stats()["withheld"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keys": "env:TEST_KEK"}, "KINTSUGI_OBJECTS is not"),
        ({"protection": "aes-256-gcm"}, "needs keys"),
        ({"protection": "rot13"}, "none of aes-256-gcm, hmac-sha256"),
        ({"claim_from_bytes": -1}, "claim_from_bytes"),
        ({"claim_from_bytes": 1.5}, "claim_from_bytes"),
        ({"objects": "nowhere://x"}, "KINTSUGI_OBJECTS"),
        ({"objects": "memory:///", "keys": "env:NOT_SET"}, "NOT_SET is not set"),
    ],
)
def test_wrong_options_are_refused(connect: Connect, places: Places, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        connect(**options)


def test_the_environment_says_where_both_are(connect: Connect, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINTSUGI_OBJECTS", places.url)
    monkeypatch.setenv("KINTSUGI_KEYS", places.keys)
    service = connect(objects=None, keys=None)
    assert service.client.vault.protection == "aes-256-gcm"
    assert service.client.vault.objects is not None


def test_no_log_line_shows_a_secret(sealing: Service, places: Places, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    test_with_keys_nothing_of_the_service_is_in_clear(sealing, places)
    assert SECRET not in caplog.text
