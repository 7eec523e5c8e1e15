"""A rebuild and a promotion while Postgres dies under them: they wait, say so, and go on where they were."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import psycopg
import pytest

from ops import stack
from ops.stack import Addresses

from .kit import Topics, wait_for
from .stacks import own_stack
from .test_projector_role import healthy, query

WORKFLOWS = 20


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "stack"


@pytest.fixture
def breakable(home: Path) -> Iterator[Addresses]:
    with own_stack(home) as at:
        yield at


def started(at: Addresses, log: BinaryIO, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "projections", *arguments, "--reason", "a test"],
        env={**os.environ, **at.environment()},
        stdout=subprocess.DEVNULL,
        stderr=log,
    )


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
    stuck = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kintsugi-generations'"
    told = tmp_path / "rebuild.log"
    with closing(psycopg.connect(at.postgres)) as connection, told.open("wb") as log:
        connection.execute("LOCK TABLE kintsugi.generation_parts IN ACCESS EXCLUSIVE MODE")  # it gets as far as this
        rebuild = started(at, log, "rebuild")
        try:
            wait_for("it is filling", lambda: query(at, stuck + " AND wait_event_type = 'Lock'") == [(1,)])
            stack.kill_part("postgres", home)
            wait_for("it says that it waits", lambda: "waits 2 s" in told.read_text())
            assert stack.ensure(home) == at
        finally:
            ends(rebuild, told)
    assert "waits 1 s, 900 s at most in all: Postgres" in told.read_text()
    ((name, state),) = query(at, "SELECT name, state FROM generations")
    assert state == "ready"
    done = query(at, f"SELECT count(*) FROM {name}.workflows WHERE status = 'completed'")
    assert done == [(WORKFLOWS,)]

    told = tmp_path / "promote.log"
    with closing(psycopg.connect(at.postgres)) as connection, told.open("wb") as log:
        connection.execute("SELECT count(*) FROM kintsugi.workflows")  # a reader that does not end
        promotion = started(at, log, "promote", name)
        try:
            wait_for("it is in the way", lambda: query(at, stuck + " AND wait_event_type = 'Lock'") == [(1,)])
            stack.kill_part("postgres", home)
            wait_for("it says that it waits", lambda: "waits 1 s" in told.read_text())
            assert stack.ensure(home) == at
        finally:
            ends(promotion, told)
    states = dict(query(at, "SELECT name, state FROM generations"))
    assert sorted(states.values()) == ["promoted", "retired"]
    assert query(at, "SELECT count(*) FROM workflows WHERE status = 'completed'") == [(WORKFLOWS,)]
