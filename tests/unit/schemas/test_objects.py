"""Objects: what is written is read, what is there is not overwritten by `put_new`, what is away says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.objects import Objects, ObjectStoreError


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "objects").as_uri())


def test_what_is_written_is_read_whole_and_in_part(store: Objects) -> None:
    store.put("a/b", b"0123456789")
    assert store.get("a/b") == b"0123456789"
    assert store.get_range("a/b", 2, 5) == b"234"
    info = store.info("a/b")
    assert info is not None
    assert (info.path, info.size_bytes) == ("a/b", 10)


def test_nothing_there_is_none_and_not_an_error(store: Objects) -> None:
    assert store.get("a") is None
    assert store.get_range("a", 0, 1) is None
    assert store.info("a") is None
    assert list(store.list("a")) == []
    store.delete("a")


def test_of_two_that_write_a_new_object_the_first_wins(store: Objects) -> None:
    assert store.put_new("a", b"first")
    assert not store.put_new("a", b"second")
    assert store.get("a") == b"first"
    store.put("a", b"third")
    assert store.get("a") == b"third"


def test_a_listing_shows_what_is_under_a_folder_and_after_a_path(store: Objects) -> None:
    for name in ("x/1", "x/2", "x/3", "y/1"):
        store.put(name, name.encode())
    assert sorted(i.path for i in store.list("x")) == ["x/1", "x/2", "x/3"]
    assert sorted(i.path for i in store.list("x", after="x/1")) == ["x/2", "x/3"]
    store.delete("x/2")
    assert sorted(i.path for i in store.list("x")) == ["x/1", "x/3"]


def test_an_object_larger_than_allowed_is_refused_before_it_is_read(store: Objects) -> None:
    store.put("a", bytes(100))
    assert store.get("a", size_bytes_max=100) == bytes(100)
    with pytest.raises(ObjectStoreError, match="100 bytes, 99 allowed"):
        store.get("a", size_bytes_max=99)


def test_a_folder_that_cannot_be_written_is_a_retriable_error_that_names_the_object(tmp_path: Path) -> None:
    store = Objects((tmp_path / "objects").as_uri())
    (tmp_path / "objects" / "a").write_text("a file where a folder is needed")
    with pytest.raises(ObjectStoreError, match="a/b could not be written"):
        store.put("a/b", b"")


def test_a_store_that_does_not_answer_ends_within_its_bound() -> None:
    store = Objects("http://127.0.0.1:9/", timeout_s=0.2)
    with pytest.raises(ObjectStoreError, match="could not be read"):
        store.get("a")


@pytest.mark.parametrize("url", ["", "nowhere", "ftp://host/x"])
def test_a_url_that_names_no_store_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="KINTSUGI_OBJECTS"):
        Objects(url)
