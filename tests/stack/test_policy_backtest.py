"""`kintsugi policy backtest` on a log that recovery wrote, before and after retention has cut it off."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.log_reader import LogReader
from engine.policy import default_text
from ops import archive as ops_archive
from ops.stack import Addresses
from schemas.records.events import CommandAcknowledged, StepCompleted, StepStarted, WorkflowCompleted
from schemas.topics import EVENTS

from .cli import Cli, Done
from .kit import Role, Topics, build, failing, wait_for
from .stacks import own_stack

RESTARTS = {
    "workflow_error_handling": {
        "recovery_rules": [
            {"name": "late", "match": {"error_type": "timeout"}, "ladder": [{"strategy": "complete_restart"}]}
        ]
    }
}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A log that this test may cut off."""
    with own_stack(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def start(at: Addresses, tmp_path: Path) -> Iterator[Callable[..., Role]]:
    roles: list[Role] = []

    def start_role(name: str, *arguments: str) -> Role:
        roles.append(Role(name, {**os.environ, **at.environment()}, tmp_path / f"{name}.log", *arguments))
        return roles[-1]

    yield start_role
    for role in roles:
        role.kill()


@pytest.fixture
def backtest(at: Addresses, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str, objects: str = at.objects) -> Done:
        cli = Cli(replace(at, objects=objects).environment(), monkeypatch, capfd)
        return cli("policy", "backtest", *arguments, "--output", "json")

    return run


def repaired(topics: Topics) -> str:
    """A workflow whose step passed its deadline, was tried again, and completed."""
    workflow_id = str(uuid.uuid4())
    topics.put(*failing(workflow_id))
    command = wait_for("a command", lambda: topics.commands({workflow_id}))[0]
    step = {"step_id": "build", "step_run_id": str(uuid.uuid4()), "command_id": command.command_id}
    answer = {"command_id": command.command_id, "error_id": command.error_id, "attempt_number": 1}
    topics.put(
        build(CommandAcknowledged, workflow_id, **answer, status="accepted"),
        build(StepStarted, workflow_id, **step),
        build(StepCompleted, workflow_id, **step, duration_ms=5),
        build(WorkflowCompleted, workflow_id),
    )
    return workflow_id


def cut_off(at: Addresses) -> None:
    """What retention does, now: everything so far is gone from the log."""
    with LogReader(at.kafka) as log:
        places = [TopicPartition(EVENTS, p, high) for p, (_, high) in log.bounds(EVENTS).items() if high]
    admin = AdminClient({"bootstrap.servers": at.kafka})
    for future in admin.delete_records(places).values():
        future.result(20)


def behind(at: Addresses) -> int:
    return sum(row["lag_records"] + row["lost_records"] for row in ops_archive.status(at))


def test_a_candidate_is_run_over_log_and_archive(
    at: Addresses, start: Callable[..., Role], backtest: Callable[..., Done], tmp_path: Path
) -> None:
    same, other, broken = (tmp_path / name for name in ("same.yaml", "other.yaml", "broken.yaml"))
    same.write_text(default_text())
    other.write_text(json.dumps(RESTARTS))
    broken.write_text("workflow_error_handling: {budget: {}}")

    done = backtest(str(same))
    assert done.code == 1 and "the history is empty" in done.err

    recovery, archiver = start("recovery"), start("archiver", "--archive-age", "0.2")
    topics = Topics(at)
    workflows = {repaired(topics) for _ in range(2)}
    topics.registry.close()
    wait_for("the archive has all of the log", lambda: behind(at) == 0)
    assert recovery.stop() == 0 and archiver.stop() == 0

    def figures(*arguments: str) -> dict[str, float]:
        done = backtest(*arguments)
        assert done.code == 0, done.err
        return {row["figure"]: row["happened"] for row in done.json["figures"]}

    alike = figures(str(same), "--since", "1d")
    assert (alike["errors"], alike["alike"], alike["differently"], alike["set_apart"]) == (2, 2, 0, 0)
    assert figures(str(other), "--workflow-type", "another")["errors"] == 0
    before = backtest(str(other), "--rows", "differently").json
    assert {row["workflow_id"] for row in before} == workflows
    assert {(r["strategy_before"], r["strategy_now"]) for r in before} == {
        ("increase_timeout_and_retry", "complete_restart")
    }
    [evidence] = {
        json.dumps(row) for row in backtest(str(other), "--rows", "evidence").json if row["basis"] != "fingerprint"
    }
    assert (json.loads(evidence)["n"], json.loads(evidence)["succeeded"]) == (2, 2)

    for arguments, code, words in (
        ([str(broken)], 1, "budget: unknown key"),
        ([str(same), "--since", "2100-01-01"], 2, "in the future"),
        ([str(same), "--since", "1d", "--until", "2d"], 2, "not after --since"),
        ([str(same), "--since", "soon"], 2, "is no time"),
    ):
        done = backtest(*arguments)
        assert done.code == code and words in done.err

    cut_off(at)
    assert backtest(str(other), "--rows", "differently").json == before
    nowhere = (tmp_path / "nowhere").as_uri()
    done = backtest(str(other), objects=nowhere)
    assert done.code == 1 and "are missing" in done.err and "--accept-gap" in done.err
    done = backtest(str(other), "--accept-gap", objects=nowhere)
    assert done.code == 1 and "the history is empty" in done.err
