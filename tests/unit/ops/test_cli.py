"""The command line: fast help, machine-readable output, exit codes with a meaning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import prerequisites
from ops.cli import COMMANDS


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "kintsugi"), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,  # a terminal could be asked
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_help_imports_no_command() -> None:
    code = (
        "import sys; sys.argv = ['kintsugi', '--help']\n"
        "from ops.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'confluent_kafka', 'psycopg', 'rich', 'structlog', 'pydantic', 'fastavro'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_unknown_command_is_a_usage_error() -> None:
    assert run("frobnicate").returncode == 2


def test_policy_validate_shows_ladders_as_json() -> None:
    done = run("policy", "validate", "--output", "json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    first = next(row for row in rows if row["error_type"] == "timeout")
    assert (first["rung"], first["strategy"], first["attempts"], first["backoff"], first["cost"]) == (
        1,
        "increase_timeout_and_retry",
        3,
        "none",
        1.0,
    )
    assert [row["then"] for row in rows if row["error_type"] == "infinite_loop"] == [None, "then a human"]
    assert done.stderr.endswith(": valid\n")


def test_policy_validate_shows_rules_before_ladders_and_warns(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "workflow_error_handling: {recovery_rules: [{name: late, match: {error_type: timeout}, "
        "ladder: [{strategy: retry_step}]}], recovery_strategies: {timeout: {strategy: retry_step}}}"
    )
    done = run("policy", "validate", str(file), "--output", "json")
    assert done.returncode == 0
    assert [(row["rule"], row["match"]) for row in json.loads(done.stdout)] == [
        ("late", "error_type 'timeout'"),
        (None, "timeout"),
    ]
    assert "recovery_strategies.timeout: never used: recovery_rules.0 matches every error of this type" in done.stderr


def test_two_policy_files_are_compared_without_a_stack(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("workflow_error_handling: {budgets: {workflow_max_attempts: 7}}")
    done = run("policy", "diff", str(file), str(file), KINTSUGI_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing differs" in done.stderr
    done = run("policy", "diff", "default", str(file), "--output", "json", KINTSUGI_HOME=str(tmp_path))
    change = {"key": "budgets.workflow_max_attempts", "before": 30, "after": 7}
    assert change in json.loads(done.stdout)["keys"]


def test_applying_a_policy_needs_a_reason_and_somebody_to_ask(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("workflow_error_handling: {}")
    for arguments, said in [
        ([], "FILE, or --resume"),
        ([str(file), "--resume"], "FILE, or --resume"),
        ([str(file), "--yes"], "--reason is required"),
        ([str(file), "--reason", " "], "--reason is required"),
        ([str(file), "--reason", "case 1"], "nobody is there to ask"),
    ]:
        done = run("policy", "apply", *arguments, KINTSUGI_HOME=str(tmp_path))
        assert done.returncode == 2 and said in done.stderr


def test_wrong_policy_names_the_key(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("workflow_error_handling: {budgets: {workflow_max_attempts: none}}")
    done = run("policy", "validate", str(file))
    assert done.returncode == 1
    assert "budgets.workflow_max_attempts: Input should be a valid integer (got 'none')" in done.stderr


def test_missing_prerequisite_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in ("KINTSUGI_KAFKA", "KINTSUGI_REGISTRY", "KINTSUGI_POSTGRES"):
        monkeypatch.delenv(name, raising=False)
    (problem,) = prerequisites.problems()
    assert "Maven" in problem
    assert "apt-get install maven" in problem
