"""Faults of the servers under live roles: disks without room, and servers that hang, die, or are another one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.log_reader import LogReader
from ops.stack import Addresses
from projections import connection as connecting
from projections import store as storing
from projections.migrate import migrate
from projections.store import Store
from schemas.errors import RetriableError
from schemas.topics import DEAD_LETTERS, EVENTS

from .database import own_database
from .kit import Role, Topics, failing, wait_for
from .rig import STATE_BYTES, Rig, all_came, first_commands, heavy, proof, put, repaired, rig
from .servers import WAL_SEGMENT_BYTES, Disk, Postgres, folder, may_mount
from .test_projector_role import query, status_of

#: Twice what all of these tests put there.
DISK_BYTES = 256 * 1024 * 1024
#: Workflows whose checkpoints, 4 MB, come at once, and find this memory.
LARGE, MEMORY_LEFT_BYTES = 20, 1024 * 1024
#: Files that may not grow, as with a quota; and where mounting is allowed a disk that is full.
WAYS = ("file_size", "disk") if may_mount() else ("file_size",)


@pytest.fixture(scope="module")
def servers(addresses: Addresses) -> Iterator[Rig]:
    disk = Disk(DISK_BYTES) if may_mount() else None
    with rig(addresses.registry, disk) as made:
        yield made
    if disk is not None:
        disk.close()


@pytest.fixture(scope="module")
def topics(servers: Rig) -> Iterator[Topics]:
    found = Topics(servers.at)
    yield found
    found.registry.close()


@pytest.fixture
def recovery(servers: Rig) -> Role:
    return servers.running("recovery")


@pytest.fixture
def projector(servers: Rig) -> Role:
    return servers.running("projector")


def limit_memory(role: Role, more_bytes: int) -> None:
    """From now on the kernel gives a process so much more, and no further."""
    limit = psutil.Process(role.process.pid).memory_info().data + more_bytes
    subprocess.run(["prlimit", f"--pid={role.process.pid}", f"--data={limit}"], check=True)


def has_more_threads(process: psutil.Process, than: int) -> bool:
    return bool(process.num_threads() > than)


@pytest.mark.parametrize("way", WAYS)
def test_on_a_full_disk_the_tables_wait_and_repairs_go_on(
    servers: Rig, topics: Topics, recovery: Role, projector: Role, way: str
) -> None:
    """Row 20: of the tables."""
    before = projector.metric("kintsugi_disk_full_total")
    ids = put(topics)
    wait_for("the tables", lambda: status_of(servers.at, ids[0]) == "completed")
    servers.fill(way)
    try:

        def full() -> bool:
            ids.extend(put(topics, 2))
            return projector.metric("kintsugi_disk_full_total") > before

        wait_for("a disk is full", full)
        told = projector.wait_log("disk is full")
        assert (told["level"], told["hint"]) == ("error", "make room on its disk; nothing else is to be done")
        recovering = repaired(topics)
    finally:
        servers.clear()
    all_came(servers.at, topics, ids, recovering)


def test_a_write_ahead_log_without_room_ends_postgres_and_loses_nothing(
    servers: Rig, topics: Topics, recovery: Role, projector: Role
) -> None:
    """Row 20: of what Postgres must write before anything else."""
    servers.postgres.limit_files(WAL_SEGMENT_BYTES // 2)
    try:

        def ended() -> bool:
            try:
                with psycopg.connect(servers.at.postgres, autocommit=True, connect_timeout=2) as connection:
                    connection.execute("SELECT pg_logical_emit_message(false, 'ballast', repeat('x', 100000))")
            except psycopg.OperationalError:
                pass
            return not servers.postgres.running

        wait_for("Postgres ends", ended)
        ids = put(topics)
        recovering = repaired(topics)
    finally:
        servers.postgres.start()
    all_came(servers.at, topics, ids, recovering)


def test_on_a_full_disk_a_rebuild_waits_and_goes_on(
    servers: Rig, topics: Topics, recovery: Role, projector: Role, tmp_path: Path
) -> None:
    """Row 20: of a generation that is being filled."""
    ids = put(topics, 8)  # more than the files of new tables may hold below
    wait_for("the tables", lambda: all(status_of(servers.at, i) == "completed" for i in ids))
    told = tmp_path / "rebuild.log"
    servers.fill("file_size")
    try:
        with told.open("wb") as log:
            rebuild = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "projections", "rebuild", "--reason", "a test", "--output", "json"],
                env={**os.environ, **servers.at.environment()},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        wait_for("it waits", lambda: "waits 1 s" in told.read_text())
        recovering = repaired(topics)
        servers.clear()
        assert rebuild.wait(60) == 0, told.read_text()
    finally:
        servers.clear()
        rebuild.kill()
        rebuild.wait()
    assert "could not extend file" in told.read_text()
    ((name, state),) = query(servers.at, "SELECT name, state FROM generations")
    assert state == "ready"
    done = query(servers.at, f"SELECT count(*) FROM {name}.workflows WHERE id = ANY(%s::uuid[])", ids)
    assert done == [(len(ids),)]
    all_came(servers.at, topics, ids, recovering)


def test_a_broker_whose_disk_is_full_ends_and_loses_nothing(
    servers: Rig, topics: Topics, recovery: Role, projector: Role
) -> None:
    """Row 20: of the log itself; and row 10."""
    ids, held = put(topics), [str(uuid.uuid4()) for _ in range(20)]
    servers.broker.limit_files(STATE_BYTES)
    try:
        for workflow_id in held:
            for record in heavy(workflow_id):
                topics.producer.produce("workflow.events", topics.codec.encode(record), workflow_id.encode())
        wait_for("the broker ends", lambda: not servers.broker.running)
        assert "File too large" in servers.broker.log.read_text(errors="replace")
        for role in (recovery, projector):
            assert role.process.poll() is None
    finally:
        servers.broker.start()
    assert topics.producer.flush(60) == 0
    all_came(servers.at, topics, [*ids, *held], repaired(topics))


def test_while_postgres_is_frozen_repairs_go_on(servers: Rig, topics: Topics, recovery: Role, projector: Role) -> None:
    """Row 22."""
    wait_for("no lag", lambda: projector.metric("kintsugi_consumer_lag_records") == 0)
    applied = projector.metric("kintsugi_events_processed_total", outcome="applied")
    servers.postgres.freeze()
    try:
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(servers.at.postgres, connect_timeout=2)
        ids = put(topics, 4)
        recovering = repaired(topics)
        assert projector.metric("kintsugi_events_processed_total", outcome="applied") == applied
    finally:
        servers.postgres.thaw()
    all_came(servers.at, topics, ids, recovering)


def test_a_frozen_postgres_is_not_waited_for_without_end(servers: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 22: neither for an answer nor for a connection, and then it is as if nothing had been."""
    monkeypatch.setattr(connecting, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(storing, "CONNECT_TIMEOUT_S", 2)
    with own_database(servers.at.postgres) as url:
        store = Store(url)
        store.claim(0)
        store.apply(0, [], [], start=0, end=5)
        servers.postgres.freeze()
        try:
            with pytest.raises(RetriableError, match=r"no answer within 0\.5 s"):
                store.apply(0, [], [], start=5, end=6)
            with pytest.raises(RetriableError, match="timeout"):
                store.claim(0)
        finally:
            servers.postgres.thaw()
        assert store.claim(0) == 5
        store.close()


def test_another_server_takes_over_and_the_tables_are_the_fold_of_the_log(
    servers: Rig, topics: Topics, recovery: Role
) -> None:
    """Row 21: a replica that has not heard everything becomes the primary. Position and rows go back together."""
    with ExitStack() as stack:
        first, second = (Postgres(stack.enter_context(folder())) for _ in range(2))
        first.make()
        first.start()
        stack.callback(first.kill)
        migrate(first.url)
        second.copy(first)
        second.start()
        stack.callback(second.kill)
        both = f"postgresql://kintsugi@127.0.0.1:{first.port},127.0.0.1:{second.port}/kintsugi"
        role = servers.start("projector", "--group", "failover", postgres=f"{both}?target_session_attrs=read-write")
        ids = put(topics)
        one, other = replace(servers.at, postgres=first.url), replace(servers.at, postgres=second.url)
        wait_for("rows", lambda: status_of(one, ids[0]) == "completed")
        wait_for("the replica", lambda: status_of(other, ids[0]) == "completed")
        query(other, "SELECT pg_wal_replay_pause()")
        lost = put(topics, 3)
        wait_for("rows", lambda: all(status_of(one, i) == "completed" for i in lost))
        assert not any(status_of(other, i) for i in lost), "the replica does not know"
        first.kill()
        second.run("pg_ctl", "promote", "-D", str(second.folder), "--wait")
        recovering = repaired(topics)
        all_came(other, topics, [*ids, *lost], recovering)
        assert role.stop() == 0


def test_told_to_stop_and_killed_before_it_has_nothing_is_lost(servers: Rig, topics: Topics) -> None:
    """Row 2: a stop that cannot end, as the broker answers nothing, and the kill that follows it."""
    roles = [servers.running(name) for name in ("recovery", "projector")]
    ids = put(topics)
    failed = str(uuid.uuid4())
    topics.put(*failing(failed))
    servers.broker.freeze()
    try:
        for role in roles:
            process = psutil.Process(role.process.pid)
            more = partial(has_more_threads, process, process.num_threads())
            role.process.send_signal(signal.SIGTERM)
            wait_for("the watch over its stop", more)
        for role in roles:
            assert role.process.poll() is None
            role.kill()
            assert not [line for line in role.lines if line["event"] == "stopped"]
    finally:
        servers.broker.thaw()
    for name in ("recovery", "projector"):
        servers.running(name)
    wait_for("a command", lambda: topics.commands({failed}))
    all_came(servers.at, topics, ids, failed)


def test_positions_moved_by_an_operator_repeat_nothing_and_what_is_passed_over_is_told(
    servers: Rig, topics: Topics
) -> None:
    """Row 25: refused while the group is at work; moved back, and with snapshots gone, no repair is decided twice, and
    the tables keep their own position; what is passed over is named by `verify`, and done when the position is moved
    back."""
    admin = AdminClient({"bootstrap.servers": servers.at.kafka})
    names = ("recovery", "projector")

    def move(name: str, offsets: list[int]) -> None:
        places = [TopicPartition(EVENTS, partition, offset) for partition, offset in enumerate(offsets)]
        request = ConsumerGroupTopicPartitions(f"kintsugi-{name}", places)
        (asked,) = admin.alter_consumer_group_offsets([request]).values()
        for place in asked.result().topic_partitions:
            if place.error is not None:
                raise KafkaException(place.error)

    def ends() -> list[int]:
        with LogReader(servers.at.kafka) as log:
            return [end for _, end in log.bounds(EVENTS).values()]

    def stop() -> None:
        for name in names:
            assert servers.running(name).stop() == 0
        shutil.rmtree(servers.home / "objects", ignore_errors=True)  # the snapshots

    beginning = [0] * len(ends())
    done = repaired(topics)
    for name in names:
        servers.running(name)
        with pytest.raises(KafkaException):
            move(name, beginning)
    stop()
    for name in names:
        move(name, beginning)
    for name in names:
        servers.running(name)
    again = repaired(topics)
    all_came(servers.at, topics, [], again)
    assert first_commands(topics, done) == 1
    stop()
    missed = str(uuid.uuid4())
    before = ends()
    topics.put(*failing(missed))
    for name in names:
        move(name, ends())
    for name in names:
        servers.running(name)
    again = repaired(topics)
    wait_for("a row of what was passed over", lambda: status_of(servers.at, missed))
    assert not topics.commands({missed})
    wait_for("no lag", lambda: servers.running("recovery").metric("kintsugi_consumer_lag_records") == 0)
    assert missed in {f.workflow_id for f in proof(servers.at).findings if f.rule == "missing"}
    stop()
    move("recovery", before)
    for name in names:
        servers.running(name)
    wait_for("a command", lambda: topics.commands({missed}))
    all_came(servers.at, topics, [], missed)
    assert first_commands(topics, again) == 1


@pytest.mark.parametrize("name", ["recovery", "projector"])
def test_out_of_memory_a_process_ends_and_sets_nothing_aside(servers: Rig, topics: Topics, name: str) -> None:
    """Row 23: what the next one reads again was nobody's fault."""
    other = servers.running("projector" if name == "recovery" else "recovery")
    servers.running(name).stop()
    role = servers.running(name)
    role.process.send_signal(signal.SIGSTOP)  # all of it comes at once
    ids = put(topics, LARGE)
    limit_memory(role, MEMORY_LEFT_BYTES)
    role.process.send_signal(signal.SIGCONT)
    wait_for("it ends", lambda: role.process.poll() is not None)
    assert role.process.returncode != 0, "nobody told it to stop"
    assert other.process.poll() is None
    servers.running(name)
    all_came(servers.at, topics, ids, repaired(topics))
    assert topics.read(DEAD_LETTERS) == []
