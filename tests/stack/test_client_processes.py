"""Services as processes of their own: killed, started again, and sharing the work."""

from __future__ import annotations

import random
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.records.commands import (
    CompensateStep,
    PauseWorkflow,
    RestartWorkflow,
    ResumeFromCheckpoint,
    ResumeWorkflow,
    RetryStep,
)
from schemas.records.events import (
    CommandAcknowledged,
    RecoveryAttemptFinished,
    StateRestored,
    StepCompleted,
    StepStarted,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowPaused,
)
from schemas.topics import EVENTS

from .client_kit import PARTITIONS, Child, Desk, partition_of
from .kit import Role, Topics, wait_for

Spawn = Callable[..., Child]
Start = Callable[..., Role]
DONE = (("accepted", False), ("succeeded", False))
PROTOCOLS = ("classic", "consumer")
#: For tests that wait for the group to notice that a process was killed.
QUICK = ("--consumer", '{"session.timeout.ms": 2500, "heartbeat.interval.ms": 500}')


def completed(topics: Topics, *workflow_ids: str) -> None:
    of = set(workflow_ids)
    wait_for("completion", lambda: {c.workflow_id for c in topics.events(WorkflowCompleted, of)} == of)


def failed(topics: Topics, child: Child, workflow_id: str | None = None) -> str:
    """A workflow that has failed once in its second step."""
    found = child.start({"two": ["fail:BROKEN"]}, workflow_id)
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, {found}))
    return found


def share(*children: Child) -> None:
    """Wait until the group has given each its share of the partitions."""
    fair = PARTITIONS // len(children)
    wait_for("shares", lambda: all(len(c.partitions()) == fair for c in children))


def id_for(child: Child) -> str:
    """A workflow whose commands go to this process."""
    mine = set(child.partitions())
    return next(i for i in (str(uuid.uuid4()) for _ in range(1_000)) if partition_of(i) in mine)


def test_a_command_id_is_not_executed_again_after_a_kill(topics: Topics, desk: Desk, spawn: Spawn) -> None:
    first = spawn(*QUICK)
    workflow_id = failed(topics, first)
    command = desk.build(RetryStep, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    first.kill()
    second = spawn(*QUICK)
    desk.send(command)
    desk.wait_answers(command, *DONE, ("unknown", True))
    assert [r["step_id"] for r in second.ran(workflow_id)] == ["one", "two", "two", "three"]
    assert second.ask("stats")["repeated"] == 1
    assert second.ask("close") is False
    assert second.process.wait(20) == 0


def test_a_command_that_was_being_carried_out_is_not_taken_up_again(topics: Topics, desk: Desk, spawn: Spawn) -> None:
    """The process dies in the middle of the step that a command has begun; the command itself is not repeated."""
    first = spawn(*QUICK)
    workflow_id = first.start({"two": ["fail:BROKEN", "die"]})
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, {workflow_id}))
    command = desk.build(RetryStep, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    assert first.process.wait(30) == -signal.SIGKILL
    second = spawn(*QUICK)
    desk.send(command)
    desk.wait_answers(command, ("accepted", False), ("unknown", True))
    assert [r["step_id"] for r in second.ran(workflow_id)] == ["one", "two", "two"]
    # A new decision has a new id, and is carried out from the checkpoint in the log.
    again = desk.build(RetryStep, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
    desk.send(again)
    desk.wait_answers(again, *DONE)
    completed(topics, workflow_id)


def test_a_command_lost_between_commit_and_acceptance_is_decided_anew(
    topics: Topics, desk: Desk, spawn: Spawn, start: Start, tmp_path: Path
) -> None:
    """At most once: such a command is lost. Nobody says that it was accepted, so the engine gives it up in time."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("workflow_error_handling:\n  commands: {acknowledge_timeout: 4000}\n", encoding="utf-8")
    start("recovery", "--policy", str(policy)).wait_log("partitions assigned")
    first = spawn("--die-after-commit", *QUICK)
    workflow_id = str(uuid.uuid4())
    first.tell("start", data={"plan": {"two": ["fail:TIMEOUT"]}}, workflow_id=workflow_id)
    assert first.process.wait(30) == -signal.SIGKILL
    lost = topics.commands({workflow_id})[0]
    second = spawn(*QUICK)
    desk.send(lost)  # a copy, as of an engine that died before it knew that it had sent it
    desk.wait_answers(lost, ("unknown", True))
    completed(topics, workflow_id)
    of = {workflow_id}
    wait_for("success", lambda: topics.events(RecoveryAttemptFinished, of)[-1].outcome == "succeeded")
    first_end = topics.events(RecoveryAttemptFinished, of)[0]
    assert (first_end.outcome, first_end.error_message) == ("unknown", "no service accepted the command in time")
    assert lost.command_id not in {s.command_id for s in topics.events(StepStarted, of)}
    assert [r["step_id"] for r in second.ran(workflow_id)] == ["one", "two", "two", "three"]


def test_workflows_of_a_killed_process_are_taken_over_from_their_checkpoints(
    topics: Topics, spawn: Spawn, start: Start, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "workflow_error_handling:\n  error_detection:\n    timeouts: {default_step_timeout: 2000}\n", encoding="utf-8"
    )
    start("recovery", "--policy", str(policy)).wait_log("partitions assigned")
    first, second = spawn(*QUICK), spawn(*QUICK)
    share(first, second)
    workflow_ids = [first.start({"two": ["hold"]}) for _ in range(6)]
    wait_for("their second steps", lambda: all(len(first.ran(w)) == 2 for w in workflow_ids))
    first.kill()
    completed(topics, *workflow_ids)
    for workflow_id in workflow_ids:
        ran = [(r["step_id"], r["pid"] == second.process.pid) for r in second.ran(workflow_id)]
        assert ran == [("one", False), ("two", False), ("two", True), ("three", True)]
        (restored,) = topics.events(StateRestored, {workflow_id})
        assert restored.step_id == "two"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_processes_share_the_work(topics: Topics, desk: Desk, spawn: Spawn, protocol: str) -> None:
    options = ("--consumer", f'{{"group.protocol": "{protocol}"}}')
    first, second = spawn(*options), spawn(*options)
    share(first, second)
    workflow_ids = [failed(topics, child) for child in (first, second) for _ in range(10)]
    commands = [
        desk.build(RetryStep, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
        for workflow_id in workflow_ids
    ]
    desk.send(*commands, *commands)
    completed(topics, *workflow_ids)
    pids = set()
    for command in commands:
        again = [r for r in first.ran(command.workflow_id) if r["command_id"] == command.command_id]
        assert [r["step_id"] for r in again] == ["two", "three"]
        (pid,) = {r["pid"] for r in again}
        pids.add(pid)
        # Whose partition it is carries it out; whoever held the workflow has let it go.
        owner = first if partition_of(command.workflow_id) in first.partitions() else second
        assert pid == owner.process.pid
    assert pids == {first.process.pid, second.process.pid}
    assert first.ask("held") == second.ask("held") == []
    found = topics.events(CommandAcknowledged, set(workflow_ids))
    assert sorted((a.status, a.duplicate) for a in found if not a.duplicate) == sorted(DONE * 20)


def test_a_step_goes_on_while_partitions_move(topics: Topics, desk: Desk, spawn: Spawn) -> None:
    first = spawn()
    workflow_id = failed(topics, first)
    running = first.start({"two": ["hold"]})
    wait_for("its second step", lambda: len(first.ran(running)) == 2)
    command = desk.build(RetryStep, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    second = spawn()
    share(first, second)
    (first.folder / "release").touch()
    completed(topics, workflow_id, running)
    assert {r["pid"] for r in first.ran(running)} == {first.process.pid}
    assert [s.step_id for s in topics.events(StepCompleted, {running})] == ["one", "two", "three"]
    assert topics.events(WorkflowErrorOccurred, {running}) == []
    # Neither has taken the old command up again.
    assert len(desk.answers(command)) == 2


@pytest.mark.parametrize("kind", [RetryStep, ResumeFromCheckpoint, RestartWorkflow])
def test_a_hung_step_is_replaced_by_another_process(
    topics: Topics, desk: Desk, spawn: Spawn, kind: type[RetryStep]
) -> None:
    """The command goes to the process that has its partition; the one with the hung step is told by the topic."""
    first, second = spawn(), spawn()
    share(first, second)
    workflow_id = first.start({"two": ["hold"]}, id_for(second))
    wait_for("the hung step", lambda: len(first.ran(workflow_id)) == 2)
    command = desk.build(kind, workflow_id, first.name, step_id="two", **desk.where(workflow_id))
    desk.send(command)
    desk.wait_answers(command, *DONE)
    completed(topics, workflow_id)
    assert first.ask("held") == [] and first.ask("stats")["abandoned"] == 1
    before = len(topics.records(EVENTS, of={workflow_id}))
    (first.folder / "release").touch()
    wait_for("the hung step's end", lambda: first.ask("stats")["abandoned"] == 0)
    assert len(topics.records(EVENTS, of={workflow_id})) == before
    again = [r for r in first.ran(workflow_id) if r["command_id"] == command.command_id]
    assert {r["pid"] for r in again} == {second.process.pid}
    assert [r["step_id"] for r in again][-2:] == ["two", "three"]


def test_a_workflow_is_paused_and_resumed_where_it_is(topics: Topics, desk: Desk, spawn: Spawn) -> None:
    first, second = spawn(), spawn()
    share(first, second)
    workflow_id = first.start({"one": ["hold"]}, id_for(second))
    wait_for("its first step", lambda: len(first.ran(workflow_id)) == 1)
    pause = desk.build(PauseWorkflow, workflow_id, first.name)
    desk.send(pause)
    desk.wait_answers(pause, ("accepted", False))
    (first.folder / "release").touch()
    (answer, _) = desk.wait_answers(pause, *DONE)
    assert answer.producer.endswith(f"/{first.process.pid}")
    assert len(topics.events(WorkflowPaused, {workflow_id})) == 1
    resume = desk.build(ResumeWorkflow, workflow_id, first.name)
    desk.send(resume)
    desk.wait_answers(resume, *DONE)
    completed(topics, workflow_id)
    assert {r["pid"] for r in first.ran(workflow_id)} == {first.process.pid}
    # Nobody has it any more, so nobody answers.
    late = desk.build(PauseWorkflow, workflow_id, first.name)
    fence = desk.build(CompensateStep, workflow_id, first.name, step_id="one")
    desk.send(late, fence)
    desk.wait_answers(fence, ("accepted", False), ("failed", False))
    assert desk.answers(late) == []


def test_a_process_that_was_asleep_carries_out_nothing_that_moved_on(topics: Topics, desk: Desk, spawn: Spawn) -> None:
    """FAULTS.md row 8: stopped for longer than the session timeout, and awake again: a zombie."""
    first, second = spawn(*QUICK), spawn(*QUICK)
    share(first, second)
    ids = [first.start({"two": ["hold"]}, id_for(first)) for _ in range(3)]
    wait_for("their second steps", lambda: all(len(first.ran(i)) == 2 for i in ids))
    first.process.send_signal(signal.SIGSTOP)
    commands = [desk.build(RetryStep, i, first.name, step_id="two", **desk.where(i)) for i in ids]
    desk.send(*commands)
    for command in commands:
        desk.wait_answers(command, *DONE)
    completed(topics, *ids)
    first.process.send_signal(signal.SIGCONT)
    wait_for("it lets them go", lambda: first.ask("held") == [])
    before = {i: len(topics.records(EVENTS, of={i})) for i in ids}
    (first.folder / "release").touch()
    wait_for("its hung steps' end", lambda: first.ask("stats")["abandoned"] == 0)
    share(first, second)
    for command in commands:
        assert len(desk.answers(command)) == 2
        again = [r["pid"] for r in first.ran(command.workflow_id) if r["command_id"] == command.command_id]
        assert again == [second.process.pid] * 2
    assert {i: len(topics.records(EVENTS, of={i})) for i in ids} == before


def test_a_process_that_ends_without_close_still_delivers(topics: Topics, spawn: Spawn) -> None:
    child = spawn()
    child.tell("start and end", data={}, workflow_id=(workflow_id := str(uuid.uuid4())))
    assert child.process.wait(30) == 0
    completed(topics, workflow_id)


def test_nothing_is_done_twice_while_processes_come_and_go(topics: Topics, desk: Desk, spawn: Spawn) -> None:
    """Commands and copies of them, while one process after the other is killed, or stopped in order, and replaced."""
    serving = [spawn(*QUICK), spawn(*QUICK)]
    share(*serving)
    ids = [failed(topics, serving[0]) for _ in range(24)]
    sent: list[RetryStep] = []
    draw = random.Random(11)
    for number in range(0, len(ids), 3):
        fresh = [
            desk.build(RetryStep, i, serving[0].name, step_id="two", **desk.where(i)) for i in ids[number : number + 3]
        ]
        sent += fresh
        desk.send(*fresh, *draw.choices(sent, k=6))
        if number % 6 == 0:
            leaving = serving.pop(draw.randrange(2))
            if number % 12 == 0:
                leaving.kill()
            else:
                leaving.ask("close")
            serving.append(spawn(*QUICK))
    share(*serving)
    last = {c.command_id: len(desk.answers(c)) for c in sent}
    desk.send(*sent)
    wait_for("their copies", lambda: all(len(desk.answers(c)) > last[c.command_id] for c in sent))
    counts = Counter((r["command_id"], r["step_id"]) for i in ids for r in serving[0].ran(i) if r["command_id"])
    assert counts and max(counts.values()) == 1
    for command in sent:
        answers = [a.status for a in desk.answers(command) if not a.duplicate]
        # Accepted once, and then ended; or lost on the way, with the process that had it.
        assert answers[:1] in ([], ["accepted"]) and answers[1:] in ([], ["succeeded"], ["failed"], ["unknown"])
    # The rare things did happen: several processes carried commands out, and copies came to those that had not.
    assert len({r["pid"] for i in ids for r in serving[0].ran(i) if r["command_id"]}) > 2
    assert any(a.duplicate and a.status == "unknown" for c in sent for a in desk.answers(c))
