"""Snapshots of the coordinator: the newest that can be read, and never one of another place."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from consumers.coordinator_snapshots import CoordinatorSnapshots
from consumers.deadline import Deadline
from consumers.snapshot_files import KEPT
from schemas.errors import ConfigError


def snapshots(folder: Path, cluster: str = "one") -> CoordinatorSnapshots:
    return CoordinatorSnapshots(folder.as_uri(), cluster=cluster, group="group", topic="topic")


def path_of(folder: Path, offset: int, cluster: str = "one") -> Path:
    return folder / "snapshots" / cluster / "group" / "topic" / "0" / f"{offset:020d}"


def save(store: CoordinatorSnapshots, offset: int, state: object) -> None:
    store.save(0, offset, state)
    store.settle(Deadline(20.0))


def test_the_newest_comes_first_and_only_some_are_kept(tmp_path: Path) -> None:
    store = snapshots(tmp_path)
    for offset in range(1, KEPT + 3):
        save(store, offset, {"at": offset})

    found = store.found(0, low=0, high=100)

    assert found == [(offset, {"at": offset}) for offset in range(KEPT + 2, 2, -1)]
    assert not store.busy
    store.close()


def test_one_outside_the_log_is_passed_over(tmp_path: Path) -> None:
    store = snapshots(tmp_path)
    for offset in (5, 10, 15):
        save(store, offset, {})

    assert [offset for offset, _ in store.found(0, low=6, high=14)] == [10]
    store.close()


@pytest.mark.parametrize("data", [b"", b"junk", b"[]", b"{}", orjson.dumps({"tags": {}, "state": {}})])
def test_one_that_is_damaged_is_passed_over(tmp_path: Path, data: bytes) -> None:
    store = snapshots(tmp_path)
    save(store, 5, {"sound": True})
    path_of(tmp_path, 9).write_bytes(data)

    assert store.found(0, low=0, high=100) == [(5, {"sound": True})]
    store.close()


def test_one_of_another_cluster_is_passed_over_although_it_lies_here(tmp_path: Path) -> None:
    other, store = snapshots(tmp_path, "other"), snapshots(tmp_path)
    save(other, 5, {})
    path_of(tmp_path, 5).parent.mkdir(parents=True)
    path_of(tmp_path, 5).write_bytes(path_of(tmp_path, 5, "other").read_bytes())

    assert store.found(0, low=0, high=100) == []
    for each in (other, store):
        each.close()


def test_a_store_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    store = snapshots(tmp_path)
    (tmp_path / "snapshots").write_text("a file where the folder should be")
    save(store, 5, {})

    assert store.found(0, low=0, high=100) == []
    store.close()


def test_a_url_that_names_no_store_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="KINTSUGI_OBJECTS"):
        CoordinatorSnapshots("nowhere://x", cluster="one", group="group", topic="topic")
