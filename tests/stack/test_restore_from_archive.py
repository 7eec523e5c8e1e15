"""The log has lost its beginning: what is restored comes from the archive. On a stack of these tests' own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.log_reader import LogReader
from ops import archive
from ops.stack import Addresses
from schemas.archive import Archive
from schemas.objects import Objects
from schemas.records.commands import RestartWorkflow, RetryStep
from schemas.records.events import CheckpointRejected, StateRestored, WorkflowCompleted, WorkflowErrorOccurred
from schemas.topics import EVENTS

from .client_kit import Desk, Here
from .kit import Role, Topics, wait_for
from .stacks import own_stack

Serve = Callable[..., Here]
DONE = (("accepted", False), ("succeeded", False))
REFUSED = (("accepted", False), ("failed", False))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A log that these tests may cut off."""
    with own_stack(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture(scope="module")
def environment(addresses: Addresses) -> dict[str, str]:
    return {**os.environ, **addresses.environment()}


@pytest.fixture
def archived(addresses: Addresses, environment: dict[str, str], tmp_path: Path) -> Callable[[], None]:
    """Archives all that is in the log, then removes it from the log."""

    def move() -> None:
        role = Role("archiver", environment, tmp_path / "archiver.log", "--archive-age", "0.2")
        try:
            role.wait_log("partitions assigned")
            wait_for("the archive", lambda: sum(row["lag_records"] for row in archive.status(addresses)) == 0)
        finally:
            role.kill()
        cut_off(addresses)

    return move


def cut_off(at: Addresses) -> None:
    """What retention does, now."""
    with LogReader(at.kafka) as log:
        places = [TopicPartition(EVENTS, p, high) for p, (_, high) in log.bounds(EVENTS).items() if high]
    admin = AdminClient({"bootstrap.servers": at.kafka})  # its answers come as long as it lives
    for future in admin.delete_records(places).values():
        future.result(20)


def failed(topics: Topics, here: Here) -> str:
    workflow = here.kind.start({"plan": {"two": ["fail:BROKEN"]}})
    wait_for("the error", lambda: topics.events(WorkflowErrorOccurred, {workflow.workflow_id}))
    here.client.work.forget(workflow)
    return workflow.workflow_id


@pytest.mark.parametrize("kind", [RetryStep, RestartWorkflow])
def test_what_retention_removed_is_restored_from_the_archive(
    topics: Topics,
    desk: Desk,
    serve: Serve,
    addresses: Addresses,
    archived: Callable[[], None],
    kind: type[RetryStep] | type[RestartWorkflow],
) -> None:
    here = serve(objects=addresses.objects)
    assert here.client.listen()
    workflow_id = failed(topics, here)
    place = desk.where(workflow_id)
    archived()
    assert desk.places(workflow_id) == []
    command = desk.build(kind, workflow_id, here.name, step_id="two", **place)
    desk.send(command)
    desk.wait_answers(command, *DONE)
    wait_for("its completion", lambda: topics.events(WorkflowCompleted, {workflow_id}))
    named = [r.checkpoint_id for r in topics.events(StateRestored, {workflow_id})]
    assert named == ([place["checkpoint_id"]] if kind is RetryStep else [])
    again = ["two", "three"] if kind is RetryStep else ["one", "two", "three"]
    assert here.ran(workflow_id) == ["one", "two", *again]


def test_what_is_neither_in_the_log_nor_archived_is_told(
    topics: Topics, desk: Desk, serve: Serve, addresses: Addresses
) -> None:
    here = serve(objects=addresses.objects)
    assert here.client.listen()
    workflow_id = failed(topics, here)
    place = desk.where(workflow_id)
    cut_off(addresses)
    for kind in (RetryStep, RestartWorkflow):
        command = desk.build(kind, workflow_id, here.name, step_id="two", **place)
        desk.send(command)
        assert desk.wait_answers(command, *REFUSED)[-1].reason == "checkpoint_missing"


def test_without_object_storage_the_log_is_all_there_is(
    topics: Topics, desk: Desk, serve: Serve, addresses: Addresses
) -> None:
    here = serve(objects="")
    assert here.client.listen()
    workflow_id = failed(topics, here)
    place = desk.where(workflow_id)
    cut_off(addresses)
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **place)
    desk.send(command)
    answer = desk.wait_answers(command, *REFUSED)[-1]
    assert answer.reason == "checkpoint_missing" and "no object storage" in (answer.detail or "")


def test_a_damaged_file_of_the_archive_is_told(
    topics: Topics, desk: Desk, serve: Serve, addresses: Addresses, archived: Callable[[], None]
) -> None:
    here = serve(objects=addresses.objects)
    assert here.client.listen()
    workflow_id = failed(topics, here)
    place = desk.where(workflow_id)
    archived()
    with LogReader(addresses.kafka) as log:
        files = Archive(Objects(addresses.objects), cluster=log.cluster_id(), topic=EVENTS)
    partition, offset = place["checkpoint_partition"], place["checkpoint_offset"]
    first = max(entry.first for entry in files.listing(partition).files if entry.first <= offset)
    store, path = Objects(addresses.objects), files.path(partition, first)
    data = store.get(path) or b""
    store.put(path, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    command = desk.build(RetryStep, workflow_id, here.name, step_id="two", **place)
    desk.send(command)
    assert desk.wait_answers(command, *REFUSED)[-1].reason == "corrupt"
    rejected = topics.events(CheckpointRejected, {workflow_id})
    assert [(r.checkpoint_id, r.reason) for r in rejected] == [(place["checkpoint_id"], "archive")]
    store.put(path, data)
