"""A policy is applied while recovery runs: each partition has it from one place in its log on, and says so."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.log_reader import LogReader
from consumers.policies import Entry
from engine.policy import default_policy, load_policy
from ops import policies
from ops.policies import ConflictError, UnfinishedError, applied, enter, finish
from ops.policy_diff import Side
from ops.publish import Publisher
from ops.stack import Addresses
from schemas.errors import RetriableError
from schemas.records import Command
from schemas.records.events import (
    CommandAcknowledged,
    PolicyChanged,
    RecoveryDecided,
    StepCompleted,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
)
from schemas.topics import AUDIT, COORDINATION, EVENTS

from .kit import Role, Topics, build, failing, wait_for
from .stacks import own_stack
from .starter import command

Cli = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A log of these tests' own: a policy that is applied holds for everybody."""
    with own_stack(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def topics(at: Addresses) -> Iterator[Topics]:
    found = Topics(at)
    yield found
    found.registry.close()


@pytest.fixture
def start(at: Addresses, tmp_path: Path) -> Iterator[Callable[..., Role]]:
    roles: list[Role] = []

    def start_role(name: str, *arguments: str, objects: Path | None = None) -> Role:
        own = at if objects is None else replace(at, objects=objects.as_uri())
        environment = {**os.environ, **own.environment()}
        roles.append(Role(name, environment, tmp_path / f"{name}-{len(roles)}.log", *arguments))
        return roles[-1]

    yield start_role
    for role in roles:
        role.kill()


@pytest.fixture
def cli(at: Addresses) -> Cli:
    """Runs `kintsugi policy`: exit code, its JSON, what it said."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        environment = {**os.environ, **at.environment(), "KINTSUGI_ACTOR": "ana"}
        done = command(environment, *arguments, "--output", "json")
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    return run


def text_of(attempts: int) -> str:
    """A policy of its own for each number."""
    ladder = [{"strategy": "retry_step", "attempts": attempts}]
    rules = [{"name": "slow-builds", "match": {"error_type": "timeout", "step": "b*"}, "ladder": ladder}]
    return json.dumps({"workflow_error_handling": {"recovery_rules": rules}})


def fail_again(topics: Topics, workflow_id: str, command: Command) -> None:
    """The service takes the command, and the step passes its deadline again."""
    run_id = str(uuid.uuid4())
    step = {"step_id": "build", "step_run_id": run_id, "command_id": command.command_id}
    error = {"error_id": str(uuid.uuid4()), "error_code": "TIMEOUT", "error_message": "late", "detected_by": "service"}
    topics.put(
        build(CommandAcknowledged, workflow_id, **answer(command)),
        build(StepStarted, workflow_id, **step),
        build(WorkflowErrorOccurred, workflow_id, **step, **error),
    )


def succeed(topics: Topics, workflow_id: str, command: Command) -> None:
    step = {"step_id": "build", "step_run_id": str(uuid.uuid4()), "command_id": command.command_id}
    topics.put(
        build(CommandAcknowledged, workflow_id, **answer(command)),
        build(StepStarted, workflow_id, **step),
        build(StepCompleted, workflow_id, **step, duration_ms=5),
        build(WorkflowCompleted, workflow_id),
    )


def answer(command: Command) -> dict[str, Any]:
    return {
        "command_id": command.command_id,
        "error_id": command.error_id,
        "attempt_number": command.attempt_number,
        "status": "accepted",
    }


def in_two_partitions(topics: Topics) -> dict[int, str]:
    """Two workflows that fail, by the partition each is in."""
    found: dict[int, str] = {}
    while len(found) < 2:
        workflow_id = str(uuid.uuid4())
        records = failing(workflow_id)
        topics.put(records[0])
        partition = topics.read(EVENTS, {workflow_id})[0].partition() or 0
        if partition not in found:
            topics.put(*records[1:])
            found[partition] = workflow_id
    return found


def commands_of(topics: Topics, workflow_id: str, count: int) -> list[Command]:
    def all_of_them() -> list[Command]:
        distinct = {c.command_id: c for c in topics.commands({workflow_id})}
        return list(distinct.values()) if len(distinct) == count else []

    found: list[Command] = wait_for(f"{count} commands", all_of_them)
    return found


def test_a_policy_applied_while_recovery_runs_holds_from_its_place_on(
    at: Addresses, topics: Topics, start: Callable[..., Role], cli: Cli, tmp_path: Path
) -> None:
    recovery, projector = start("recovery"), start("projector")
    workflows = in_two_partitions(topics)
    for workflow_id in workflows.values():
        commands_of(topics, workflow_id, 1)

    file = tmp_path / "policy.json"
    file.write_text(text_of(4))
    new = load_policy(text_of(4), "new").version
    code, difference, _ = cli("policy", "apply", str(file), "--dry-run")
    assert (code, difference["after"]["version"], applied(at).newest) == (0, new, None)
    assert "rule slow-builds" in [change["ladder"] for change in difference["ladders"]]
    code, told, said = cli("policy", "apply", str(file), "--reason", "case 81", "--yes")
    assert code == 0, said
    assert (told["version"], told["partitions"], told["coordinated"]) == (new, list(range(8)), True)

    for partition, workflow_id in workflows.items():
        recovery.wait_log("policy in force", partition=partition, policy=new)
        fail_again(topics, workflow_id, commands_of(topics, workflow_id, 1)[-1])
        succeed(topics, workflow_id, commands_of(topics, workflow_id, 2)[-1])
        decided = list({d.event_id: d for d in topics.events(RecoveryDecided, {workflow_id})}.values())
        assert [(d.policy_version, d.strategy, d.ladder) for d in decided] == [
            (default_policy().version, "increase_timeout_and_retry", "timeout"),
            (new, "retry_step", "slow-builds"),
        ]

    [row] = cli("policy", "history")[1]
    assert (row["version"], row["actor"], row["reason"], row["state"]) == (new, "ana", "case 81", "in force")
    for workflow_id in workflows.values():
        first, second = explained(cli, workflow_id, 2)
        assert first["policy_source"] == "the policy that ships"
        assert second["policy_source"] == "applied by ana: case 81"
        assert second["policy_text"].startswith("- name: slow-builds")
        assert second["other_rules"] == []
        assert second["rule"] == "recovery_rules.slow-builds: error_type 'timeout', step 'b*': rung 1, try 1 of 4"
    audited = [json.loads(m.value() or b"") for m in topics.read(AUDIT) if b"policy.apply" in (m.value() or b"")]
    assert [(e["outcome"], e["subject"], e["reason"]) for e in audited] == [
        ("begun", new, "case 81"),
        ("done", new, "case 81"),
    ]

    code, proof, said = cli("verify")
    assert code == 0 and proof["sound"], said
    assert recovery.stop() == 0 and projector.stop() == 0


def explained(cli: Cli, workflow_id: str, count: int) -> list[dict[str, Any]]:
    """Its decisions, once the tables know the workflow."""

    def rows() -> list[dict[str, Any]]:
        code, found, _ = cli("policy", "explain", workflow_id)
        return found if code == 0 and len(found) == count else []

    found: list[dict[str, Any]] = wait_for("the decisions", rows)
    return found


def quietly(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def test_of_two_who_apply_at_once_one_is_told(at: Addresses) -> None:
    seen = applied(at).newest
    first = enter(at, Side.of(text_of(5), "one"), supersedes=seen, reason="mine")
    with pytest.raises(ConflictError, match=rf"\(mine\) applied version {first.version} in between") as caught:
        enter(at, Side.of(text_of(6), "two"), supersedes=seen, reason="mine too")
    assert caught.value.exit_code == 4
    newest = applied(at).newest
    assert newest is not None and newest.sequence == first.sequence


def test_what_was_cut_short_is_finished_and_nothing_is_written_twice(
    at: Addresses, topics: Topics, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = enter(at, Side.of(text_of(7), "seven"), supersedes=applied(at).newest, reason="cut short")

    class Breaks(Publisher):
        """Three records, and the broker is away, also for the note of where they went."""

        left = 3

        def publish(self, *args: Any, **fields: Any) -> int:
            if self.left == 0:
                raise RetriableError("Kafka is away")
            self.left -= 1
            return super().publish(*args, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(policies, "Publisher", Breaks)
        with pytest.raises(UnfinishedError, match="in 3 of 8 partitions") as caught:
            finish(at, entry, quietly, again=False)
    assert caught.value.exit_code == 5
    assert cli("policy", "history")[1][0]["state"] == "in force in 0 of 8 partitions", "nobody could write it down"
    assert policy_line(cli)["fix"] == "kintsugi policy apply --resume"

    file = tmp_path / "seven.json"
    file.write_text(text_of(7))
    code, told, said = cli("policy", "apply", str(file), "--reason", "go on", "--yes")
    assert (code, told["sequence"], told["partitions"]) == (0, entry.sequence, list(range(8))), said
    assert cli("policy", "history")[1][0]["state"] == "in force"
    assert places_of(topics, EVENTS, entry) == list(range(8))
    assert places_of(topics, COORDINATION, entry) == [0]
    assert policy_line(cli)["state"] == "ok"
    assert cli("policy", "apply", "--resume")[0] == 0
    assert places_of(topics, EVENTS, entry) == list(range(8)), "there was nothing left to do"


def policy_line(cli: Cli) -> dict[str, str]:
    """What the doctor says about the policy."""
    _, lines, _ = cli("doctor")
    return next(line for line in lines if line["check"] == "policy")


def places_of(topics: Topics, topic: str, entry: Entry) -> list[int]:
    """Partitions with the fact of this entry, one for each fact."""
    found = []
    for message in topics.read(topic):
        record = topics.codec.decode(message.value())
        if isinstance(record, PolicyChanged) and record.sequence == entry.sequence:
            found.append(message.partition() or 0)
    return sorted(found)


def test_where_the_log_begins_later_the_topic_of_policies_says_what_holds(
    at: Addresses, topics: Topics, start: Callable[..., Role], tmp_path: Path
) -> None:
    newest = applied(at).newest
    if newest is None or len(newest.offsets) < 8:
        side = Side.of(text_of(8), "eight")
        newest = finish(at, enter(at, side, supersedes=newest, reason="to be cut off"), quietly, again=False)
    cut_off(at)
    recovery = start("recovery", "--group", f"other-{uuid.uuid4()}", objects=tmp_path / "objects")
    for partition in range(8):
        taken = recovery.wait_log("partition taken", partition=partition)
        assert (taken["policy"], taken["start"] > 0) == (newest.version, True)
    workflow_id = str(uuid.uuid4())
    topics.put(*failing(workflow_id))
    commands_of(topics, workflow_id, 1)
    decided = topics.events(RecoveryDecided, {workflow_id})
    assert {d.policy_version for d in decided} == {newest.version}
    assert recovery.stop() == 0


def cut_off(at: Addresses) -> None:
    """What retention does, now: every fact so far is gone from the log."""
    with LogReader(at.kafka) as log:
        bounds = log.bounds(EVENTS)
    places = [TopicPartition(EVENTS, partition, high) for partition, (_, high) in bounds.items()]
    admin = AdminClient({"bootstrap.servers": at.kafka})  # must live until the answers are in
    for future in admin.delete_records(places).values():
        future.result(20)
