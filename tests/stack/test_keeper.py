"""The keeper role as a process, on the real stack: what is damaged is told once, what is away is not told at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

from ops import stack
from ops.stack import Addresses
from schemas import claims
from schemas.objects import Objects
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import CheckpointRejected, WorkflowErrorOccurred
from schemas.topics import EVENTS

from .client_kit import partition_of
from .keeping import Start, applied, beginning, checkpoints, policy_of
from .kit import Role, Topics, wait_for
from .stacks import own_stack


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    """The store of the roles that `start` starts."""
    return Objects((tmp_path / "objects").as_uri())


def delete(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def enlarge(path: Path) -> None:
    path.write_bytes(b"x" * 20 * 1024 * 1024)


DAMAGE = {"deleted": (delete, "claim_missing"), "flipped": (flip, "claim"), "cut": (cut, "claim"),
          "enlarged": (enlarge, "claim")}  # fmt: skip


def test_a_damaged_object_is_an_error_and_the_checkpoint_before_is_restored(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path
) -> None:
    policy = str(policy_of(tmp_path))
    start("projector").wait_log("partitions assigned")
    start("recovery", "--policy", policy).wait_log("partitions assigned")
    keeper = start("keeper", "--policy", policy)
    keeper.wait_log("keeper at work")
    ids = {kind: str(uuid.uuid4()) for kind in [*DAMAGE, "none"]}
    made = {kind: checkpoints(i, 2, objects) for kind, i in ids.items()}
    for kind, workflow_id in ids.items():
        topics.put(*beginning(workflow_id), *made[kind])
    applied(own, topics, *ids.values(), checkpoints=2)
    proven = keeper.metric("kintsugi_scrub_checkpoints_total", outcome="sound")
    wait_for("all proven", lambda: keeper.metric("kintsugi_scrub_checkpoints_total", outcome="sound") >= proven + 10)
    for kind, (damage, _) in DAMAGE.items():
        damage(tmp_path / "objects" / claims.path_of(str(made[kind][1].claim_uri)))
    damaged = {i for kind, i in ids.items() if kind in DAMAGE}
    wait_for("a repair of each", lambda: {c.workflow_id for c in topics.commands(damaged)} == damaged, 90)
    commands = {c.workflow_id: c for c in reversed(topics.commands(damaged))}
    rejections = topics.events(CheckpointRejected, set(ids.values()))
    errors = topics.events(WorkflowErrorOccurred, set(ids.values()))
    for kind, (_, reason) in DAMAGE.items():
        (rejection,) = {(r.event_id, r.reason, r.detected_by) for r in rejections if r.workflow_id == ids[kind]}
        assert rejection[1:] == (reason, "scrub"), kind
        (error,) = {
            (e.error_id, e.error_code, e.reason, e.detected_by, e.checkpoint_id)
            for e in errors
            if e.workflow_id == ids[kind] and e.detected_by == "detector:scrub"
        }
        assert error[1:] == ("STATE_CORRUPTION", reason, "detector:scrub", made[kind][1].checkpoint_id), kind
        command = commands[ids[kind]]
        assert isinstance(command, ResumeFromCheckpoint), kind
        assert command.checkpoint_id == made[kind][0].checkpoint_id, "the one before"
    assert not [r for r in rejections if r.workflow_id == ids["none"]]
    assert keeper.metric("kintsugi_state_validation_failures_total") == len(DAMAGE)
    assert keeper.stop() == 0


def sound(keeper: Role) -> float:
    return keeper.metric("kintsugi_scrub_checkpoints_total", outcome="sound")


def test_two_keepers_one_at_work_and_the_other_takes_over(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path
) -> None:
    policy = str(policy_of(tmp_path))
    workflow_id = str(uuid.uuid4())
    made = checkpoints(workflow_id, 3, objects)
    topics.put(*beginning(workflow_id), *made)
    start("projector").wait_log("partitions assigned")
    first = start("keeper", "--policy", policy)
    first.wait_log("keeper at work")
    second = start("keeper", "--policy", policy)
    second.wait_log("started")
    wait_for("proofs", lambda: sound(first) > 2)
    assert (first.metric("kintsugi_keeper_active"), second.metric("kintsugi_keeper_active")) == (1, 0)
    assert sound(second) == 0
    (tmp_path / "objects" / claims.path_of(str(made[2].claim_uri))).unlink()
    wait_for("the damage", lambda: topics.events(CheckpointRejected, {workflow_id}))
    first.kill()
    second.wait_log("keeper at work")
    wait_for("proofs by the other", lambda: sound(second) > 2)
    rejections = topics.events(CheckpointRejected, {workflow_id})
    assert len({r.event_id for r in rejections}) == 1
    assert second.stop() == 0


def test_a_store_that_is_away_for_a_while_rejects_nothing(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path
) -> None:
    """A folder that is not there, as when a disk is not mounted, and then one that is there and cannot be read."""
    policy = str(policy_of(tmp_path))
    workflow_id = str(uuid.uuid4())
    made = checkpoints(workflow_id, 3, objects)
    topics.put(*beginning(workflow_id), *made)
    start("projector").wait_log("partitions assigned")
    keeper = start("keeper", "--policy", policy)
    wait_for("proofs", lambda: sound(keeper) > 2)
    folder, aside = tmp_path / "objects", tmp_path / "aside"
    folder.rename(aside)
    for broken in ("missing", "not a folder"):
        if broken == "not a folder":
            if folder.exists():
                folder.rename(tmp_path / "made meanwhile")
            folder.write_bytes(b"")
        waits = keeper.metric("kintsugi_partition_backoffs_total")
        wait_for(broken, lambda w=waits: keeper.metric("kintsugi_partition_backoffs_total") > w)
    folder.unlink()
    aside.rename(folder)
    before = sound(keeper)
    wait_for("proofs again", lambda: sound(keeper) > before, 90)
    assert not topics.events(CheckpointRejected, {workflow_id})
    assert keeper.stop() == 0


def damage_the_log(home: Path, text: bytes) -> None:
    """Change a byte behind a text, where the broker has it on its disk."""
    for segment in home.rglob("*.log"):
        at = segment.read_bytes().find(text) if "workflow.events-" in segment.parent.name else -1
        if at >= 0:
            with segment.open("r+b") as file:
                file.seek(at + len(text))
                file.write(b"y")
            return
    raise AssertionError("no segment has it")


def empty_the_log(at: Addresses) -> None:
    admin = AdminClient({"bootstrap.servers": at.kafka})
    count = len(admin.list_topics(EVENTS, 10).topics[EVENTS].partitions)
    for future in admin.delete_records([TopicPartition(EVENTS, p, OFFSET_END) for p in range(count)]).values():
        future.result()


def test_servers_away_for_a_while_reject_nothing_and_damage_on_the_brokers_disk_is_found(tmp_path: Path) -> None:
    policy = str(policy_of(tmp_path))
    with own_stack(tmp_path / "stack") as at:
        topics, folder = Topics(at), tmp_path / "objects"
        environment = {**os.environ, **at.environment(), "KINTSUGI_OBJECTS": folder.as_uri()}
        # In another partition, as the damage takes all records that lie in one batch on the disk.
        workflow_id = str(uuid.uuid4())
        other = next(
            i for i in (str(uuid.uuid4()) for _ in range(1_000)) if partition_of(i) != partition_of(workflow_id)
        )
        made = checkpoints(workflow_id, 2, Objects(folder.as_uri()))
        topics.put(*beginning(workflow_id), *made, *beginning(other), *checkpoints(other, 40, size=2_000))
        projector = Role("projector", environment, tmp_path / "projector.log")
        archiver = Role("archiver", environment, tmp_path / "archiver.log", "--archive-age", "0.3")
        keeper = Role("keeper", environment, tmp_path / "keeper.log", "--policy", policy)
        try:
            wait_for("proofs", lambda: sound(keeper) > 7)
            for part in ("postgres", "kafka"):
                stack.kill_part(part, home=tmp_path / "stack")
                waits = keeper.metric("kintsugi_partition_backoffs_total")
                asked = "lock" if part == "postgres" else "job waits"
                wait_for(part, lambda a=asked: any(line.get("event") == a for line in keeper.lines), 90)
                stack.ensure(tmp_path / "stack")
                before = sound(keeper)
                wait_for("proofs again", lambda b=before: sound(keeper) > b + 3, 120)
                assert keeper.metric("kintsugi_partition_backoffs_total") >= waits
            assert not topics.events(CheckpointRejected, {workflow_id, other})
            damage_the_log(tmp_path / "stack", b'"n":40,"x":"xx')
            wait_for("damage of the log", lambda: topics.events(CheckpointRejected, {other}), 90)
            assert {r.reason for r in topics.events(CheckpointRejected, {other})} == {"record"}
            assert not topics.events(CheckpointRejected, {workflow_id})
            # Retention takes everything from the log: what is proven now lies in the archive.
            wait_for("the archive", lambda: archiver.metric("kintsugi_consumer_lag_records") == 0)
            empty_the_log(at)
            before = sound(keeper)
            wait_for("proofs from the archive", lambda: sound(keeper) > before + 6, 90)
            assert keeper.metric("kintsugi_scrub_checkpoints_total", outcome="gone") == 0
            assert keeper.stop() == 0
        finally:
            projector.kill()
            archiver.kill()
            keeper.kill()
            topics.registry.close()
