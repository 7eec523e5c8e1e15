"""With the beginning of the log removed, archive and log are still one sequence: proofs and timelines reach back."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.history import History, ranges_of
from consumers.log_reader import LogReader, record_of
from ops import archive as ops_archive
from ops.stack import Addresses
from schemas.archive import ArchiveGapError
from schemas.archive_format import FILE_SIZE_BYTES_MAX
from schemas.records.events import CommandAcknowledged, StepCompleted, StepStarted, WorkflowCompleted
from schemas.topics import COMMANDS, EVENTS

from .kit import Role, Topics, build, failing, wait_for
from .stacks import own_stack
from .starter import command

Cli = Callable[..., tuple[int, Any, str]]
SOON = ("--archive-age", "0.2")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A log that these tests may cut off."""
    with own_stack(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def topics(at: Addresses) -> Iterator[Topics]:
    found = Topics(at)
    yield found
    found.registry.close()


@pytest.fixture
def start(at: Addresses, tmp_path: Path) -> Iterator[Callable[..., Role]]:
    roles: list[Role] = []
    environment = {**os.environ, **at.environment()}

    def start_role(name: str, *arguments: str) -> Role:
        roles.append(Role(name, environment, tmp_path / f"{name}-{len(roles)}.log", *arguments))
        return roles[-1]

    yield start_role
    for role in roles:
        role.kill()


@pytest.fixture
def cli(at: Addresses) -> Cli:
    """Runs a command: exit code, its JSON, what it said."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        done = command({**os.environ, **at.environment()}, *arguments)
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    return run


def bounds(at: Addresses, topic: str = EVENTS) -> dict[int, tuple[int, int]]:
    with LogReader(at.kafka) as log:
        return log.bounds(topic)


def cut_off(at: Addresses, topic: str = EVENTS) -> None:
    """What retention does, now: everything so far is gone from the log."""
    admin = AdminClient({"bootstrap.servers": at.kafka})
    places = [TopicPartition(topic, partition, high) for partition, (_, high) in bounds(at, topic).items() if high]
    for future in admin.delete_records(places).values():
        future.result(20)


def behind(at: Addresses) -> int:
    return sum(row["lag_records"] + row["lost_records"] for row in ops_archive.status(at))


def archive_all(at: Addresses, start: Callable[..., Role]) -> None:
    role = start("archiver", *SOON)
    role.wait_log("partitions assigned")
    wait_for("the archive has all of the log", lambda: behind(at) == 0)
    assert role.stop() == 0


def repaired(topics: Topics, at: Addresses, start: Callable[..., Role]) -> str:
    """Id of a workflow that failed, was repaired and completed, and is in the tables."""
    roles = [start("recovery"), start("projector")]
    workflow_id = str(uuid.uuid4())
    topics.put(*failing(workflow_id))
    command = wait_for("a command", lambda: topics.commands({workflow_id}))[0]
    run_id = str(uuid.uuid4())
    step = {"step_id": "build", "step_run_id": run_id, "command_id": command.command_id}
    answer = {"command_id": command.command_id, "error_id": command.error_id, "attempt_number": 1}
    topics.put(
        build(CommandAcknowledged, workflow_id, **answer, status="accepted"),
        build(StepStarted, workflow_id, **step),
        build(StepCompleted, workflow_id, **step, duration_ms=5),
        build(WorkflowCompleted, workflow_id),
    )

    def recovered() -> bool:
        with psycopg.connect(at.postgres) as connection:
            query = "SELECT 1 FROM kintsugi.workflow_errors WHERE workflow_id = %s AND status = 'recovered'"
            return connection.execute(query, [workflow_id]).fetchone() is not None

    wait_for("the recovery", recovered)
    for role in roles:
        assert role.stop() == 0
    return workflow_id


def test_proofs_and_timelines_reach_back_beyond_the_log(
    at: Addresses, topics: Topics, start: Callable[..., Role], cli: Cli
) -> None:
    workflow_id = repaired(topics, at, start)
    archive_all(at, start)
    _, told, _ = cli("workflows", "timeline", workflow_id, "--output", "json")
    code, proof, _ = cli("verify", "--output", "json")
    assert code == 0 and proof["sound"] and proof["events"] > 0
    with LogReader(at.kafka) as log:
        everything = [record_of(message) for message in log.read(EVENTS, log.bounds(EVENTS))]

    for topic in (EVENTS, COMMANDS):
        cut_off(at, topic)
    late = failing(str(uuid.uuid4()))[0]
    topics.put(late)
    archive_all(at, start)
    assert all(low == high for low, high in bounds(at, COMMANDS).values())

    code, again, said = cli("workflows", "timeline", workflow_id, "--output", "json")
    assert (code, again) == (0, told)
    assert "beginning" not in said
    code, proof_again, said = cli("verify", "--output", "json")
    assert code == 0, said
    assert proof_again["events"] == proof["events"] + 1
    assert proof_again["unproven"] == 0
    _, log_alone, _ = cli("verify", "--without-archive", "--output", "json")
    assert log_alone["events"] == 1

    with LogReader(at.kafka) as log:
        history = ops_archive.history_of(at, log)
        read = list(history.read(ranges_of(history.bounds())))
        with pytest.raises(ArchiveGapError):
            list(History(log, EVENTS, None).read({everything[0].partition: (0, 1)}))
    for partition in range(8):
        expected = [record for record in everything if record.partition == partition]
        assert [record for record in read if record.partition == partition][: len(expected)] == expected
    assert len(read) == len(everything) + 1

    code, report, _ = cli("archive", "verify", "--output", "json")
    assert (code, report["records"], report["compared"]) == (0, len(read), 1)
    code, rows, _ = cli("archive", "status", "--output", "json")
    assert (code, sum(row["lag_records"] for row in rows)) == (0, 0)
    partition = everything[0].partition
    code, files, _ = cli("archive", "list", "--partition", str(partition), "--output", "json")
    assert code == 0 and files[0]["first"] == 0 and files[-1]["next"] == rows[partition]["archived_to"]
    code, shown, _ = cli("archive", "cat", "--partition", str(partition), "--from", "0", "--to", "1")
    assert (code, shown["offset"], shown["timestamp_ms"]) == (0, 0, everything[0].timestamp_ms)


def test_what_was_lost_is_recorded_and_told_and_archiving_goes_on(
    at: Addresses, topics: Topics, start: Callable[..., Role], cli: Cli
) -> None:
    # A gap at a partition's beginning is where archiving began: something has to be archived in each before.
    topics.put(*[failing(str(uuid.uuid4()))[0] for _ in range(100)])
    archive_all(at, start)
    lost = [failing(str(uuid.uuid4()))[0] for _ in range(20)]
    topics.put(*lost)
    cut_off(at)
    code, report, _ = cli("archive", "verify", "--output", "json")
    assert code == 6 and "lost" in report["counts"]
    role = start("archiver", *SOON)
    line = role.wait_log("archive gap", level="error")
    assert line["next"] > line["first"]
    wait_for("the gaps", lambda: behind(at) == 0)
    assert role.metric("kintsugi_archive_missing_records_total") == len(lost)
    topics.put(*[failing(str(uuid.uuid4()))[0] for _ in range(20)])
    wait_for("what came later", lambda: behind(at) == 0)
    assert role.stop() == 0
    code, report, said = cli("archive", "verify", "--output", "json")
    assert code == 6 and set(report["counts"]) == {"gap"}
    recorded = sum(row["gaps"] for row in cli("archive", "status", "--output", "json")[1])
    assert recorded == report["counts"]["gap"] + len(report["known_gaps"])
    code, report, said = cli("archive", "verify", "--allow-gaps", "--output", "json")
    assert code == 0, said
    code, proof, said = cli("verify", "--only", "log", "--output", "json")
    assert code == 0, said
    assert proof["events"] >= 20, "what lies behind the gaps"


def test_retention_may_overtake_an_archiver_that_runs(
    at: Addresses, topics: Topics, start: Callable[..., Role]
) -> None:
    """Its position is outside the log all at once: a gap, not the end of the process."""
    archive_all(at, start)
    role = start("archiver", *SOON, "-X", "session.timeout.ms=30000")
    role.wait_log("partitions assigned")
    wait_for("no lag", lambda: role.metric("kintsugi_consumer_lag_records") == 0)
    role.process.send_signal(signal.SIGSTOP)
    topics.put(*[failing(str(uuid.uuid4()))[0] for _ in range(50)])
    cut_off(at)
    topics.put(*[failing(str(uuid.uuid4()))[0] for _ in range(50)])
    role.process.send_signal(signal.SIGCONT)
    role.wait_log("archive gap")
    wait_for("the rest", lambda: behind(at) == 0)
    assert role.stop() == 0
    assert ops_archive.verify(at, lambda what, done, total: None, allow_gaps=True).sound


def test_a_record_that_no_file_can_hold_is_a_gap(
    at: Addresses, topics: Topics, start: Callable[..., Role], cli: Cli
) -> None:
    """A broker measures what it is sent, which may be compressed: far larger records get past it."""
    archive_all(at, start)
    producer = Producer(
        {"bootstrap.servers": at.kafka, "compression.type": "zstd", "message.max.bytes": 4 * FILE_SIZE_BYTES_MAX}
    )
    producer.produce(EVENTS, value=bytes(2 * FILE_SIZE_BYTES_MAX), key=b"huge")
    assert producer.flush(30) == 0
    topics.put(failing(str(uuid.uuid4()))[0])
    role = start("archiver", *SOON)
    assert role.wait_log("archive gap")["reason"].startswith("a record larger")
    wait_for("the rest", lambda: behind(at) == 0)
    assert role.stop() == 0
    assert ops_archive.verify(at, lambda what, done, total: None, allow_gaps=True).sound
