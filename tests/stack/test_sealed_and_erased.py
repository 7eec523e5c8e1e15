"""With keys nothing of a workflow lies anywhere in clear; without them any more nothing can be read, and all agrees."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from kintsugi_client import Client, StepContext

from engine.policy import load_policy
from engine.testing import saved
from ops.stack import Addresses
from ops.verify import verify
from schemas.canonical import chain_digest_of
from schemas.records.events import CheckpointCreated, CheckpointRejected, StepSpec, WorkflowCompleted, WorkflowStarted
from schemas.topics import AUDIT, COMMANDS, EVENTS

from .kit import Role, Topics, build, wait_for
from .stacks import own_stack
from .starter import command

#: Neither compression nor base64 of it is looked for: what is not sealed shows it in the JSON of tables, in messages,
#: and in states too small to be compressed.
CANARY = "canary-2718-do-not-store"

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with own_stack(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def environment(at: Addresses, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        **at.environment(),
        "KINTSUGI_KEYS": (tmp_path / "keys.json").as_uri(),
        "KINTSUGI_OBJECTS": (tmp_path / "objects").as_uri(),
        "KINTSUGI_ACTOR": "ann",
    }


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    def run(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return command({**environment, **changed}, *arguments)

    return run


def run_workflow(environment: dict[str, str]) -> str:
    """A workflow whose second step fails once; returns its id when it has ended."""
    failures: list[str] = []
    with Client.connect(
        "sealed", kafka=environment["KINTSUGI_KAFKA"], registry=environment["KINTSUGI_REGISTRY"],
        objects=environment["KINTSUGI_OBJECTS"], keys=environment["KINTSUGI_KEYS"], claim_from_bytes=2_000,
    ) as client:  # fmt: skip
        kind = client.workflow_type("sealed")

        @kind.step("one")
        def one(step: StepContext) -> None:
            step.state["found"] = f"{CANARY} in the state"
            step.heartbeat(0.5, message=f"{CANARY} in a heartbeat")
            step.checkpoint()
            step.persist()

        @kind.step("two", depends_on=["one"])
        def two(step: StepContext) -> None:
            step.state["large"] = [f"{CANARY} {n} {os.urandom(16).hex()}" for n in range(200)]
            step.checkpoint()
            if not failures:
                failures.append("once")
                step.error_context["where"] = f"{CANARY} in the context"
                raise TimeoutError(f"{CANARY} in a message")

        assert client.listen()
        workflow = kind.start({"input": f"{CANARY} in the input"})
        wait_for("the workflow's end", lambda: workflow.status == "completed")
    return workflow.workflow_id


def in_log(at: Addresses) -> bytes:
    """Everything in the topics, end to end."""
    consumer = Consumer({"bootstrap.servers": at.kafka, "group.id": "none", "enable.auto.commit": False})
    found = []
    try:
        for topic in (EVENTS, COMMANDS, AUDIT):
            for partition in consumer.list_topics(topic, 10).topics[topic].partitions:
                place = TopicPartition(topic, partition)
                low, high = consumer.get_watermark_offsets(place, 10)
                consumer.assign([TopicPartition(topic, partition, low)])
                left = high - low
                while left:
                    message = consumer.poll(10)
                    assert message is not None and message.error() is None
                    found.append(bytes(message.value() or b""))  # type: ignore[arg-type]
                    left -= 1
    finally:
        consumer.close()
    return b"".join(found)


def in_tables(at: Addresses) -> str:
    """Everything in the tables, as text."""
    found = []
    with psycopg.connect(at.postgres) as connection:
        names = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'kintsugi'")
        for (name,) in names.fetchall():
            found += [
                row[0]
                for row in connection.execute(f"SELECT t::text FROM kintsugi.{name} t").fetchall()  # type: ignore[arg-type]
            ]
    return "\n".join(found)


def in_folder(folder: Path) -> bytes:
    """Every file under a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_workflow_lies_nowhere_in_clear_and_an_erased_one_can_be_read_by_nobody(
    at: Addresses, environment: dict[str, str], cli: Cli, tmp_path: Path
) -> None:
    assert cli("keys", "init", str(tmp_path / "keys.json")).returncode == 0
    with ExitStack() as stack:
        roles = []
        for name, *arguments in (("recovery",), ("projector",), ("archiver", "--archive-age", "0.5")):
            roles.append(Role(name, environment, tmp_path / f"{name}.log", *arguments))
            stack.callback(roles[-1].kill)
        for role in roles:
            role.wait_log("partitions assigned")
        workflow_id = run_workflow(environment)

        def settled() -> bool:
            with psycopg.connect(at.postgres) as connection:
                query = "SELECT status FROM kintsugi.workflows WHERE id = %s"
                row = connection.execute(query, [workflow_id]).fetchone()
            return row == ("completed",) and all(role.metric("kintsugi_consumer_lag_records") == 0 for role in roles)

        wait_for("tables and archive", settled)
        wait_for("archive", lambda: list((tmp_path / "objects" / "archive").rglob("*.avro")))
        for role in roles:
            assert role.stop() == 0

    assert CANARY.encode() not in in_log(at)
    assert CANARY not in in_tables(at)
    assert CANARY.encode() not in in_folder(tmp_path / "objects")
    assert (tmp_path / "objects" / "claims").is_dir(), "the large state went to object storage"
    assert all(CANARY not in (tmp_path / f"{name}.log").read_text() for name in ("recovery", "projector", "archiver"))

    sealed = cli("workflows", "timeline", workflow_id, "--heartbeats")
    assert sealed.returncode == 0 and "(sealed)" in sealed.stdout and CANARY not in sealed.stdout
    assert cli("workflows", "timeline", workflow_id, "--reveal").returncode == 2
    opened = cli("workflows", "timeline", workflow_id, "--heartbeats", "--reveal", "--reason", "case 7")
    assert f"{CANARY} in a message" in opened.stdout and f"{CANARY} in a heartbeat" in opened.stdout
    verified = cli("checkpoints", "verify", "--workflow", workflow_id, "--output", "json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert cli("verify").returncode == 0

    erased = cli("keys", "erase", workflow_id, "--reason", "asked for by its owner", "--yes")
    assert erased.returncode == 0, erased.stderr
    gone = cli("workflows", "timeline", workflow_id, "--reveal", "--reason", "case 8")
    assert CANARY not in gone.stdout and "[key_erased]" in gone.stdout
    for changed in ({}, {"KINTSUGI_KEYS": ""}):
        agreed = cli("verify", **changed)
        assert agreed.returncode == 0, f"{changed}: {agreed.stdout}{agreed.stderr}"
    audited = [json.loads(line) for line in _lines(in_log(at)) if "workflows.reveal" in line or "keys.erase" in line]
    assert {(a["actor"], a["outcome"]) for a in audited} == {("ann", "begun"), ("ann", "done")}


UNPROVEN = "workflow_error_handling: {error_detection: {state_corruption: {checksum_verification: false}}}"


@pytest.mark.parametrize(
    ("keyed", "policy", "fields", "reasons"),
    [
        (True, "workflow_error_handling: {}", {}, ["unsealed"]),
        (False, UNPROVEN, {"size_bytes": 1}, []),  # it does not verify, and nobody looked
    ],
    ids=["nobody sealed it", "nobody looked"],
)
def test_what_was_judged_with_keys_or_by_a_policy_is_judged_so_again(
    at: Addresses,
    environment: dict[str, str],
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keyed: bool,
    policy: str,
    fields: dict[str, object],
    reasons: list[str],
) -> None:
    assert cli("keys", "init", str(tmp_path / "keys.json")).returncode == 0
    environment["KINTSUGI_KEYS"] = environment["KINTSUGI_KEYS"] if keyed else ""
    for name in ("KINTSUGI_KEYS", "KINTSUGI_OBJECTS"):
        monkeypatch.setenv(name, environment[name])
    (tmp_path / "policy.yaml").write_text(policy)
    with ExitStack() as stack:
        topics = Topics(at)
        stack.callback(topics.registry.close)
        roles = [
            Role("recovery", environment, tmp_path / "recovery.log", "--policy", str(tmp_path / "policy.yaml")),
            Role("projector", environment, tmp_path / "projector.log"),
        ]
        for role in roles:
            stack.callback(role.kill)
            role.wait_log("partitions assigned")
        workflow_id = str(uuid.uuid4())
        state = saved(workflow_id, "build")
        checkpoint = build(
            CheckpointCreated,
            workflow_id,
            checkpoint_id=str(uuid.uuid4()),
            step_id="build",
            checkpoint_type="manual",
            sequence=1,
            state_version="1",
            status="running",
            chain_digest=chain_digest_of(None, str(state["digest"])),
            **{**state, **fields},
        )
        started = build(WorkflowStarted, workflow_id, workflow_version="1", steps=(StepSpec(step_id="build"),))
        topics.put(started, checkpoint, build(WorkflowCompleted, workflow_id))
        wait_for("both at the end", lambda: all(ended(at, workflow_id, role) for role in roles))
        assert [r.reason for r in topics.events(CheckpointRejected, {workflow_id})] == reasons
    later = SimpleNamespace(time_ns=lambda: time.time_ns() + 60 * 10**9)  # what is missing then will not come any more
    monkeypatch.setattr("ops.verify.time", later)
    report = verify(replace(at, objects=environment["KINTSUGI_OBJECTS"]), load_policy(policy, "test"), lambda *_: None)
    assert [f for f in report.findings if f.workflow_id == workflow_id] == []
    assert report.drifts == []


def ended(at: Addresses, workflow_id: str, role: Role) -> bool:
    """Whether a role has read all there is, and the tables know the workflow's end."""
    with psycopg.connect(at.postgres) as connection:
        row = connection.execute("SELECT status FROM kintsugi.workflows WHERE id = %s", [workflow_id]).fetchone()
    return row == ("completed",) and role.metric("kintsugi_consumer_lag_records") == 0


def _lines(data: bytes) -> list[str]:
    """The audit's records: canonical JSON, one behind the other."""
    text = data[data.index(b'{"action"') :].decode("utf-8", "replace")
    return [f'{{"action"{part}' for part in text.split('{"action"')[1:]]
