"""Key files are never weak, not for a moment; passes over all data keys count right and can be repeated."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from ops import keys
from ops.commands import keys as command
from ops.keys import (
    LISTED_MAX,
    create_file,
    key_file_of,
    new_kek_id,
    opened,
    rewrap,
    rotate_file,
    survey,
)
from schemas.errors import ConfigError
from schemas.ids import derive_id
from schemas.keys import FileKeys, read_key_file
from schemas.keystore import Keystore
from schemas.objects import Objects, ObjectStoreError

NAMES = [derive_id("tests", "keys", number) for number in range(40)]


def quiet(what: str, done: int, total: int) -> None:
    """No bar."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    create_file(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "objects").as_uri())


@pytest.fixture
def filled(file: Path, store: Objects) -> Keystore:
    """A store with the keys of 40 workflows; the first of them has two."""
    keystore = Keystore(FileKeys(file), store)
    for name in NAMES:
        keystore.current(name)
    keystore.rotate(NAMES[0])
    return keystore


def test_a_new_file_is_its_owners_alone_and_works(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ring = create_file(tmp_path / "new" / "keys.json")
    finally:
        os.umask(old)
    path = tmp_path / "new" / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_key_file(path) == ring
    with pytest.raises(FileExistsError):
        create_file(path)
    assert read_key_file(path) == ring


def test_ids_of_one_day_differ() -> None:
    assert len({new_kek_id() for _ in range(100)}) == 100


def test_rotation_adds_a_key_and_keeps_the_others(file: Path, tmp_path: Path) -> None:
    before = read_key_file(file)
    after = rotate_file(file, make_current=True)
    assert read_key_file(file) == after
    assert after.names() == (before.current, after.current)
    assert after.keys[before.current] == before.keys[before.current]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_a_staged_key_wraps_nothing_until_it_is_chosen(file: Path) -> None:
    before = read_key_file(file)
    staged = rotate_file(file, make_current=False)
    assert staged.current == before.current
    newest = staged.names()[-1]
    assert rotate_file(file, make_current=True, kek_id=newest).current == newest
    assert read_key_file(file).names() == staged.names()
    with pytest.raises(ConfigError, match="has no key 'other'"):
        rotate_file(file, make_current=True, kek_id="other")


def test_rotations_at_once_lose_no_key(file: Path) -> None:
    threads = [threading.Thread(target=rotate_file, args=(file,), kwargs={"make_current": True}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_key_file(file).names()) == 9


def test_a_bad_file_is_not_rotated_away(file: Path) -> None:
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others than its owner"):
        rotate_file(file, make_current=True)
    file.chmod(0o600)
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        rotate_file(file, make_current=True)
    assert file.read_text() == "{"


@pytest.mark.parametrize("url", ["env:KEYS", "kms+aws://key", ""])
def test_only_a_file_is_rotated_here(url: str) -> None:
    with pytest.raises(ConfigError, match="names no key file"):
        key_file_of(url)
    assert key_file_of("file:///etc/my%20keys.json") == Path("/etc/my keys.json")


def test_without_keys_configured_the_hint_says_how(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINTSUGI_KEYS", raising=False)
    with pytest.raises(ConfigError, match="not sealed") as caught:
        opened(store.url)
    assert caught.value.hint == "kintsugi keys init"


def test_a_survey_counts_every_key(filled: Keystore, file: Path) -> None:
    old = read_key_file(file).current
    new = rotate_file(file, make_current=True).current
    filled.rotate(NAMES[1])
    filled.erase(NAMES[2], actor="ann", reason="asked to")
    moves: list[tuple[str, int, int]] = []
    report = survey(filled, lambda *move: moves.append(move))
    assert (report.data_keys, report.workflows, report.erased) == (41, 39, 1)
    assert report.by_kek == {old: 40, new: 1}
    assert (report.current, report.keks) == (new, (old, new))
    assert report.erasures[0]["reason"] == "asked to"
    assert report.sound and not report.unfinished and not report.problems
    assert moves[-1] == ("data keys", 42, 42)


def test_a_survey_finds_lost_keks_damage_and_erasures_cut_short(filled: Keystore, file: Path, store: Objects) -> None:
    lost = read_key_file(file).current
    store.put(f"keys/{NAMES[3][:2]}/{NAMES[3]}/0000000001", b"{}")
    store.put(f"keys/{NAMES[4][:2]}/{NAMES[4]}/erased", b"{}")
    file.unlink()
    create_file(file)
    report = survey(Keystore(FileKeys(file), store), quiet)
    assert report.lost_keks == [lost]
    assert not report.sound
    assert report.unusable == 1 and report.problems[0]["workflow_id"] == NAMES[3]
    assert report.unfinished == [NAMES[4]]
    assert (report.data_keys, report.by_kek[lost]) == (40, 39)


def test_a_survey_of_nothing_is_sound(file: Path, store: Objects) -> None:
    report = survey(Keystore(FileKeys(file), store), quiet)
    assert (report.data_keys, report.erased, report.sound) == (0, 0, True)


def test_rewrapping_all_needs_one_pass_and_changes_no_secret(filled: Keystore, file: Path, store: Objects) -> None:
    secrets = {name: filled.get(name, 1) for name in NAMES}
    filled.erase(NAMES[5], actor="ann", reason="asked to")
    new = rotate_file(file, make_current=True)
    assert rewrap(filled, quiet, dry_run=True).rewrapped == 40
    assert survey(filled, quiet).by_kek[new.current] == 0
    done = rewrap(filled, quiet, dry_run=False)
    assert (done.rewrapped, done.already, done.failed, done.erased) == (40, 0, 0, 0)
    again = rewrap(filled, quiet, dry_run=False)
    assert (again.rewrapped, again.already) == (0, 40)
    only_new = Keystore(FileKeys(file), store)
    for name in NAMES:
        if name != NAMES[5]:
            assert only_new.get(name, 1) == secrets[name]


class _Dying(Objects):
    """A store that goes away after some writes."""

    def __init__(self, url: str, writes: int) -> None:
        super().__init__(url)
        self.left = threading.Semaphore(writes)

    def put(self, path: str, data: bytes) -> None:
        if not self.left.acquire(blocking=False):
            raise ObjectStoreError("the store went away")
        super().put(path, data)


def test_a_rewrap_cut_short_is_taken_up_again(filled: Keystore, file: Path, store: Objects) -> None:
    secrets = {name: filled.get(name, 1) for name in NAMES}
    new = rotate_file(file, make_current=True)
    with pytest.raises(ObjectStoreError):
        rewrap(Keystore(FileKeys(file), _Dying(store.url, 10)), quiet, dry_run=False)
    assert survey(filled, quiet).by_kek[new.current] == 10
    done = rewrap(filled, quiet, dry_run=False)
    assert (done.rewrapped, done.already, done.failed) == (31, 10, 0)
    fresh = Keystore(FileKeys(file), store)
    assert {name: fresh.get(name, 1) for name in NAMES} == secrets


def test_keys_that_cannot_be_opened_do_not_keep_the_others_from_being_rewrapped(
    filled: Keystore, file: Path, store: Objects
) -> None:
    store.put(f"keys/{NAMES[3][:2]}/{NAMES[3]}/0000000001", b"{}")
    rotate_file(file, make_current=True)
    done = rewrap(filled, quiet, dry_run=False)
    assert (done.rewrapped, done.failed) == (40, 1)
    assert done.problems[0]["workflow_id"] == NAMES[3]


def test_problems_are_counted_beyond_those_listed(file: Path, store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LISTED_MAX", 2)
    monkeypatch.setattr(keys, "_WINDOW", 3)
    for name in NAMES[:7]:
        store.put(f"keys/{name[:2]}/{name}/0000000001", b"")
    keystore = Keystore(FileKeys(file), store)
    surveyed, wrapped = survey(keystore, quiet), rewrap(keystore, quiet, dry_run=False)
    assert (surveyed.unusable, len(surveyed.problems)) == (7, 2)
    assert (wrapped.failed, len(wrapped.problems)) == (7, 2)
    assert LISTED_MAX > 2


def test_no_secret_is_in_a_report(filled: Keystore, file: Path) -> None:
    ring = read_key_file(file)
    texts = [repr(asdict(survey(filled, quiet))), repr(asdict(rewrap(filled, quiet, dry_run=True))), repr(ring)]
    hidden: list[Callable[[bytes], Any]] = [bytes.hex, repr, lambda raw: repr(raw)[2:-1]]
    for raw in (*ring.keys.values(), filled.get(NAMES[0], 1).secret):
        assert not any(form(raw) in text for form in hidden for text in texts)


@pytest.mark.parametrize(
    ("typed", "goes_on"), [(NAMES[0], True), (NAMES[0].upper(), True), (NAMES[1], False), ("y", False)]
)
def test_an_erasure_is_confirmed_by_typing_the_id(
    typed: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"workflow_id": NAMES[0], "workflow_type": "build", "checkpoints": 3, "states": 4, "errors": 5}
    monkeypatch.setattr(command.sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(command.click, "prompt", lambda *_, **__: typed)
    if goes_on:
        command._confirm(found)
    else:
        with pytest.raises(click.exceptions.Exit):
            command._confirm(found)
    assert "3 checkpoints, 4 states and the texts of 5 errors of build workflow" in capsys.readouterr().err
