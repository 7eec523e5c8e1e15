"""`kintsugi keys` on the real stack: a key's whole life, each step of it in the audit topic, its end in the log."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.stack import Addresses
from schemas.errors import StateError
from schemas.keystore import Keystore, open_keystore
from schemas.records.events import WorkflowKeyErased
from schemas.topics import AUDIT, EVENTS

from .kit import Role, Topics, failing, wait_for
from .starter import command

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def actor() -> str:
    """Somebody of this test's own, by whom its records in the shared audit topic are found."""
    return f"ann {uuid.uuid4()}"


@pytest.fixture
def environment(own: Addresses, own_records: None, actor: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        **own.environment(),
        "KINTSUGI_OBJECTS": (tmp_path / "objects").as_uri(),
        "KINTSUGI_KEYS": (tmp_path / "keys.json").as_uri(),
        "KINTSUGI_ACTOR": actor,
        "COLUMNS": "400",
    }


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = command(environment, *arguments)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def keystore(cli: Cli, environment: dict[str, str]) -> Keystore:
    """Over the key file that `keys init` made."""
    path = environment["KINTSUGI_KEYS"].removeprefix("file://")
    assert cli("keys", "init", path).stdout == f"export KINTSUGI_KEYS={environment['KINTSUGI_KEYS']}\n"
    found = open_keystore(environment["KINTSUGI_KEYS"], environment["KINTSUGI_OBJECTS"])
    assert found is not None
    return found


def audit_of(topics: Topics, actor: str) -> list[tuple[str, str]]:
    """(action, outcome) of all that somebody did."""
    found = [json.loads(message.value() or b"") for message in topics.read(AUDIT, {actor})]
    assert all(entry["actor"] == actor for entry in found)
    return [(entry["action"], entry["outcome"]) for entry in found]


def test_keys_are_made_rotated_and_rewrapped(cli: Cli, keystore: Keystore, topics: Topics, actor: str) -> None:
    workflow_id = str(uuid.uuid4())
    key = keystore.current(workflow_id)
    assert "left as it is" in cli("keys", "init", str(keystore.provider.path), code=4).stderr  # type: ignore[attr-defined]
    first = keystore.provider.current
    rotated = json.loads(cli("keys", "rotate", "--output", "json").stdout)
    assert rotated["current"] == keystore.provider.current != first
    assert "1 data keys would be wrapped" in cli("keys", "rewrap", "--dry-run").stderr
    assert json.loads(cli("keys", "rewrap", "--output", "json").stdout)["rewrapped"] == 1
    assert json.loads(cli("keys", "rewrap", "--output", "json").stdout)["already"] == 1
    number = json.loads(cli("keys", "rotate", "--workflow", workflow_id, "--output", "json").stdout)["number"]
    keystore.forget()
    assert keystore.current(workflow_id).number == number == 2
    assert keystore.get(workflow_id, 1) == key
    status = json.loads(cli("keys", "status", "--output", "json").stdout)
    assert (status["by_kek"], status["sound"]) == ({first: 0, rotated["current"]: 2}, True)
    staged = json.loads(cli("keys", "rotate", "--stage", "--output", "json").stdout)
    assert staged["current"] == rotated["current"] != staged["newest"]
    cli("keys", "rotate", "--to", staged["newest"])
    assert keystore.provider.current == staged["newest"]
    assert audit_of(topics, actor) == [
        (action, outcome)
        for action in ["keys.init", "keys.rotate", "keys.rewrap", "keys.rewrap", "keys.rotate_workflow"]
        + ["keys.rotate"] * 2
        for outcome in ("begun", "done")
    ]


def test_a_lost_key_is_told_by_the_exit_code(cli: Cli, keystore: Keystore) -> None:
    keystore.current(str(uuid.uuid4()))
    path = Path(keystore.provider.path)  # type: ignore[attr-defined]
    lost = keystore.provider.current
    path.unlink()
    cli("keys", "init", str(path))
    done = cli("keys", "status", code=6)
    assert f"1 data keys are wrapped by {lost}, which KINTSUGI_KEYS does not have" in done.stderr
    assert "1 could not be opened" in cli("keys", "rewrap", code=5).stderr


def test_erasing_is_asked_for_done_once_and_proven_in_the_log(
    cli: Cli, keystore: Keystore, topics: Topics, actor: str, start: Callable[..., Role], environment: dict[str, str]
) -> None:
    projector = start("projector")
    projector.wait_log("partitions assigned")
    workflow_id = str(uuid.uuid4())
    topics.put(*failing(workflow_id))
    keystore.current(workflow_id)
    (first,) = {message.partition() for message in topics.read(EVENTS, {workflow_id})}

    def exposed() -> dict[str, object] | None:
        found: dict[str, object] = json.loads(
            cli("keys", "erase", workflow_id, "--reason", "r", "--dry-run", "--output", "json").stdout
        )
        return found if found["workflow_type"] is not None else None

    found = wait_for("the workflow in the tables", exposed)
    assert (found["data_keys"], found["erased"]) == (1, False)
    assert "nobody is there to ask" in cli("keys", "erase", workflow_id, "--reason", "r", code=2).stderr
    assert "--reason" in cli("keys", "erase", workflow_id, "--yes", code=2).stderr
    keystore.forget()
    assert keystore.current(workflow_id).number == 1

    for _ in range(2):
        done = json.loads(cli("keys", "erase", workflow_id, "--reason", "asked to", "--yes", "--output", "json").stdout)
        assert (done["actor"], done["reason"]) == (actor, "asked to")
    keystore.forget()
    with pytest.raises(StateError) as caught:
        keystore.current(workflow_id)
    assert caught.value.reason == "key_erased"
    proofs = [m for m in topics.read(EVENTS, {workflow_id}) if isinstance(r := topics.codec.decode(m.value()),
              WorkflowKeyErased) and (r.actor, r.reason) == (actor, "asked to")]  # fmt: skip
    assert len(proofs) == 2
    assert {m.partition() for m in proofs} == {first}
    assert len({topics.codec.decode(m.value()).event_id for m in proofs}) == 1  # type: ignore[union-attr]
    assert audit_of(topics, actor).count(("keys.erase", "done")) == 2
    status = json.loads(cli("keys", "status", "--output", "json").stdout)
    assert (status["erased"], status["erasures"][0]["workflow_id"], status["data_keys"]) == (1, workflow_id, 0)
    assert "key_erased" not in cli("keys", "rotate", "--workflow", workflow_id, code=1).stdout


def test_what_is_not_there_cannot_be_erased_or_rotated(cli: Cli, keystore: Keystore) -> None:
    nobody = str(uuid.uuid4())
    assert "no workflow" in cli("keys", "erase", nobody, "--reason", "r", "--yes", code=3).stderr
    assert "has no data key" in cli("keys", "rotate", "--workflow", nobody, code=3).stderr
    assert list(keystore.names()) == []


def test_nothing_is_erased_while_kafka_is_away(cli: Cli, keystore: Keystore, environment: dict[str, str]) -> None:
    """What cannot be written down is not done."""
    workflow_id = str(uuid.uuid4())
    key = keystore.current(workflow_id)
    environment["KINTSUGI_KAFKA"] = "127.0.0.1:1"
    assert "not acknowledged" in cli("keys", "erase", workflow_id, "--reason", "r", "--yes", code=75).stderr
    keystore.forget()
    assert keystore.current(workflow_id) == key


def test_doctor_tries_the_keys_and_the_store(cli: Cli, keystore: Keystore, environment: dict[str, str]) -> None:
    def findings(code: int) -> dict[str, dict[str, str]]:
        return {line["check"]: line for line in json.loads(cli("doctor", "--output", "json", code=code).stdout)}

    fine = findings(0)
    assert (fine["keys"]["state"], fine["objects"]["state"]) == ("ok", "ok")
    assert keystore.provider.current in fine["keys"]["found"]
    path = Path(keystore.provider.path)  # type: ignore[attr-defined]
    path.chmod(0o644)
    wrong = findings(1)["keys"]
    assert wrong["state"] == "fail" and wrong["fix"].startswith(f"chmod 600 {path}")
    environment["KINTSUGI_KEYS"] = ""
    assert "not configured" in findings(0)["keys"]["found"]
    environment["KINTSUGI_OBJECTS"] = "file:///proc/objects"
    assert findings(1)["objects"]["state"] == "fail"
