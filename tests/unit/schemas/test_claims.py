"""Stored bytes in object storage: kept under what they are, and proven when they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from schemas import claims
from schemas.errors import StateError
from schemas.objects import Objects, ObjectStoreError

STORED = os.urandom(100_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def objects(folder: Path) -> Objects:
    return Objects(folder.as_uri())


def test_what_was_put_is_got(objects: Objects) -> None:
    uri = claims.put(objects, STORED)
    assert uri == claims.uri_of(STORED) and uri.startswith("claim:sha256:")
    assert claims.get(objects, uri) == STORED


def test_the_same_bytes_are_one_object(objects: Objects) -> None:
    assert claims.put(objects, STORED) == claims.put(objects, STORED)
    assert len(list(objects.list(claims.FOLDER))) == 1


def test_half_an_object_is_written_anew(objects: Objects) -> None:
    path = claims.path_of(claims.uri_of(STORED))
    objects.put(path, STORED[:10])
    assert claims.get(objects, claims.put(objects, STORED)) == STORED


def test_an_old_object_is_renewed_so_that_it_is_not_taken_for_an_orphan(objects: Objects, folder: Path) -> None:
    uri = claims.put(objects, STORED)
    file = folder / claims.path_of(uri)
    old_s = file.stat().st_mtime - (claims.CLAIM_RENEWED_AFTER + timedelta(minutes=1)).total_seconds()
    os.utime(file, (old_s, old_s))
    claims.put(objects, STORED)
    assert file.stat().st_mtime > old_s


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(StateError) as refused:
        call()
    return refused.value.reason


def test_what_is_not_there_is_missing(objects: Objects) -> None:
    assert reason(lambda: claims.get(objects, claims.uri_of(STORED))) == "claim_missing"


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: bytes([data[0] ^ 1]) + data[1:]],
)
def test_other_bytes_are_refused(objects: Objects, change: Callable[[bytes], bytes]) -> None:
    uri = claims.put(objects, STORED)
    objects.put(claims.path_of(uri), change(STORED))
    assert reason(lambda: claims.get(objects, uri)) == "claim"


def test_no_more_is_read_than_allowed(objects: Objects) -> None:
    uri = claims.put(objects, STORED)
    assert claims.get(objects, uri, size_bytes_max=len(STORED)) == STORED
    assert reason(lambda: claims.get(objects, uri, size_bytes_max=len(STORED) - 1)) == "claim"


@pytest.mark.parametrize(
    "uri", ["", "claim:sha256:", "claim:sha256:../../etc/passwd", "file:///etc/passwd", f"claim:sha256:{'A' * 64}"]
)
def test_a_name_that_is_none_reaches_no_object(objects: Objects, uri: str) -> None:
    assert reason(lambda: claims.get(objects, uri)) == "claim"


def test_a_store_that_cannot_write_says_so(folder: Path) -> None:
    objects = Objects(folder.as_uri())
    (folder / claims.FOLDER).write_text("a file stands where the folder should")
    with pytest.raises(ObjectStoreError):
        claims.put(objects, STORED)
