"""The archiver role on the real stack: whatever happens to it, the archive is whole and equal to the log."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from consumers.crash import ROLE_POINTS
from consumers.log_reader import LogReader
from ops import archive as ops_archive
from ops.archive import Report
from ops.stack import Addresses
from schemas.archive import Archive
from schemas.archive_format import Gap
from schemas.topics import EVENTS, MESSAGE_SIZE_BYTES_MAX

from .kit import Role, Topics, failing, wait_for
from .starter import command

Start = Callable[..., Role]
SOON = ("--archive-age", "0.2")
NEVER = ("--archive-age", "3600")


@pytest.fixture
def store(addresses: Addresses, tmp_path: Path) -> Addresses:
    """The store of `start`, in which archiving begins at the end of the log, so that a test meets its own records."""
    at = replace(addresses, objects=(tmp_path / "objects").as_uri())
    with LogReader(at.kafka) as log:
        archive = ops_archive.archive_of(at, log)
        for partition, (_, high) in log.bounds(EVENTS).items():
            if high > 0:
                assert archive.put_gap(Gap(partition=partition, first=0, next=high, reason="a test begins"))
    return at


@pytest.fixture
def archive(store: Addresses) -> Archive:
    with LogReader(store.kafka) as log:
        return ops_archive.archive_of(store, log)


def behind(at: Addresses) -> int:
    return sum(row["log_to"] - row["archived_to"] for row in ops_archive.status(at))


def whole(at: Addresses) -> Report:
    """The report on an archive that has all of the log."""
    wait_for("the archive has all of the log", lambda: behind(at) == 0)
    report = ops_archive.verify(at, lambda what, done, total: None)
    assert report.sound, report
    assert report.records == report.compared
    return report


def put(topics: Topics, workflows: int) -> int:
    """Records of some workflows; how many."""
    records = [record for _ in range(workflows) for record in failing(str(uuid.uuid4()))]
    topics.put(*records)
    return len(records)


def test_what_waits_is_written_when_it_is_old_and_the_partition_idle(
    topics: Topics, store: Addresses, start: Start
) -> None:
    role = start("archiver", *SOON)
    role.wait_log("partitions assigned")
    count = put(topics, 20)
    topics.raw(None, None)
    topics.raw(b"", b"", [("twice", b"1"), ("twice", b"2"), ("none", None), ("", b"")])  # type: ignore[list-item]
    assert whole(store).records == count + 2
    assert role.metric("kintsugi_events_processed_total", role="archiver", outcome="archived") == count + 2
    wait_for("no lag", lambda: role.metric("kintsugi_consumer_lag_records") == 0)
    assert role.stop() == 0


def test_a_stop_writes_what_waits_and_only_then_commits(topics: Topics, store: Addresses, start: Start) -> None:
    group = str(uuid.uuid4())
    role = start("archiver", *NEVER, "--group", group)
    role.wait_log("partitions assigned")
    before = position(store, group)
    count = put(topics, 20)
    wait_for("lag", lambda: role.metric("kintsugi_consumer_lag_records") == count)
    wait_for("waiting records", lambda: role.metric("kintsugi_archive_buffered_bytes") > 0)
    assert position(store, group) == before, "what is in memory alone is not committed"
    assert role.stop() == 0
    assert whole(store).records == count
    assert position(store, group) == before + count


def position(at: Addresses, group: str) -> int:
    """Sum of a group's positions: the archive's ends where none is committed."""
    consumer = Consumer({"bootstrap.servers": at.kafka, "group.id": group, "log_level": 0})
    try:
        ends = {row["partition"]: row["archived_to"] for row in ops_archive.status(at)}
        found = consumer.committed([TopicPartition(EVENTS, partition) for partition in ends], 10)
        return sum(tp.offset if tp.offset >= 0 else ends[tp.partition] for tp in found)
    finally:
        consumer.close()


def test_killed_at_every_step_it_leaves_no_gap_and_no_overlap(topics: Topics, store: Addresses, start: Start) -> None:
    count = 0
    for point in ROLE_POINTS:
        # A group of its own: the one before was killed, and its group would wait for it.
        role = start("archiver", *SOON, "--group", str(uuid.uuid4()), crash_at=f"{point}:2")

        def killed(role: Role = role) -> bool:
            nonlocal count
            count += put(topics, 5)
            return role.process.poll() is not None

        wait_for(f"the crash at {point}", killed)
        assert role.process.returncode == -signal.SIGKILL
    role = start("archiver", *SOON, "--group", str(uuid.uuid4()))
    assert whole(store).records == count
    assert role.stop() == 0


def test_two_at_once_write_every_record_once(topics: Topics, store: Addresses, start: Start) -> None:
    """Two groups, so that both own all partitions: two zombies for each other."""
    roles = [start("archiver", *SOON, "--group", str(uuid.uuid4())) for _ in range(2)]
    for role in roles:
        role.wait_log("partitions assigned")
    count = 0

    def fenced() -> bool:
        nonlocal count
        count += put(topics, 10)
        return all(role.metric("kintsugi_archive_files_total", outcome="written") > 0 for role in roles) and any(
            role.metric("kintsugi_archive_files_total", outcome="fenced") > 0 for role in roles
        )

    wait_for("that one was there first", fenced)
    assert whole(store).records == count
    assert [role.stop() for role in roles] == [0, 0]
    assert whole(store).records == count


def test_with_the_store_away_partitions_wait_and_nothing_is_lost(
    topics: Topics, store: Addresses, start: Start, tmp_path: Path
) -> None:
    role = start("archiver", *SOON)
    role.wait_log("partitions assigned")
    count = put(topics, 10)
    whole(store)
    folder, aside = tmp_path / "objects", tmp_path / "aside"
    folder.rename(aside)
    folder.touch()  # a file in its place: nothing below it can be written, read or listed
    count += put(topics, 10)
    role.wait_log("partition waits")
    wait_for("empty buffers", lambda: role.metric("kintsugi_archive_buffered_bytes") == 0)
    count += put(topics, 10)
    folder.unlink()
    aside.rename(folder)
    assert whole(store).records == count
    assert role.stop() == 0


def test_the_largest_record_is_archived(topics: Topics, store: Addresses, start: Start, archive: Archive) -> None:
    role = start("archiver", *SOON)
    role.wait_log("partitions assigned")
    value = os.urandom(MESSAGE_SIZE_BYTES_MAX - 1024)
    key = str(uuid.uuid4()).encode()
    count = put(topics, 5)
    topics.raw(key, value, [("h", b"1")])
    assert whole(store).records == count + 1
    (message,) = topics.read(EVENTS, {key.decode()})
    found = archive.record(message.partition() or 0, message.offset() or 0)
    assert found is not None
    assert (found.key, found.value, found.headers) == (key, value, (("h", b"1"),))
    assert (found.timestamp_type, found.timestamp_ms) == message.timestamp()
    assert role.stop() == 0


def test_a_frozen_one_is_replaced_and_writes_nothing_when_it_wakes_up(
    topics: Topics, store: Addresses, start: Start
) -> None:
    """FAULTS.md row 8."""
    zombie = start("archiver", "--archive-age", "2")
    zombie.wait_log("partitions assigned")
    count = put(topics, 10)
    wait_for("waiting records", lambda: zombie.metric("kintsugi_archive_buffered_bytes") > 0)
    zombie.process.send_signal(signal.SIGSTOP)
    successor = start("archiver", *SOON)
    assert whole(store).records == count
    zombie.process.send_signal(signal.SIGCONT)
    count += put(topics, 10)
    assert whole(store).records == count
    assert [role.stop() for role in (zombie, successor)] == [0, 0]
    assert whole(store).records == count


def test_verify_exits_with_6_on_a_difference(topics: Topics, store: Addresses, start: Start, tmp_path: Path) -> None:
    role = start("archiver", *SOON)
    role.wait_log("partitions assigned")
    put(topics, 10)
    whole(store)
    assert role.stop() == 0

    def verify() -> int:
        environment = {**os.environ, **store.environment()}
        return command(environment, "archive", "verify", "--output", "json").returncode

    assert verify() == 0
    file = max((tmp_path / "objects/archive").rglob("*.avro"), key=lambda path: path.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert verify() == 6
    file.write_bytes(data)
    assert verify() == 0
