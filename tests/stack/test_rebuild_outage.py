"""A rebuild and a promotion while Postgres dies under them: they wait, say so, and go on where they were."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

import psycopg

from ops import stack
from ops.stack import Addresses

from .kit import Topics, wait_for
from .test_projector_role import healthy, query

WORKFLOWS = 20


def through_an_outage(at: Addresses, home: Path, told: Path, in_the_way: bytes, waits: str, *arguments: str) -> None:
    """Run a command until it is stuck behind a statement's locks, kill Postgres, let the command say that it waits, and
    bring Postgres back: then the command succeeds."""
    stuck = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'kintsugi-generations' AND wait_event_type = 'Lock'"
    )
    with closing(psycopg.connect(at.postgres)) as connection, told.open("wb") as log:
        connection.execute(in_the_way)
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "projections", *arguments, "--reason", "a test"],
            env={**os.environ, **at.environment()},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            wait_for("it is stuck", lambda: query(at, stuck) == [(1,)])
            stack.kill_part("postgres", home)
            wait_for("it says that it waits", lambda: waits in told.read_text())
            assert stack.ensure(home) == at
        finally:
            ends(process, told)


def ends(process: subprocess.Popen[bytes], told: Path) -> None:
    try:
        assert process.wait(120) == 0, told.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_rebuild_and_a_promotion_wait_for_postgres_and_go_on(
    breakable: Addresses, home: Path, tmp_path: Path
) -> None:
    at = breakable
    topics = Topics(at)
    for _ in range(WORKFLOWS):
        topics.put(*healthy(str(uuid.uuid4())))
    topics.registry.close()
    told = tmp_path / "rebuild.log"
    it_gets_as_far_as_this = b"LOCK TABLE kintsugi.generation_parts IN ACCESS EXCLUSIVE MODE"
    through_an_outage(at, home, told, it_gets_as_far_as_this, "waits 2 s", "rebuild")
    assert "waits 1 s, 900 s at most in all: Postgres" in told.read_text()
    ((name, state),) = query(at, "SELECT name, state FROM generations")
    assert state == "ready"
    done = query(at, f"SELECT count(*) FROM {name}.workflows WHERE status = 'completed'")
    assert done == [(WORKFLOWS,)]

    a_reader_that_does_not_end = b"SELECT count(*) FROM kintsugi.workflows"
    through_an_outage(at, home, tmp_path / "promote.log", a_reader_that_does_not_end, "waits 1 s", "promote", name)
    states = dict(query(at, "SELECT name, state FROM generations"))
    assert sorted(states.values()) == ["promoted", "retired"]
    assert query(at, "SELECT count(*) FROM workflows WHERE status = 'completed'") == [(WORKFLOWS,)]
