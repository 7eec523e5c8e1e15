"""A broker and Postgres of a test's own, recovery and projector on them, and what must hold when a fault is over."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from engine import invariants
from engine.policy import default_policy
from ops.setup import set_up
from ops.stack import Addresses
from ops.verify import Report, verify
from schemas.records import Record

from .kit import Role, Topics, failing, wait_for
from .servers import WAL_SEGMENT_BYTES, Broker, Disk, Postgres, folder
from .test_projector_role import healthy, query, status_of

#: Left of a disk: a few checkpoints.
LEFT_BYTES = 1024 * 1024
#: State of a checkpoint that takes as much room in the tables: nothing about it can be packed.
STATE_BYTES = 200_000
CATCH_UP_S = 60.0


class Rig:
    """Servers that may be broken, and the roles on them."""

    def __init__(self, home: Path, registry: str, disk: Disk | None) -> None:
        self.broker, self.postgres, self._disk = Broker(home), Postgres(home, disk=disk), disk
        objects = (home / "objects").as_uri()
        self.at = Addresses(kafka=self.broker.address, registry=registry, postgres=self.postgres.url, objects=objects)
        self.home = home
        self.roles: list[Role] = []
        self._running: dict[str, Role] = {}

    def start(self, role: str, *arguments: str, postgres: str | None = None) -> Role:
        """One more process of a role."""
        at = self.at if postgres is None else replace(self.at, postgres=postgres)
        log = self.home / f"{role}-{len(self.roles)}.log"
        self.roles.append(Role(role, {**os.environ, **at.environment()}, log, *arguments))
        return self.roles[-1]

    def running(self, name: str) -> Role:
        """The process of a role that goes on from test to test."""
        role = self._running.get(name)
        if role is None or role.process.poll() is not None:
            role = self._running[name] = self.start(name)
        role.wait_log("partitions assigned")
        return role

    def fill(self, way: str) -> None:
        """Leave no room for the tables: on their disk, or in any file."""
        if way == "disk":
            assert self._disk is not None
            self._disk.fill(LEFT_BYTES)
        else:
            self.postgres.limit_files(WAL_SEGMENT_BYTES)

    def clear(self) -> None:
        """Give it back, as an operator does, who also starts what ended."""
        self.postgres.limit_files(None)
        if self._disk is not None:
            self._disk.clear()
        self.postgres.start()


@contextmanager
def rig(registry: str, disk: Disk | None) -> Iterator[Rig]:
    """Servers that are set up; nothing of them is left."""
    with ExitStack() as stack, folder() as home:
        made = Rig(home, registry, disk)
        for server in (made.broker, made.postgres):
            stack.callback(server.kill)
        made.postgres.make()
        made.broker.begin()
        for server in (made.postgres, made.broker):
            server.start()
        set_up(made.at)
        try:
            yield made
        finally:
            for role in made.roles:
                role.kill()


def heavy(workflow_id: str) -> list[Record]:
    """A workflow whose checkpoint takes room."""
    return healthy(workflow_id, ballast=random.randbytes(STATE_BYTES // 2).hex())


def put(topics: Topics, count: int = 1) -> list[str]:
    """Workflows that take room and complete; their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    for workflow_id in ids:
        topics.put(*heavy(workflow_id))
    return ids


def repaired(topics: Topics) -> str:
    """A workflow fails and gets its command; its id."""
    workflow_id = str(uuid.uuid4())
    topics.put(*failing(workflow_id))
    wait_for("a command", lambda: topics.commands({workflow_id}))
    return workflow_id


def first_commands(topics: Topics, workflow_id: str) -> int:
    """How many first attempts there are at a workflow's error, each counted once however often it is in the log."""
    return len({c.command_id for c in topics.commands({workflow_id}) if c.attempt_number == 1})


def stands(at: Addresses, workflow_id: str, status: str) -> bool:
    """Whether a workflow's row says so; not while Postgres gets up again."""
    with suppress(psycopg.OperationalError):
        return status_of(at, workflow_id) == status
    return False


def all_came(at: Addresses, topics: Topics, completed: list[str], recovering: str) -> None:
    """The tables catch up, nobody is parked, one command was sent, and log and tables are what they must be."""
    wait_for("rows", lambda: all(stands(at, i, "completed") for i in completed), CATCH_UP_S)
    wait_for("a row", lambda: stands(at, recovering, "recovering"), CATCH_UP_S)
    for table in ("parked_workflows", "dead_letters"):
        assert query(at, f"SELECT count(*) FROM {table}") == [(0,)]
    assert first_commands(topics, recovering) == 1
    reports: list[Report] = []

    def sound() -> bool:  # what follows from the last records may still be on its way to the log
        reports.append(proof(at))
        return reports[-1].sound

    try:
        wait_for("log and tables agree", sound, CATCH_UP_S)
    except AssertionError:
        pytest.fail(str(reports[-1]))


def proof(at: Addresses) -> Report:
    """What `kintsugi verify` finds; whatever is not in the log at this moment is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invariants, "GRACE_US", 0)
        return verify(at, default_policy(), lambda what, done, total: None)
