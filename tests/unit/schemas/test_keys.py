"""Key providers: a good key file works and follows its changes; a bad one is refused, and shows nothing of itself."""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from schemas import keys
from schemas.errors import ConfigError, RetriableError, StateError
from schemas.keys import FileKeys, KeyRing, decode_kek, environment_ring, open_provider, parse_ring

from .sealed_kit import CANARY, forms, key_file, secret, shown

CONTEXT = {"workflow_id": "w", "number": "1"}
CANARY_TEXT = base64.b64encode(CANARY).decode()


def document(current: Any = "a", **found: Any) -> bytes:
    return json.dumps({"current": current, "keys": found or {"a": CANARY_TEXT}}).encode()


def test_what_is_wrapped_is_unwrapped_in_the_same_context(tmp_path: Path) -> None:
    provider = open_provider(key_file(tmp_path / "keys.json").as_uri())
    kek_id, wrapped = provider.wrap(secret("data"), CONTEXT)
    assert kek_id == provider.current == "first"
    assert secret("data") not in wrapped
    assert provider.unwrap(kek_id, wrapped, dict(reversed(CONTEXT.items()))) == secret("data")


@pytest.mark.parametrize("context", [{}, {"workflow_id": "w", "number": "2"}, {"workflow_id": "x", "number": "1"}])
def test_another_context_is_refused(context: dict[str, str]) -> None:
    ring = KeyRing("a", {"a": secret("a")})
    _, wrapped = ring.wrap(secret("data"), CONTEXT)
    with pytest.raises(StateError) as caught:
        ring.unwrap("a", wrapped, context)
    assert caught.value.reason == "key_missing"


def test_a_damaged_wrapped_key_another_kek_and_an_unknown_one_are_key_missing() -> None:
    """Never "decryption": that would call sound states corrupt because of a wrong key file."""
    ring = KeyRing("a", {"a": secret("a"), "b": secret("b")})
    _, wrapped = ring.wrap(secret("data"), CONTEXT)
    tries = [("b", wrapped), ("c", wrapped), ("a", b""), ("a", wrapped[:11]), ("a", wrapped + b"x")]
    tries += [("a", wrapped[:i] + bytes([wrapped[i] ^ 1]) + wrapped[i + 1 :]) for i in range(len(wrapped))]
    for kek_id, given in tries:
        with pytest.raises(StateError) as caught:
            ring.unwrap(kek_id, given, CONTEXT)
        assert caught.value.reason == "key_missing"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (document()[:-1], "not JSON"),
        (document() + b"{}", "not JSON"),
        (b"[]", "not an object of"),
        (b'{"current": "a"}', "not an object of"),
        (b'{"current": "a", "keys": []}', "not an object of"),
        (b'{"current": "a", "keys": {}, "more": 1}', "not an object of"),
        (document("b"), "`current` is not the id"),
        (document(["a"]), "`current` is not the id"),
        (b'{"current": "a", "keys": {}}', "`current` is not the id"),
        (document(a=CANARY_TEXT[:-4]), "key 1 is not the base64 of 32 bytes"),
        (document(a=base64.b64encode(CANARY + b"x").decode()), "key 1 is not the base64 of 32 bytes"),
        (document(a=CANARY_TEXT, b="!" + CANARY_TEXT[1:]), "key 2 is not the base64 of 32 bytes"),
        (document(a=CANARY.hex()), "key 1 is not the base64 of 32 bytes"),
        (document(a=7), "key 1 is not the base64 of 32 bytes"),
        (document(a=CANARY_TEXT, b=CANARY_TEXT), "key 2 is the same as one before it"),
        (b'{"current": "a", "keys": {"a": "x", "a": "' + CANARY_TEXT.encode() + b'"}}', "a name is there twice"),
        (document(**{"a b": CANARY_TEXT}), "the id of key 1"),
        (document(**{CANARY_TEXT * 3: CANARY_TEXT}), "the id of key 1"),
        (document() + b" " * 70_000, "larger than 65536 bytes"),
    ],
)
def test_a_bad_key_file_is_refused_and_not_shown(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=why) as caught:
        open_provider(path.as_uri())
    assert str(path) in str(caught.value)
    assert not any(form in shown(caught.value) for form in forms(CANARY))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o601])
def test_a_file_that_others_can_read_is_refused_with_the_fix(mode: int, tmp_path: Path) -> None:
    path = key_file(tmp_path / "keys.json")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="by others than its owner") as caught:
        open_provider(path.as_uri())
    assert caught.value.hint is not None and caught.value.hint.startswith(f"chmod 600 {path}")
    path.chmod(0o400)
    assert open_provider(path.as_uri()).current == "first"


def test_no_file_and_a_folder_are_said() -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        open_provider("file:///nowhere/keys.json")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        open_provider("file:///tmp")


@pytest.mark.parametrize("url", ["file:keys.json", "file://host/keys.json", "file:"])
def test_a_file_url_is_absolute(url: str) -> None:
    with pytest.raises(ConfigError, match="names no file"):
        open_provider(url)


def test_a_path_may_hold_spaces(tmp_path: Path) -> None:
    assert open_provider(key_file(tmp_path / "my keys.json").as_uri()).names() == ("first",)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = key_file(tmp_path / "keys.json")
    provider = FileKeys(path)
    old = provider.wrap(secret("data"), CONTEXT)
    new = key_file(tmp_path / "new.json", "second", first=secret("first"), second=secret("second"))
    new.replace(path)
    assert provider.current == "second"
    assert provider.names() == ("first", "second")
    assert provider.unwrap(*old, CONTEXT) == secret("data")


def test_a_file_that_becomes_bad_leaves_the_keys_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = key_file(tmp_path / "keys.json", "first", first=CANARY)
    provider = FileKeys(path)
    with caplog.at_level(logging.WARNING):
        path.write_text(f'{{"current": "first", "keys": {{"first": "{CANARY_TEXT}"')
        assert provider.current == provider.current == "first"
        path.unlink()
        assert provider.current == provider.current == "first"
    assert len(caplog.records) == 2
    assert not any(form in caplog.text for form in forms(CANARY))
    key_file(path, "second", first=CANARY, second=secret("second"))
    assert provider.current == "second"


def test_threads_share_a_provider(tmp_path: Path) -> None:
    path = key_file(tmp_path / "keys.json")
    provider = FileKeys(path)
    wrapped = provider.wrap(secret("data"), CONTEXT)
    wrong: list[object] = []

    def read() -> None:
        for _ in range(200):
            if provider.unwrap(*wrapped, CONTEXT) != secret("data"):
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(50):
        more = {f"k{n}": secret(f"k{n}") for n in range(number)}
        key_file(tmp_path / "new.json", "first", first=secret("first"), **more).replace(path)
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_environment_variable_holds_a_key_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", f" {CANARY_TEXT}\n")
    one = environment_ring("SOME_KEYS")
    assert one.names() == (one.current,)
    assert one.current.startswith("env-")
    monkeypatch.setenv("SOME_KEYS", base64.b64encode(secret("other")).decode())
    assert environment_ring("SOME_KEYS").current != one.current
    monkeypatch.setenv("SOME_KEYS", document(a=CANARY_TEXT, b=base64.b64encode(secret("b")).decode()).decode())
    assert open_provider("env:SOME_KEYS").names() == ("a", "b")


@pytest.mark.parametrize("text", ["", "  ", CANARY_TEXT[:-2], CANARY.hex(), '{"current": "a"}'])
def test_a_bad_variable_is_refused_and_not_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", text)
    with pytest.raises(ConfigError, match="SOME_KEYS") as caught:
        open_provider("env:SOME_KEYS")
    assert len(text.strip()) < 20 or text[:20] not in shown(caught.value)


@pytest.mark.parametrize("url", ["kms+aws://eu/key", "nothing", "env:", CANARY_TEXT, ""])
def test_an_unknown_provider_is_refused_and_the_value_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="names no key provider") as caught:
        open_provider(url)
    assert "file:///path/keys.json, env:VARIABLE" in (caught.value.hint or "")
    assert not any(form in shown(caught.value) for form in forms(CANARY))


class Vault(KeyRing):
    """What another package would bring."""


def open_vault(url: str) -> Vault:
    """As an entry point names it."""
    if "wrong" in url:
        raise OSError("no such vault")
    if "away" in url:
        raise RetriableError("the vault does not answer")
    return Vault("v", {"v": secret(url)})


def test_a_provider_comes_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("kms+vault", f"{__name__}:open_vault", keys.ENTRY_POINTS)
    monkeypatch.setattr(keys, "entry_points", lambda group: [point] if group == keys.ENTRY_POINTS else [])
    assert isinstance(open_provider("kms+vault://there"), Vault)
    with pytest.raises(ConfigError, match="kms\\+vault: OSError when it was opened"):
        open_provider("kms+vault://wrong")
    with pytest.raises(RetriableError, match="does not answer"):
        open_provider("kms+vault://away")
    with pytest.raises(ConfigError) as caught:
        open_provider("kms+aws://there")
    assert "kms+vault:..." in (caught.value.hint or "")


def test_a_kek_is_in_no_repr(tmp_path: Path) -> None:
    path = key_file(tmp_path / "keys.json", "first", first=CANARY)
    for thing in (FileKeys(path), parse_ring(path.read_bytes(), "here")):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert not any(form in text for form in forms(CANARY))


def test_a_ring_is_written_as_it_is_read() -> None:
    ring = KeyRing("b", {"a": secret("a"), "b": secret("b")})
    assert parse_ring(ring.dump(), "here") == ring
    assert decode_kek(base64.b64encode(os.urandom(32)).decode()) is not None
