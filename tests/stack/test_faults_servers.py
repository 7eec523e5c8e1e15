"""Faults of the servers under live roles: disks without room, and servers that hang, die, or are another one."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from engine.policy import default_policy
from ops.setup import set_up
from ops.stack import Addresses
from ops.verify import verify

from .kit import Role, Topics, failing, wait_for
from .servers import WAL_SEGMENT_BYTES, Broker, Postgres, disk_or_none, folder
from .test_projector_role import healthy, query, status_of

DISK_BYTES = 128 * 1024 * 1024
#: Left of the disk: a few checkpoints.
LEFT_BYTES = 1024 * 1024
#: State of a checkpoint that takes as much room in the tables: nothing about it can be packed.
STATE_BYTES = 200_000
#: A disk of a size of its own, where mounting is allowed; everywhere, files that may not grow, as with a quota.
DISK = disk_or_none(DISK_BYTES)
WAYS = ("file_size", "disk") if DISK is not None else ("file_size",)


class Rig:
    """A broker and Postgres of our own, with recovery and projector on them all through the tests."""

    def __init__(self, home: Path, registry: str) -> None:
        self.broker, self.postgres = Broker(home), Postgres(home, disk=DISK)
        self.at = Addresses(
            kafka=self.broker.address,
            registry=registry,
            postgres=self.postgres.url,
            objects=(home / "objects").as_uri(),
        )
        self._home = home
        self.roles: list[Role] = []

    def start(self, role: str, *arguments: str, postgres: str | None = None) -> Role:
        """A role on these servers."""
        at = self.at if postgres is None else replace(self.at, postgres=postgres)
        log = self._home / f"{role}-{len(self.roles)}.log"
        self.roles.append(Role(role, {**os.environ, **at.environment()}, log, *arguments))
        return self.roles[-1]

    def fill(self, way: str) -> None:
        """Leave no room for the tables."""
        if way == "disk":
            assert DISK is not None
            DISK.fill(LEFT_BYTES)
        else:
            self.postgres.limit_files(WAL_SEGMENT_BYTES)

    def clear(self) -> None:
        """Give it back."""
        self.postgres.limit_files(None)
        if DISK is not None:
            DISK.clear()


@pytest.fixture(scope="module")
def rig(addresses: Addresses) -> Iterator[Rig]:
    with ExitStack() as stack, folder() as home:
        made = Rig(home, addresses.registry)
        for server in (made.broker, made.postgres):
            stack.callback(server.kill)
        made.postgres.make()
        for server in (made.broker, made.postgres):
            server.start()
        set_up(made.at)
        yield made
        for role in made.roles:
            role.kill()
    if DISK is not None:
        DISK.close()


@pytest.fixture(scope="module")
def topics(rig: Rig) -> Iterator[Topics]:
    found = Topics(rig.at)
    yield found
    found.registry.close()


@pytest.fixture(scope="module")
def recovery(rig: Rig) -> Role:
    role = rig.start("recovery")
    role.wait_log("partitions assigned")
    return role


@pytest.fixture(scope="module")
def projector(rig: Rig) -> Role:
    role = rig.start("projector")
    role.wait_log("partitions assigned")
    return role


def heavy(workflow_id: str) -> list[object]:
    return healthy(workflow_id, ballast=random.randbytes(STATE_BYTES // 2).hex())


def put(topics: Topics, count: int = 1) -> list[str]:
    """Healthy workflows that take room; their ids."""
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


def all_came(at: Addresses, topics: Topics, completed: list[str], recovering: str) -> None:
    """The tables catch up, nobody is parked, and log and tables agree in all that they must."""
    wait_for("the tables", lambda: all(status_of(at, i) == "completed" for i in completed), 60)
    wait_for("the tables", lambda: status_of(at, recovering) == "recovering", 60)
    assert (
        query(at, "SELECT count(*) FROM parked_workflows") == query(at, "SELECT count(*) FROM dead_letters") == [(0,)]
    )
    commands = topics.commands({recovering})
    assert len({c.command_id for c in commands if c.attempt_number == 1}) == 1
    report = verify(at, default_policy(), lambda what, done, total: None)
    assert report.sound, report


@pytest.mark.parametrize("way", WAYS)
def test_on_a_full_disk_the_tables_wait_and_repairs_go_on(
    rig: Rig, topics: Topics, recovery: Role, projector: Role, way: str
) -> None:
    """Row 20: of the tables."""
    before = projector.metric("kintsugi_disk_full_total")
    ids = put(topics)
    wait_for("the tables", lambda: status_of(rig.at, ids[0]) == "completed")
    rig.fill(way)
    try:

        def full() -> bool:
            ids.extend(put(topics, 2))
            return projector.metric("kintsugi_disk_full_total") > before

        wait_for("a disk is full", full)
        told = projector.wait_log("disk is full")
        assert (told["level"], told["hint"]) == ("error", "make room on its disk; nothing else is to be done")
        recovering = repaired(topics)
    finally:
        rig.clear()
    all_came(rig.at, topics, ids, recovering)


def test_a_write_ahead_log_without_room_ends_postgres_and_loses_nothing(
    rig: Rig, topics: Topics, recovery: Role, projector: Role
) -> None:
    """Row 20: of what Postgres must write before anything else."""
    rig.postgres.limit_files(WAL_SEGMENT_BYTES // 2)
    try:

        def ended() -> bool:
            try:
                with psycopg.connect(rig.at.postgres, autocommit=True, connect_timeout=2) as connection:
                    connection.execute("SELECT pg_logical_emit_message(false, 'ballast', repeat('x', 100000))")
            except psycopg.OperationalError:
                pass
            return not rig.postgres.running

        wait_for("Postgres ends", ended)
        ids = put(topics)
        recovering = repaired(topics)
    finally:
        rig.postgres.start()
    all_came(rig.at, topics, ids, recovering)
