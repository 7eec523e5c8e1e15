"""`kintsugi checkpoints`, `state` and `workflows restore` on the real stack: look, compare, prove, export, go back."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import yaml

from ops.cli import main
from ops.stack import Addresses
from schemas.canonical import canonical_bytes, digest_of
from schemas.records.events import RestoreRequested, StateRestored, WorkflowCompleted
from schemas.topics import AUDIT, EVENTS

from .client_kit import Here
from .kit import Role, Topics, wait_for

#: Asks a human at once.
PATIENT = Path(__file__).with_name("ask_at_once.yaml")

Start = Callable[..., Role]
Serve = Callable[..., Here]
Run = Callable[..., "Done"]


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment(), "KINTSUGI_ACTOR": "ann"}


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs commands in this process, which saves each of them a start; `test_reads` runs them as people do."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["kintsugi", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        sys.stdout.flush()
        return Done(code, *capfd.readouterr())

    return run


def in_tables(own: Addresses, query: str, *parameters: Any) -> Any:
    """The first value of a query, waited for."""

    def look() -> Any:
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
            row = connection.execute(query, parameters).fetchone()  # type: ignore[arg-type]
            return row and row[0]

    return wait_for(query, look)


def completed(own: Addresses, workflow_id: str) -> None:
    in_tables(own, "SELECT 1 FROM workflows WHERE id = %s AND status = 'completed'", workflow_id)


def read(done: Done) -> Any:
    """The JSON that a command printed."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def audited(topics: Topics, subject: str) -> list[tuple[str, str, str, str]]:
    """What the audit log says of one subject."""
    entries = [json.loads(m.value() or b"") for m in topics.read(AUDIT, {"ann"})]
    return [(e["action"], e["outcome"], e["actor"], e["reason"]) for e in entries if e["subject"] == subject]


def test_checkpoints_are_listed_shown_and_compared(
    topics: Topics, own: Addresses, start: Start, serve: Serve, cli: Run
) -> None:
    start("projector").wait_log("partitions assigned")
    workflow_id = serve().kind.start({"n": 1}).workflow_id
    completed(own, workflow_id)

    rows = read(cli("checkpoints", "list", "--workflow", workflow_id, "--output", "json"))
    assert [(r["step_id"], r["checkpoint_type"], r["sequence"], r["verified"]) for r in rows] == [
        ("three", "step_complete", 6, True),
        ("three", "step_start", 5, True),
        ("two", "step_complete", 4, True),
        ("two", "step_start", 3, True),
        ("one", "step_complete", 2, True),
        ("one", "step_start", 1, True),
    ]
    only = ("--step", "two", "--type", "step_start", "--output", "json")
    assert [r["sequence"] for r in read(cli("checkpoints", "list", "--workflow", workflow_id, *only))] == [3]
    assert read(cli("checkpoints", "list", "--workflow", workflow_id, "--rejected", "--output", "json")) == []

    first, last = rows[-1]["id"], rows[0]["id"]
    shown = read(cli("checkpoints", "show", rows[2]["id"], "--output", "json"))
    assert (shown["before"]["sequence"], shown["after"]["sequence"]) == (3, 5)
    assert (shown["lies_in"], shown["verified"], shown["rejections"]) == ("log", True, [])
    assert shown["state_data"]["data"] == {"done": ["one", "two"], "n": 1}
    text = cli("checkpoints", "show", rows[2]["id"].upper())
    assert text.returncode == 0 and '"done"' in text.stdout and f"{rows[3]['id']} (step_start 3)" in text.stdout

    differ = cli("checkpoints", "diff", first, last, "--output", "json")
    assert differ.returncode == 1
    assert {"change": "added", "path": "$.data.done", "before": None, "after": ["one", "two", "three"]} in read(differ)[
        "changes"
    ]
    same = cli("checkpoints", "diff", last, last)
    assert (same.returncode, same.stdout) == (0, "")
    bounded = cli("checkpoints", "diff", first, last, "--limit", "1", "--output", "json")
    assert len(read(bounded)["changes"]) == 1 < read(bounded)["count"]
    assert "--limit" in bounded.stderr

    versions = read(cli("state", "history", workflow_id, "--output", "json"))
    assert [(v["version"], v["source"]) for v in versions] == [(str(n), "checkpoint") for n in (6, 5, 4, 3, 2, 1)]
    by_version = cli("state", "diff", workflow_id, "1", "latest", "--output", "json")
    assert by_version.returncode == 1
    assert read(by_version)["changes"] == read(differ)["changes"]
    by_id = cli("state", "diff", workflow_id, versions[0]["id"], "latest")
    assert (by_id.returncode, by_id.stdout) == (0, "")


def test_a_revealed_state_is_read_from_the_log_and_that_is_written_down(
    topics: Topics, own: Addresses, start: Start, serve: Serve, cli: Run
) -> None:
    start("projector").wait_log("partitions assigned")
    workflow_id = serve().kind.start({"n": 1}).workflow_id
    completed(own, workflow_id)
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND sequence = 2"
    checkpoint_id = in_tables(own, query, workflow_id)
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        hidden = '{"$kintsugi": "sealed", "protection": "aes-256-gcm"}'
        connection.execute(
            "UPDATE kintsugi.workflow_checkpoints SET state_data = %s WHERE id = %s", [hidden, checkpoint_id]
        )
    sealed = cli("checkpoints", "show", checkpoint_id)
    assert "sealed" in sealed.stdout and '"done"' not in sealed.stdout
    assert cli("checkpoints", "diff", checkpoint_id, checkpoint_id).returncode == 1
    assert cli("checkpoints", "show", checkpoint_id, "--reveal").returncode == 2, "without a reason"
    assert audited(topics, checkpoint_id) == []

    opened = cli("checkpoints", "show", checkpoint_id, "--reveal", "--reason", "case 7", "--output", "json")
    assert read(opened)["state_data"]["data"] == {"done": ["one"], "n": 1}
    assert audited(topics, checkpoint_id) == [
        ("checkpoints.reveal", "begun", "ann", "case 7"),
        ("checkpoints.reveal", "done", "ann", "case 7"),
    ]


def test_what_is_not_there_is_exit_3_and_what_is_no_id_is_exit_2(cli: Run) -> None:
    nobody = str(uuid.uuid4())
    for command in (
        ("checkpoints", "show", nobody),
        ("checkpoints", "diff", nobody, nobody),
        ("state", "history", nobody),
        ("state", "diff", nobody, "1", "2"),
        ("workflows", "restore", nobody, "--to", nobody, "--dry-run"),
    ):
        assert cli(*command).returncode == 3, command
    assert cli("checkpoints", "show", "42").returncode == 2
    restore = ("workflows", "restore", nobody)
    assert cli(*restore, "--dry-run").returncode == 2, "no target"
    assert cli(*restore, "--to", nobody, "--before-step", "one", "--dry-run").returncode == 2, "two targets"
    assert cli(*restore, "--to", nobody).returncode == 2, "no reason"
    assert cli(*restore, "--to", nobody, "--reason", "x").returncode == 2, "nobody to ask"
    assert cli(*restore, "--at", "yesterday", "--dry-run").returncode == 2


def test_an_operator_restores_a_workflow_and_the_steps_run_again(
    topics: Topics, own: Addresses, start: Start, serve: Serve, cli: Run
) -> None:
    for role in (start("recovery"), start("projector")):
        role.wait_log("partitions assigned")
    here = serve()
    assert here.client.listen()
    workflow_id = here.kind.start({"plan": {"three": ["hang"]}}).workflow_id
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND step_id = 'one' AND sequence = 2"
    checkpoint_id = in_tables(own, query, workflow_id)
    wait_for("the last step", lambda: here.ran(workflow_id) == ["one", "two", "three"])

    restore = ("workflows", "restore", workflow_id, "--before-step", "two")
    planned = read(cli(*restore, "--dry-run", "--output", "json"))
    assert planned["checkpoint"]["checkpoint_id"] == checkpoint_id
    assert [(s["step_id"], s["status"], s["idempotent"]) for s in planned["runs_again"]] == [
        ("two", "completed", True),
        ("three", "running", True),
    ]
    assert planned["supersedes_errors"] == []
    assert topics.events(RestoreRequested, {workflow_id}) == [], "a dry run changes nothing"
    assert audited(topics, workflow_id) == []

    done = cli(*restore, "--reason", "wrong region", "--yes", "--output", "json")
    assert done.returncode == 0, done.stderr
    told = read(done)
    assert told["outcome"] == "restored"
    assert {"requested", "accepted"} <= {s["what"] for s in told["steps"]}
    wait_for("the end", lambda: topics.events(WorkflowCompleted, {workflow_id}))
    assert here.ran(workflow_id) == ["one", "two", "three", "two", "three"]

    (request,) = topics.events(RestoreRequested, {workflow_id})
    assert (request.checkpoint_id, request.reason, request.actor) == (checkpoint_id, "wrong region", "ann")
    assert request.request_id == told["request_id"]
    restored = topics.events(StateRestored, {workflow_id})
    assert [r.checkpoint_id for r in restored] == [checkpoint_id]
    keys = {m.partition() for m in topics.read(EVENTS, {workflow_id})}
    assert len(keys) == 1, "the request is in the workflow's own partition"
    assert [a[:3] for a in audited(topics, workflow_id)] == [
        ("workflows.restore", "begun", "ann"),
        ("workflows.restore", "done", "ann"),
    ]

    completed(own, workflow_id)
    ended = cli(*restore, "--dry-run")
    assert ended.returncode == 4 and "completed" in ended.stderr


def test_checkpoints_are_exported_and_nothing_is_written_over(
    own: Addresses, start: Start, serve: Serve, cli: Run, tmp_path: Path
) -> None:
    start("projector").wait_log("partitions assigned")
    workflow_id = serve().kind.start({"n": 1}).workflow_id
    completed(own, workflow_id)
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND sequence = 2"
    checkpoint_id = in_tables(own, query, workflow_id)

    one = read(cli("checkpoints", "export", checkpoint_id))
    assert one["state"]["data"] == {"done": ["one"], "n": 1}
    assert (one["checkpoint"]["id"], one["checkpoint"]["sequence"]) == (checkpoint_id, 2)
    assert digest_of(canonical_bytes(one["state"])) == one["checkpoint"]["checksum"], (
        "the file can be checked by anybody"
    )
    assert yaml.safe_load(cli("checkpoints", "export", checkpoint_id, "--format", "yaml").stdout) == one

    lines = cli("checkpoints", "export", "--workflow", workflow_id).stdout.splitlines()
    assert [json.loads(line)["checkpoint"]["sequence"] for line in lines] == [1, 2, 3, 4, 5, 6]
    documents = list(
        yaml.safe_load_all(cli("checkpoints", "export", "--workflow", workflow_id, "--format", "yaml").stdout)
    )
    assert documents == [json.loads(line) for line in lines]

    folder = tmp_path / "new" / "folder"
    to_files = ("checkpoints", "export", "--workflow", workflow_id, "--to", str(folder))
    assert cli(*to_files).returncode == 0
    files = sorted(folder.iterdir())
    assert [json.loads(f.read_text())["checkpoint"]["sequence"] for f in files] == [1, 2, 3, 4, 5, 6]
    assert {f.stat().st_mode & 0o777 for f in files} == {0o600}
    kept = files[0].read_bytes()
    again = cli(*to_files)
    assert again.returncode == 4 and "nothing is written over" in again.stderr
    assert files[0].read_bytes() == kept and sorted(folder.iterdir()) == files

    with psycopg.connect(own.postgres, autocommit=True) as connection:
        hidden = '{"$kintsugi": "sealed", "protection": "aes-256-gcm"}'
        connection.execute(
            "UPDATE kintsugi.workflow_checkpoints SET state_data = %s WHERE id = %s", [hidden, checkpoint_id]
        )
    refused = cli("checkpoints", "export", checkpoint_id)
    assert (refused.returncode, refused.stdout) == (1, "") and "--reveal" in refused.stderr
    partial = cli("checkpoints", "export", "--workflow", workflow_id)
    assert partial.returncode == 5 and len(partial.stdout.splitlines()) == 5
    opened = read(cli("checkpoints", "export", checkpoint_id, "--reveal", "--reason", "case 7"))
    assert (opened["state"], opened["revealed"]) == (one["state"], True)


def test_the_policy_says_what_may_be_looked_into(
    own: Addresses, start: Start, serve: Serve, cli: Run, tmp_path: Path
) -> None:
    start("projector").wait_log("partitions assigned")
    workflow_id = serve().kind.start({"n": 1}).workflow_id
    completed(own, workflow_id)
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND sequence = 2"
    checkpoint_id = in_tables(own, query, workflow_id)

    def with_policy(text: str, *arguments: str) -> Done:
        file = tmp_path / "policy.yaml"
        file.write_text(f"workflow_error_handling: {{debugging: {{state_inspection: {{{text}}}}}}}")
        return cli(*arguments, "--policy", str(file))

    for command in (
        ("checkpoints", "export", checkpoint_id),
        ("checkpoints", "diff", checkpoint_id, checkpoint_id),
        ("state", "diff", workflow_id, "1", "2"),
    ):
        assert with_policy("enabled: false", *command).returncode == 7, command
        small = with_policy("max_state_size: 10", *command)
        assert small.returncode == 1 and "max_state_size" in small.stderr, command
    assert with_policy("export_formats: [yaml]", "checkpoints", "export", checkpoint_id).returncode == 7
    for text in ("enabled: false", "max_state_size: 10"):
        shown = with_policy(text, "checkpoints", "show", checkpoint_id, "--output", "json")
        assert shown.returncode == 0
        assert read(shown)["state_data"] is None and read(shown)["checksum"]


def test_a_restore_takes_the_place_of_the_repair_that_waits_for_a_human(
    topics: Topics, own: Addresses, start: Start, serve: Serve, cli: Run
) -> None:
    for role in (start("recovery", "--policy", str(PATIENT)), start("projector")):
        role.wait_log("partitions assigned")
    here = serve()
    assert here.client.listen()
    workflow_id = here.kind.start({"plan": {"two": ["fail:Broken"]}}).workflow_id
    waiting = "SELECT id::text FROM workflow_errors WHERE workflow_id = %s AND status = 'waiting_for_human'"
    error_id = in_tables(own, waiting, workflow_id)
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND evidence"
    evidence_id = in_tables(own, query, workflow_id)
    refused = cli("workflows", "restore", workflow_id, "--to", evidence_id, "--dry-run")
    assert refused.returncode == 4 and "evidence" in refused.stderr
    never = cli("workflows", "restore", workflow_id, "--before-step", "three", "--dry-run")
    assert never.returncode == 3 and "steps that ran: one, two" in never.stderr
    nothing = cli("workflows", "restore", workflow_id, "--before-step", "one", "--dry-run")
    assert nothing.returncode == 4 and "no verified checkpoint stands before" in nothing.stderr

    now = datetime.now(UTC).isoformat()
    planned = read(cli("workflows", "restore", workflow_id, "--at", now, "--dry-run", "--output", "json"))
    assert [e["id"] for e in planned["supersedes_errors"]] == [error_id]
    assert planned["checkpoint"]["step_id"] == "two", "saved as the step began"
    done = cli("workflows", "restore", workflow_id, "--before-step", "two", "--reason", "mended", "--yes")
    assert done.returncode == 0, done.stderr
    assert "restored: restore 1 of this workflow" in done.stderr
    assert "Errors whose repair this takes the place of" in done.stdout and error_id in done.stdout
    completed(own, workflow_id)
    assert here.ran(workflow_id) == ["one", "two", "two", "three"]
    in_tables(own, "SELECT 1 FROM workflow_errors WHERE id = %s AND status = 'recovered'", error_id)


def test_a_restore_that_nobody_carries_out_says_what_it_waited_for(
    topics: Topics, own: Addresses, start: Start, serve: Serve, cli: Run
) -> None:
    start("projector").wait_log("partitions assigned")
    here = serve()
    workflow_id = here.kind.start({"plan": {"two": ["hang"]}}).workflow_id
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND sequence = 2"
    checkpoint_id = in_tables(own, query, workflow_id)
    restore = ("workflows", "restore", workflow_id, "--to", checkpoint_id, "--reason", "x", "--yes")
    late = cli(*restore, "--timeout", "2")
    assert late.returncode == 8
    assert "is a recovery process running?" in late.stderr and "waits in the log" in late.stderr
    request = cli(*restore, "--no-wait", "--output", "json")
    assert (request.returncode, read(request)["outcome"]) == (0, "requested")
    assert len(topics.events(RestoreRequested, {workflow_id})) == 2


def test_a_restore_that_the_service_cannot_do_is_exit_1_with_the_reason(
    topics: Topics, own: Addresses, start: Start, serve: Serve, cli: Run
) -> None:
    for role in (start("recovery", "--policy", str(PATIENT)), start("projector")):
        role.wait_log("partitions assigned")
    here = serve(version="7")
    assert here.client.listen()
    workflow_id = here.kind.start({"plan": {"two": ["hang"]}}).workflow_id
    query = "SELECT id::text FROM workflow_checkpoints WHERE workflow_id = %s AND sequence = 2"
    checkpoint_id = in_tables(own, query, workflow_id)
    here.kind.version = "6"
    done = cli("workflows", "restore", workflow_id, "--to", checkpoint_id, "--reason", "x", "--yes", "--output", "json")
    assert done.returncode == 1, done.stderr
    last = read(done)["steps"][-1]
    assert (last["what"], last["reason"]) == ("failed", "downgrade")
