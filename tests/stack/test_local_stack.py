"""`kintsugi up` on real servers: it starts, stays, tells what crashed, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from ops import stack
from ops.kafka_topics import create, describe
from ops.stack import local
from ops.stack.state import VARIABLES, read
from schemas.catalog import shipped
from schemas.registry import Registry

pytestmark = pytest.mark.skipif(
    all(os.environ.get(v) for v in VARIABLES.values()), reason="servers given by the environment are not ours to stop"
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "stack"
    local.down(tmp_path / "stack", purge=True)


def pids(home: Path) -> dict[str, int | None]:
    return {name: part.pid for name, part in read(home).parts.items()}


def cli(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    bare = {k: v for k, v in os.environ.items() if not k.startswith("KINTSUGI_")}
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", *arguments],
        env={**bare, "KINTSUGI_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_stack_starts_survives_a_restart_reports_a_crash_and_leaves_no_process(home: Path) -> None:
    first = local.up(home)
    create(first.kafka)
    with Registry(first.registry) as registry:
        registry.register(list(shipped().values())[:2])
    with psycopg.connect(first.postgres) as connection:
        connection.execute("CREATE TABLE kept (n int)")
    before = pids(home)

    assert local.up(home) == first, "a second up must be a no-op"
    assert pids(home) == before

    local.kill_part("kafka", home)
    shown = cli("status", "--output", "json", home=home)
    assert shown.returncode == 1
    states = {p["name"]: p for p in json.loads(shown.stdout)}
    assert states["kafka"]["state"] == "crashed"
    assert states["kafka"]["log"].endswith("kafka.log")
    assert states["postgres"]["state"] == "running"

    again = local.up(home)
    assert again == first, "ports are remembered"
    assert pids(home)["postgres"] == before["postgres"], "what runs is left alone"
    assert pids(home)["kafka"] != before["kafka"]
    assert all(topic.exists and not topic.differences for topic in describe(again.kafka))

    running = [p for p in pids(home).values() if p]
    assert cli("down", home=home).returncode == 0
    assert not [p for p in running if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
    assert {p.state for p in local.status(home)} == {"stopped"}

    after = local.up(home)
    with Registry(after.registry) as registry:
        states_after = {r.state for r in registry.register(list(shipped().values())[:2])}
    assert states_after == {"registered"}, "schemas survive a restart"
    with psycopg.connect(after.postgres) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_two_stacks_on_one_machine_do_not_collide(home: Path, addresses: stack.Addresses) -> None:
    other = local.up(home)
    mine, theirs = set(other.environment().values()), set(addresses.environment().values())
    assert not mine & theirs
    assert not [s for s in describe(other.kafka) if s.exists], "the other stack's topics are not ours"


def test_no_stack_is_a_temporary_failure_that_says_what_to_run(tmp_path: Path) -> None:
    done = cli("topics", "describe", home=tmp_path)
    assert done.returncode == 75
    assert "kintsugi up" in done.stderr


def test_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    done = cli("status", home=tmp_path)
    assert done.returncode == 1
    assert "stack.json is damaged" in done.stderr


def test_servers_nobody_knows_any_more_are_stopped_with_the_purge(home: Path) -> None:
    local.up(home)
    left = [p for p in pids(home).values() if p]
    assert len(left) == 3
    (home / "stack.json").write_text("{")
    assert cli("down", "--purge", "--yes", home=home).returncode == 0
    assert not [p for p in left if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
    assert not home.exists()


def test_killed_postgres_is_reported_with_the_end_of_its_log_and_keeps_its_rows(home: Path) -> None:
    at = local.up(home)
    with psycopg.connect(at.postgres) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    local.kill_part("postgres", home)
    shown = cli("status", home=home)
    assert shown.returncode == 1
    assert "crashed" in shown.stdout
    assert "unexpected postmaster exit" in shown.stdout, "the end of its log tells what happened"
    assert "database system is ready" in cli("logs", "postgres", "--lines", "500", home=home).stdout
    again = local.up(home)
    with psycopg.connect(again.postgres) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (1,)


def test_recycled_pid_is_never_killed(home: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        home.mkdir()
        (home / "stack.json").write_text(
            json.dumps(
                {
                    "backend": "processes",
                    "parts": {"kafka": {"port": 1, "pid": child.pid, "started_at": 1.0, "extra": {}}},
                }
            )
        )
        local.down(home)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
