"""Snapshots: a cache that may be damaged, foreign, newer or gone, and must never hurt."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from consumers.deadline import Deadline
from consumers.snapshot_files import KEPT
from consumers.snapshots import Snapshots
from engine.inforce import InForce
from engine.policy import default_policy
from engine.state import WorkflowState
from schemas.errors import ConfigError


def in_force() -> InForce:
    return InForce(default_policy())


def make(folder: Path, **tags: str) -> Snapshots:
    return Snapshots(folder.as_uri(), **{"cluster": "c", "group": "g", "topic": "t", **tags})


def saved(folder: Path, offset: int, states: int = 3) -> list[str]:
    snapshots = make(folder)
    ids = [str(uuid.uuid4()) for _ in range(states)]
    ended = [str(uuid.uuid4())]
    snapshots.save(4, offset, [WorkflowState(i, "development", 4) for i in ids], ended, in_force())
    snapshots.settle(Deadline(10))
    snapshots.close()
    return ids + ended


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_what_was_saved_is_found(tmp_path: Path) -> None:
    ids = saved(tmp_path, 100)
    found = make(tmp_path).newest(4, low=0, high=200)
    assert found is not None
    offset, states, ended, in_force_then = found
    assert offset == 100
    assert in_force_then == in_force().dump()
    assert [s.workflow_id for s in states] + ended == ids


def test_the_newest_within_the_log_is_taken(tmp_path: Path) -> None:
    for offset in (100, 200, 300):
        saved(tmp_path, offset)
    snapshots = make(tmp_path)
    assert snapshots.newest(4, low=0, high=250)[0] == 200  # type: ignore[index]
    assert snapshots.newest(4, low=301, high=999) is None
    assert snapshots.newest(5, low=0, high=999) is None


def test_only_the_newest_few_are_kept(tmp_path: Path) -> None:
    for offset in range(100, 100 + KEPT + 4):
        saved(tmp_path, offset)
    assert len(files(tmp_path)) == KEPT


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "junk"])
def test_a_damaged_one_is_ignored_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    saved(tmp_path, 100)
    saved(tmp_path, 200)
    newest = files(tmp_path)[-1]
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-20] ^= 0xFF
    newest.write_bytes({"cut": bytes(data[:-9]), "flip": bytes(data), "empty": b"", "junk": b"\x00" * 500}[damage])
    found = make(tmp_path).newest(4, low=0, high=999)
    assert found is not None and found[0] == 100


def test_one_of_another_cluster_under_the_same_name_is_ignored(tmp_path: Path) -> None:
    saved(tmp_path, 100)
    source = files(tmp_path)[0]
    target = Path(str(source).replace("/snapshots/c/", "/snapshots/other/"))
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
    assert make(tmp_path, cluster="other").newest(4, low=0, high=999) is None


def test_a_store_that_fails_costs_only_the_snapshot(tmp_path: Path) -> None:
    snapshots = make(tmp_path / "store")
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("in the way")
    snapshots.save(0, 1, [], [], in_force())
    snapshots.settle(Deadline(10))
    assert snapshots.newest(0, low=0, high=9) is None
    snapshots.close()


def test_a_wrong_url_names_the_setting() -> None:
    with pytest.raises(ConfigError, match="KINTSUGI_OBJECTS"):
        Snapshots("nonsense://x", cluster="c", group="g", topic="t")
