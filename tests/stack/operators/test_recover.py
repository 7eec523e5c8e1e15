"""`kintsugi recover` on the real stack: a plan that people can read, then each of its errors repaired, once."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.recover import Execution
from ops.stack import Addresses
from schemas.records.events import (
    CommandAcknowledged,
    RecoveryDecided,
    RecoveryRequested,
    StepCompleted,
    StepSpec,
    StepStarted,
    WorkflowCancelled,
)
from schemas.topics import AUDIT

from ..cli import Cli
from ..kit import Topics, build, wait_for
from .kit import failing


@pytest.fixture
def code(roles: None) -> str:
    """The error code of one test's errors, with the roles running."""
    return f"E{uuid.uuid4().hex}"


class Service:
    """Carries out commands to its workflows: the good ones succeed, the bad ones fail."""

    def __init__(self, at: Addresses) -> None:
        self.topics = Topics(at)
        self.good: set[str] = set()
        self.bad: set[str] = set()
        self._answered: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            for command in self.topics.commands(self.good | self.bad):
                if command.command_id not in self._answered:
                    self._answered.add(command.command_id)
                    self._answer(command)

    def _answer(self, command: Any) -> None:
        def acknowledged(status: str) -> CommandAcknowledged:
            return build(
                CommandAcknowledged,
                command.workflow_id,
                command_id=command.command_id,
                error_id=command.error_id,
                attempt_number=command.attempt_number,
                status=status,
            )

        if command.workflow_id in self.bad:
            self.topics.put(acknowledged("failed"))
            return
        run = {"step_id": command.step_id, "step_run_id": str(uuid.uuid4()), "command_id": command.command_id}
        self.topics.put(
            acknowledged("accepted"),
            build(StepStarted, command.workflow_id, **run),
            build(StepCompleted, command.workflow_id, **run, duration_ms=1),
        )

    def close(self) -> None:
        self._over.set()
        self._thread.join(20)
        self.topics.registry.close()


@pytest.fixture
def service(own: Addresses) -> Iterator[Service]:
    made = Service(own)
    yield made
    made.close()


def fail(topics: Topics, own: Addresses, code: str, count: int) -> list[str]:
    """So many workflows whose step failed and that wait for a human, as the tables show; their ids."""
    steps = (StepSpec(step_id="pay", idempotent=False),)
    error = {"error_code": code, "error_message": "the bank is away", "dependency": "bank"}
    found = [failing(topics, steps=steps, error=error) for _ in range(count)]

    def waiting() -> bool:
        query = "SELECT count(*) FROM workflow_errors WHERE error_code = %s AND status = 'waiting_for_human'"
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
            row = connection.execute(query, [code]).fetchone()
            return row is not None and row[0] == count

    wait_for("errors that wait", waiting)
    return found


def by_workflow(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["workflow_id"]: row["outcome"] for row in rows if "workflow_id" in row}


def test_a_plan_is_carried_out_item_by_item(
    cli: Cli, topics: Topics, own: Addresses, code: str, service: Service, tmp_path: Path
) -> None:
    mended, broken, moved = fail(topics, own, code, 3)
    service.good, service.bad = {mended}, {broken}
    path = tmp_path / "plan.json"
    wanted = (
        f"code={code} and type~unk* and workflow_type='development' and step~p?y and severity!=none and waiting=yes"
        f" and status=waiting_for_human and attempts>=1 and age<1h and fingerprint!=x and dependency=bank"
        f" and dependency~b* and not workflow={uuid.uuid4()}"
    )
    arguments = ("--strategy", "retry_step", "--reason", "the bank is back")
    planned = cli("recover", "--where", wanted, *arguments, "--plan", str(path), "--output", "json")
    assert planned.code == 0, planned.err
    assert {i["workflow_id"] for i in planned.json["items"]} == {mended, broken, moved}
    assert all(i["possible"] and [s["step_id"] for s in i["runs_again"]] == ["pay"] for i in planned.json["items"])
    assert "nothing was changed" in planned.err
    assert topics.commands({mended, broken, moved}) == []
    assert cli("recover", "--where", wanted, *arguments, "--plan", str(path)).code == 1, "no plan is overwritten"

    changed = tmp_path / "changed.json"
    changed.write_text(path.read_text(encoding="utf-8").replace('"attempts": 1', '"attempts": 2'), encoding="utf-8")
    tampered = cli("recover", "--execute", str(changed), "--reason", "r", "--yes")
    assert (tampered.code, "was changed after it was made" in tampered.err) == (4, True)

    topics.put(build(WorkflowCancelled, moved, reason="by its owner", actor="owner"))

    def ended() -> bool:
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
            row = connection.execute("SELECT status FROM workflows WHERE id = %s", [moved]).fetchone()
            return row == ("cancelled",)

    wait_for("the workflow that moved on", ended)
    execute = ("recover", "--execute", str(path), "--reason", "the bank is back", "--yes", "--output", "jsonl")
    unsaid = cli(*execute)
    assert (unsaid.code, "--accept-rerun pay" in unsaid.err) == (4, True)
    assert topics.events(RecoveryRequested, {mended, broken, moved}) == []
    execute = (*execute, "--accept-rerun", "pay")
    done = cli(*execute, "--rate", "100/s", "--wait", "30")
    assert done.code == 5, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert by_workflow(rows) == {mended: "recovered", broken: "failed", moved: "stale"}
    totals = rows[-1]["totals"]
    assert totals == {"recovered": 1, "failed": 1, "refused": 0, "stale": 1, "impossible": 0, "pending": 0,
                      "not_asked": 0, "items": 3}  # fmt: skip
    (decided,) = [d for d in topics.events(RecoveryDecided, {mended}) if d.ladder == "operator"]
    assert decided.rule == "operator ann: retry_step"

    again = cli(*execute)
    assert [json.loads(line) for line in again.out.splitlines()] == rows
    assert len(topics.events(RecoveryRequested, {mended, broken, moved})) == 2
    entries = [json.loads(m.value() or b"{}") for m in topics.read(AUDIT)]
    mine = [e for e in entries if e["subject"] == planned.json["plan_id"] and e["outcome"] == "done"]
    assert [(e["action"], e["detail"]["recovered"]) for e in mine] == [("recover.execute", 1)] * 2
    assert mine[0]["detail"]["accepted"] == ["pay"]


def test_an_execution_that_was_paused_goes_on_where_it_was(
    cli: Cli,
    topics: Topics,
    own: Addresses,
    code: str,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workflows = fail(topics, own, code, 3)
    service.good = set(workflows)
    path = tmp_path / "plan.json"
    arguments = ("--where", f"code={code}", "--strategy", "retry_step", "--reason", "r", "--plan", str(path))
    assert cli("recover", *arguments).code == 0
    execute = ("recover", "--execute", str(path), "--reason", "r", "--accept-rerun", "pay", "--yes", "--output", "json")
    original, calls = Execution._ask_one, []

    def interrupted(self: Execution, result: Any) -> None:
        calls.append(result)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(self, result)

    with monkeypatch.context() as patched:
        patched.setattr(Execution, "_ask_one", interrupted)
        paused = cli(*execute)
    assert (paused.code, "paused: 2 were not asked for" in paused.err) == (130, True)
    assert paused.json["totals"]["items"] == 3

    done = cli(*execute, "--rate", "100")
    assert (done.code, done.json["totals"]["recovered"]) == (0, 3), done.err
    assert len([c for c in topics.commands(set(workflows)) if type(c).__name__ == "RetryStep"]) == 3


def test_what_cannot_be_done_is_said_in_the_plan(
    cli: Cli, topics: Topics, own: Addresses, code: str, tmp_path: Path
) -> None:
    fail(topics, own, code, 1)
    where = ("recover", "--where", f"code={code}", "--reason", "r")
    path = tmp_path / "plan.json"
    planned = cli(*where, "--strategy", "alternative_path", "--plan", str(path))
    assert planned.code == 0
    assert "declares no alternative" in planned.out
    done = cli("recover", "--execute", str(path), "--reason", "r", "--yes", "--output", "json")
    assert (done.code, done.json["totals"]["impossible"]) == (1, 1)
    assert cli(*where, "--strategy", "no_such").code == 1
    wrong = cli("recover", "--where", "agee<1h", "--strategy", "retry_step", "--reason", "r")
    assert (wrong.code, "a field is expected" in wrong.err) == (2, True)
    more = fail(topics, own, f"{code}x", 2)
    many = cli("recover", "--where", f"code={code}x", "--strategy", "retry_step", "--reason", "r", "--limit", "1")
    assert (many.code, "more than 1 errors match" in many.err) == (4, True)
    assert topics.commands(set(more)) == []
