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
    assert {"error_type": "timeout", "rung": 1, "strategy": "increase_timeout_and_retry", "attempts": 3,
            "backoff": "none"} in rows  # fmt: skip
    assert "not available in this version" in done.stderr


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
