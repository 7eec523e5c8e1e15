"""The keeper role as a process, on the real stack: what is damaged is told once, what is away is not told at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from ops.stack import Addresses
from schemas import claims
from schemas.objects import Objects
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import CheckpointRejected, WorkflowErrorOccurred

from .keeping import Start, applied, beginning, checkpoints, policy_of, stand_at_the_logs_end
from .kit import Topics, wait_for


@pytest.fixture
def environment(own: Addresses) -> dict[str, str]:
    stand_at_the_logs_end(own)
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
