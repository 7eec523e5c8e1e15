"""Retention and orphans on the real stack: what is taken away, and above all what is not."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.keeper.lag import TablesLagError
from consumers.keeper.mark import PATH, StoreDoubtedError
from consumers.keeper.orphans import GRACE_S, CollectionRefusedError, Orphans
from consumers.keeper.places import Places
from ops.keeper_tables import KeeperTables
from ops.stack import Addresses
from schemas import claims
from schemas.objects import Objects
from schemas.records.events import CheckpointCreated, CheckpointRejected, CheckpointsExpired, WorkflowCompleted
from schemas.topics import EVENTS

from .keeping import Start, applied, beginning, checkpoints, policy_of, query, rows_of
from .kit import Topics, build, wait_for
from .starter import command


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    """The store of the roles that `start` starts."""
    return Objects((tmp_path / "objects").as_uri())


def ids_of(made: list[CheckpointCreated]) -> set[str]:
    return {checkpoint.checkpoint_id for checkpoint in made}


def test_nothing_expires_before_it_is_archived_and_the_newest_stay(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path
) -> None:
    policy = str(policy_of(tmp_path, retention={"max_checkpoints": 3}))
    live, ended = str(uuid.uuid4()), str(uuid.uuid4())
    made = {i: checkpoints(i, 8) for i in (live, ended)}
    for workflow_id in made:
        topics.put(*beginning(workflow_id), *made[workflow_id])
    topics.put(build(WorkflowCompleted, ended))
    start("projector").wait_log("partitions assigned")
    keeper = start("keeper", "--policy", policy, "--retention-interval", "0.3")
    applied(own, topics, live, ended, checkpoints=8)
    wait_for("what is held", lambda: keeper.metric("kintsugi_checkpoints_held") >= 10)
    keeper.wait_log("retention waits for the archive")
    assert rows_of(own, live) == ids_of(made[live])
    assert not topics.events(CheckpointsExpired, {live, ended})
    start("archiver", "--archive-age", "0.3").wait_log("partitions assigned")
    for workflow_id, checkpoints_made in made.items():
        newest = ids_of(checkpoints_made[-3:])
        wait_for("retention", lambda i=workflow_id, n=newest: rows_of(own, i) == n, 90)
    facts = topics.events(CheckpointsExpired, {live, ended})
    assert {f.workflow_id: f.reason for f in facts} == dict.fromkeys((live, ended), "max_checkpoints: 3")
    for fact in facts:
        old = made[fact.workflow_id][:-3]
        assert set(fact.checkpoint_ids) == ids_of(old)
        assert dict(zip(fact.checkpoint_ids, fact.event_ids, strict=True)) == {c.checkpoint_id: c.event_id for c in old}
    assert keeper.metric("kintsugi_checkpoints_expired_total", reason="max_checkpoints") == 10
    assert keeper.stop() == 0


def test_the_last_sound_checkpoint_of_a_live_workflow_outlives_newer_ones_that_are_damaged(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path
) -> None:
    policy = str(policy_of(tmp_path, retention={"max_checkpoints": 1}))
    some, all_of_it = str(uuid.uuid4()), str(uuid.uuid4())
    made = {i: checkpoints(i, 4, objects) for i in (some, all_of_it)}
    for workflow_id in made:
        topics.put(*beginning(workflow_id), *made[workflow_id])
    damaged = made[some][2:] + made[all_of_it]
    for checkpoint in damaged:
        (tmp_path / "objects" / claims.path_of(str(checkpoint.claim_uri))).write_bytes(b"rust")
    start("projector").wait_log("partitions assigned")
    keeper = start("keeper", "--policy", policy, "--retention-interval", "0.3")
    applied(own, topics, some, all_of_it, checkpoints=4)
    # Nothing is archived yet: all damage is found, pass by pass, while nothing expires.
    rejected = "SELECT count(*) FROM workflow_checkpoint_rejections"
    wait_for("the damage", lambda: query(own, rejected)[0][0] == len(damaged), 60)
    start("archiver", "--archive-age", "0.3").wait_log("partitions assigned")
    stays = {made[some][1].checkpoint_id, made[some][3].checkpoint_id}
    wait_for("retention", lambda: rows_of(own, some) == stays, 90)
    keeper.wait_log("no checkpoint can be restored", workflow_id=all_of_it)
    assert keeper.metric("kintsugi_workflows_without_checkpoint") == 1
    assert rows_of(own, all_of_it) == ids_of(made[all_of_it])
    assert len(topics.events(CheckpointRejected, {some, all_of_it})) == len(damaged), "each told once"


@pytest.mark.parametrize("point", ["after_append", "after_flush"])
def test_killed_between_two_steps_it_says_each_thing_once(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path, point: str
) -> None:
    """FAULTS.md row 1. after_append: handed to the producer, perhaps in the log; after_flush: in the log."""
    policy = str(policy_of(tmp_path, retention={"max_checkpoints": 2}))
    ids = [str(uuid.uuid4()) for _ in range(4)]
    made = {i: checkpoints(i, 4, objects) for i in ids}
    for workflow_id in ids:
        topics.put(*beginning(workflow_id), *made[workflow_id])
        (tmp_path / "objects" / claims.path_of(str(made[workflow_id][3].claim_uri))).unlink()
    start("projector").wait_log("partitions assigned")
    start("archiver", "--archive-age", "0.3").wait_log("partitions assigned")
    applied(own, topics, *ids, checkpoints=4)
    options = ("--policy", policy, "--retention-interval", "0.3")
    (tmp_path / "objects" / PATH).parent.mkdir(exist_ok=True)
    (tmp_path / "objects" / PATH).touch()
    for nth in (1, 3):
        role = start("keeper", *options, crash_at=f"{point}:{nth}")
        assert role.process.wait(60) == -signal.SIGKILL
    keeper = start("keeper", *options)
    keeper.wait_log("keeper at work")
    for workflow_id in ids:
        stays = ids_of(made[workflow_id][2:])
        wait_for("retention", lambda i=workflow_id, s=stays: rows_of(own, i) == s, 60)
    assert keeper.stop() == 0
    rejections = topics.events(CheckpointRejected, set(ids))
    assert len({r.event_id for r in rejections}) == len(ids)
    assert {r.checkpoint_id for r in rejections} == {made[i][3].checkpoint_id for i in ids}
    expired = topics.events(CheckpointsExpired, set(ids))
    assert {i for fact in expired for i in fact.checkpoint_ids} == {
        c.checkpoint_id for m in made.values() for c in m[:2]
    }


@contextmanager
def collection(own: Addresses, topics: Topics, objects: Objects) -> Iterator[Orphans]:
    with ExitStack() as stack:
        tables = KeeperTables(own.postgres)
        stack.callback(tables.close)
        places = Places(own.kafka, EVENTS, None)
        stack.callback(places.close)
        yield Orphans(tables, places, topics.codec, objects, grace_s=GRACE_S)


def run(orphans: Orphans, **options: bool) -> None:
    for _ in orphans.steps(**options):
        pass


def age(folder: Path, hours: float) -> None:
    """Make every object so many hours older."""
    for path in folder.rglob("*"):
        if path.is_file():
            then_s = time.time() - hours * 3600
            os.utime(path, (then_s, then_s))


def lie(folder: Path) -> set[str]:
    return {path.name for path in (folder / "claims").rglob("*") if path.is_file()}


def names(made: list[CheckpointCreated]) -> set[str]:
    return {str(c.claim_uri).rpartition(":")[2] for c in made}


def test_only_objects_that_nothing_refers_to_and_that_are_old_are_deleted(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path
) -> None:
    workflow_id = str(uuid.uuid4())
    kept, orphans = checkpoints(workflow_id, 30, objects), checkpoints(str(uuid.uuid4()), 10, objects)
    topics.put(*beginning(workflow_id), *kept)
    start("projector").wait_log("partitions assigned")
    applied(own, topics, workflow_id, checkpoints=30)
    folder = tmp_path / "objects"
    (folder / "claims" / "00").mkdir(parents=True, exist_ok=True)
    (folder / "claims" / "00" / "somebody's").write_bytes(b"not ours")
    with collection(own, topics, objects) as found:
        wait_for("no lag", lambda: not _refused(found))
        assert (found.report.young, found.report.deleted) == (10, 0)
        age(folder, 25)
        young = checkpoints(str(uuid.uuid4()), 3, objects)
        run(found, delete=False)
        assert (found.report.orphans, found.report.young, found.report.referenced) == (10, 3, 30)
        assert lie(folder) == names(kept + orphans + young) | {"somebody's"}
        shown = cli(own, folder, "--dry-run")
        assert (shown["orphans"], shown["deleted"], shown["dry_run"]) == (10, 0, True)
        assert cli(own, folder)["deleted"] == 10
        assert lie(folder) == names(kept + young) | {"somebody's"}
        run(found)
        assert found.report.deleted == 0


def cli(own: Addresses, folder: Path, *options: str) -> dict[str, Any]:
    """`kintsugi checkpoints collect`."""
    environment = {**os.environ, **own.environment(), "KINTSUGI_OBJECTS": folder.as_uri()}
    done = command(environment, "checkpoints", "collect", "--output", "json", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refused(orphans: Orphans) -> bool:
    try:
        run(orphans)
    except TablesLagError:
        return True
    return False


def test_tables_that_cannot_know_delete_nothing(
    topics: Topics, own: Addresses, start: Start, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "objects"
    workflow_id = str(uuid.uuid4())
    made = checkpoints(workflow_id, 50, objects)
    topics.put(*beginning(workflow_id), *made)
    age(folder, 25)
    with collection(own, topics, objects) as found:
        # The clock stands two days further on, so that the tables, which know nothing, are two days behind.
        later_ns = time.time_ns() + 48 * 3600 * 10**9
        with monkeypatch.context() as patch:
            patch.setattr("consumers.keeper.orphans.time.time_ns", lambda: later_ns)
            with pytest.raises(TablesLagError, match="behind the log"):
                run(found)
        # A little behind is allowed, but tables without any checkpoint are new.
        with pytest.raises(CollectionRefusedError, match="are the tables new"):
            run(found)
        projector = start("projector")
        applied(own, topics, workflow_id, checkpoints=50)
        wait_for("no lag", lambda: projector.metric("kintsugi_consumer_lag_records") == 0)
        assert projector.stop() == 0
        # Rows that somebody lost: more than half of all objects look like orphans.
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi", autocommit=True) as connection:
            connection.execute("DELETE FROM workflow_checkpoints WHERE sequence > 10")
            connection.execute("DELETE FROM workflow_state_history WHERE version::int > 10")
        with pytest.raises(CollectionRefusedError, match="more than half"):
            run(found)
        assert lie(folder) == names(made)
        # Positions of another log.
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi", autocommit=True) as connection:
            connection.execute("UPDATE positions SET next_offset = next_offset + 1000000")
        with pytest.raises(TablesLagError, match="another log"):
            run(found)
        assert lie(folder) == names(made)
        # A store that is not the one that the rows speak of.
        with psycopg.connect(own.postgres, options="-c search_path=kintsugi", autocommit=True) as connection:
            connection.execute("UPDATE positions SET next_offset = next_offset - 1000000")
    with collection(own, topics, Objects((tmp_path / "empty").as_uri())) as found, pytest.raises(StoreDoubtedError):
        run(found)
