"""Data keys: agreed on by all who need one, readable as long as they are there, gone for ever when they are erased."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.errors import ConfigError, KintsugiError, RetriableError, StateError
from schemas.ids import derive_id
from schemas.keys import FileKeys
from schemas.keystore import (
    AWAY_ASKED_AGAIN_S,
    CACHED_KEYS_MAX,
    ERASURE_SEEN_WITHIN_S,
    MISSING_ASKED_AGAIN_S,
    PREFETCH_THREADS,
    ROTATION_SEEN_WITHIN_S,
    Keystore,
    open_keystore,
)
from schemas.objects import Objects, ObjectStoreError
from schemas.sealing import DataKey, seal, unseal

from .sealed_kit import CANARY, OTHER, WORKFLOW, forms, key_file, keystore, secret, shown

FIRST = f"keys/{WORKFLOW[:2]}/{WORKFLOW}/0000000001"
SECOND = f"keys/{WORKFLOW[:2]}/{WORKFLOW}/0000000002"
TOMBSTONE = f"keys/{WORKFLOW[:2]}/{WORKFLOW}/erased"


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """The store under a keystore: counts calls, and does what a test says before some of them."""

    def __init__(self, inner: Objects) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        self.before: dict[tuple[str, str], Callable[[], Any]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(path: str, *arguments: Any, **options: Any) -> Any:
            self.calls.append((name, path))
            step = self.before.get((name, path)) or self.before.get((name, "*"))
            if step is not None:
                step()
            return method(path, *arguments, **options)

        return call


def watched(folder: Path, **options: Any) -> tuple[Keystore, Store]:
    """A keystore whose store is watched."""
    plain = keystore(folder)
    store = Store(plain._objects)
    return Keystore(plain.provider, store, **options), store  # type: ignore[arg-type]


def reason(call: Callable[[], object]) -> str:
    """Why a call is refused."""
    with pytest.raises(StateError) as caught:
        call()
    return caught.value.reason


def away() -> None:
    raise ObjectStoreError("the store is away")


def test_the_first_key_is_made_once_and_found_by_all(tmp_path: Path) -> None:
    key = keystore(tmp_path).current(WORKFLOW)
    assert (key.workflow_id, key.number) == (WORKFLOW, 1)
    assert keystore(tmp_path).current(WORKFLOW) == key
    assert keystore(tmp_path).get(WORKFLOW, 1) == key
    assert keystore(tmp_path).current(OTHER).secret != key.secret


def test_the_object_is_the_documented_one_and_holds_no_secret(tmp_path: Path) -> None:
    key = keystore(tmp_path).current(WORKFLOW)
    data = Objects((tmp_path / "objects").as_uri()).get(FIRST)
    assert data is not None
    found = json.loads(data)
    assert set(found) == {"workflow_id", "number", "kek_id", "wrapped", "created_at"}
    assert (found["workflow_id"], found["number"], found["kek_id"]) == (WORKFLOW, 1, "first")
    assert not any(form in data.decode() for form in (*forms(key.secret), *forms(secret("first"))))


def test_threads_agree_on_the_first_key(tmp_path: Path) -> None:
    keystore(tmp_path)
    begin = threading.Barrier(8)

    def first(_: int) -> DataKey:
        mine = keystore(tmp_path)
        begin.wait()
        return mine.current(WORKFLOW)

    with ThreadPoolExecutor(8) as pool:
        assert len({key.secret for key in pool.map(first, range(8))}) == 1


def _first_keys(folder: Path, names: list[str]) -> list[bytes]:
    store = keystore(folder)
    return [store.current(name).secret for name in names]


def test_processes_agree_on_first_keys(tmp_path: Path) -> None:
    keystore(tmp_path)
    names = [derive_id("tests", "both", number) for number in range(50)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, two = pool.starmap(_first_keys, [(tmp_path, names), (tmp_path, list(reversed(names)))])
    assert one == list(reversed(two))
    assert len(set(one)) == len(names)


def test_who_is_overtaken_takes_the_others_key(tmp_path: Path) -> None:
    slow, store = watched(tmp_path)
    others: list[DataKey] = []
    store.before["put_new", FIRST] = lambda: others.append(keystore(tmp_path).current(WORKFLOW))
    assert slow.current(WORKFLOW) == others[0]


def test_a_cached_key_costs_no_request(tmp_path: Path) -> None:
    keys, store = watched(tmp_path)
    keys.current(WORKFLOW)
    store.calls.clear()
    assert keys.current(WORKFLOW) is keys.get(WORKFLOW, 1) is keys.keys_of(WORKFLOW)(1)
    assert store.calls == []
    keys.forget()
    keys.current(WORKFLOW)
    assert store.calls


def test_a_key_at_hand_is_given_without_a_request_or_not_at_all(tmp_path: Path) -> None:
    clock = Clock()
    keys, store = watched(tmp_path, clock=clock)
    assert keys.at_hand(WORKFLOW) is None
    key = keys.current(WORKFLOW)
    store.calls.clear()
    assert keys.at_hand(WORKFLOW) is key
    clock.now += ROTATION_SEEN_WITHIN_S
    assert keys.at_hand(WORKFLOW) is None
    assert store.calls == []
    keystore(tmp_path).erase(WORKFLOW, actor="ann", reason="asked to")
    assert reason(lambda: keys.current(WORKFLOW)) == "key_erased"
    assert reason(lambda: keys.at_hand(WORKFLOW)) == "key_erased"


def test_rotation_is_seen_in_time_and_old_keys_stay_readable(tmp_path: Path) -> None:
    clock = Clock()
    writer = keystore(tmp_path, clock=clock)
    old = seal(b"old", writer.current(WORKFLOW), protection="aes-256-gcm", binding=b"")
    assert keystore(tmp_path).rotate(WORKFLOW).number == 2
    assert writer.current(WORKFLOW).number == 1
    clock.now += ROTATION_SEEN_WITHIN_S
    assert writer.current(WORKFLOW).number == 2
    new = seal(b"new", writer.current(WORKFLOW), protection="aes-256-gcm", binding=b"")
    reader = keystore(tmp_path).keys_of(WORKFLOW)
    assert unseal(old, protection="aes-256-gcm", binding=b"", keys=reader) == b"old"
    assert unseal(new, protection="aes-256-gcm", binding=b"", keys=reader) == b"new"


def test_two_that_rotate_at_once_make_one_key(tmp_path: Path) -> None:
    slow, store = watched(tmp_path)
    slow.current(WORKFLOW)
    others: list[DataKey] = []
    store.before["put_new", SECOND] = lambda: others.append(keystore(tmp_path).rotate(WORKFLOW))
    assert slow.rotate(WORKFLOW) == others[0]
    assert slow.rotate(WORKFLOW).number == 3


def test_a_missing_key_is_asked_for_again_after_a_while(tmp_path: Path) -> None:
    clock = Clock()
    reader, store = watched(tmp_path, clock=clock)
    assert reason(lambda: reader.get(WORKFLOW, 1)) == "key_missing"
    store.calls.clear()
    key = keystore(tmp_path).current(WORKFLOW)
    assert reason(lambda: reader.get(WORKFLOW, 1)) == "key_missing"
    assert store.calls == []
    clock.now += MISSING_ASKED_AGAIN_S
    assert reader.get(WORKFLOW, 1) == key


def test_a_key_of_ones_own_is_there_at_once_though_it_was_missing(tmp_path: Path) -> None:
    keys = keystore(tmp_path)
    assert reason(lambda: keys.get(WORKFLOW, 1)) == "key_missing"
    assert keys.current(WORKFLOW).number == 1


@pytest.mark.parametrize("workflow_id", ["", "../../etc", "x" * 36, WORKFLOW.upper(), WORKFLOW + "/.."])
def test_what_is_no_id_becomes_no_path(workflow_id: str, tmp_path: Path) -> None:
    keys, store = watched(tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: keys.current(workflow_id),
        lambda: keys.get(workflow_id, 1),
        lambda: keys.rotate(workflow_id),
        lambda: keys.rewrap(workflow_id, 1),
        lambda: keys.erase(workflow_id, actor="a", reason="r"),
    ]
    assert {reason(call) for call in calls} == {"key_missing"}
    assert store.calls == []


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o | {"number": 2},
        lambda o: o | {"workflow_id": OTHER},
        lambda o: o | {"kek_id": "other"},
        lambda o: o | {"wrapped": o["wrapped"][:-4]},
        lambda o: o | {"wrapped": "!"},
        lambda o: o | {"wrapped": "A" + o["wrapped"][1:] if o["wrapped"][0] != "A" else "B" + o["wrapped"][1:]},
        lambda o: {"workflow_id": WORKFLOW},
        lambda o: [],
        lambda o: o | {"more": "x" * 20_000},
    ],
)
def test_a_damaged_key_object_is_key_missing(change: Callable[[Any], Any], tmp_path: Path) -> None:
    keystore(tmp_path).current(WORKFLOW)
    objects = Objects((tmp_path / "objects").as_uri())
    data = objects.get(FIRST)
    assert data is not None
    objects.put(FIRST, orjson.dumps(change(orjson.loads(data))))
    assert reason(lambda: keystore(tmp_path).get(WORKFLOW, 1)) == "key_missing"
    assert reason(lambda: keystore(tmp_path).current(WORKFLOW)) == "key_missing"


def test_an_empty_key_object_is_key_missing(tmp_path: Path) -> None:
    """What a full disk or a power failure may leave in a local folder."""
    Objects((tmp_path / "objects").as_uri()).put(FIRST, b"")
    assert reason(lambda: keystore(tmp_path).current(WORKFLOW)) == "key_missing"


def test_a_key_object_of_another_workflow_does_not_open_here(tmp_path: Path) -> None:
    keystore(tmp_path).current(OTHER)
    objects = Objects((tmp_path / "objects").as_uri())
    data = objects.get(f"keys/{OTHER[:2]}/{OTHER}/0000000001")
    assert data is not None
    objects.put(FIRST, orjson.dumps(orjson.loads(data) | {"workflow_id": WORKFLOW}))
    assert reason(lambda: keystore(tmp_path).get(WORKFLOW, 1)) == "key_missing"


def test_the_wrong_key_file_is_key_missing_and_the_right_one_helps(tmp_path: Path) -> None:
    key = keystore(tmp_path).current(WORKFLOW)
    key_file(tmp_path / "keys.json", "first", first=secret("another"))
    assert reason(lambda: keystore(tmp_path).get(WORKFLOW, 1)) == "key_missing"
    key_file(tmp_path / "keys.json", "second", second=secret("second"))
    assert reason(lambda: keystore(tmp_path).get(WORKFLOW, 1)) == "key_missing"
    key_file(tmp_path / "keys.json", "second", second=secret("second"), first=secret("first"))
    assert keystore(tmp_path).get(WORKFLOW, 1) == key


def test_what_is_no_key_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    objects = Objects((tmp_path / "objects").as_uri())
    for name in ("0000000000", "0000000001.tmp", "notes", "1"):
        objects.put(f"keys/{WORKFLOW[:2]}/{WORKFLOW}/{name}", b"x")
    keys = keystore(tmp_path)
    assert list(keys.names()) == []
    assert keys.current(WORKFLOW).number == 1
    objects.put(f"keys/{WORKFLOW[:2]}/{WORKFLOW}/9999999999", b"x")
    assert reason(lambda: keystore(tmp_path).current(WORKFLOW)) == "key_missing"


def test_an_erased_key_is_gone_everywhere_in_time(tmp_path: Path) -> None:
    clock = Clock()
    reader = keystore(tmp_path, clock=clock)
    reader.current(WORKFLOW)
    keystore(tmp_path).rotate(WORKFLOW)
    done = keystore(tmp_path).erase(WORKFLOW, actor="ann", reason="asked to")
    assert (done.actor, done.reason, done.keys_deleted) == ("ann", "asked to", 2)
    assert reader.get(WORKFLOW, 1).number == 1
    clock.now += ROTATION_SEEN_WITHIN_S
    assert reason(lambda: reader.current(WORKFLOW)) == "key_erased"
    assert reason(lambda: reader.get(WORKFLOW, 1)) == "key_erased"
    for call in (
        lambda k: k.current(WORKFLOW),
        lambda k: k.get(WORKFLOW, 1),
        lambda k: k.get(WORKFLOW, 9),
        lambda k: k.rotate(WORKFLOW),
        lambda k: k.rewrap(WORKFLOW, 1),
    ):
        assert reason(lambda call=call: call(keystore(tmp_path))) == "key_erased"  # type: ignore[misc]
    assert keystore(tmp_path).current(OTHER).number == 1


def test_a_reader_alone_sees_an_erasure_in_time(tmp_path: Path) -> None:
    clock = Clock()
    keystore(tmp_path).current(WORKFLOW)
    reader = keystore(tmp_path, clock=clock)
    reader.get(WORKFLOW, 1)
    keystore(tmp_path).erase(WORKFLOW, actor="ann", reason="asked to")
    clock.now += ERASURE_SEEN_WITHIN_S
    assert reason(lambda: reader.get(WORKFLOW, 1)) == "key_erased"


def test_erasing_again_changes_nothing(tmp_path: Path) -> None:
    keys = keystore(tmp_path)
    keys.current(WORKFLOW)
    first = keys.erase(WORKFLOW, actor="ann", reason="asked to")
    again = keys.erase(WORKFLOW, actor="bob", reason="also asked to")
    assert (again.actor, again.reason, again.erased_at) == (first.actor, first.reason, first.erased_at)
    assert again.keys_deleted == 0


def test_an_erasure_that_was_cut_short_is_in_force_and_is_finished(tmp_path: Path) -> None:
    dying, store = watched(tmp_path)
    dying.current(WORKFLOW)
    dying.rotate(WORKFLOW)
    store.before["delete", SECOND] = away
    store.before["delete", FIRST] = away
    with pytest.raises(ObjectStoreError):
        dying.erase(WORKFLOW, actor="ann", reason="asked to")
    assert reason(lambda: keystore(tmp_path).get(WORKFLOW, 1)) == "key_erased"
    assert len(list(keystore(tmp_path).names(WORKFLOW))) == 3
    done = keystore(tmp_path).erase(WORKFLOW, actor="bob", reason="again")
    assert (done.actor, done.keys_deleted) == ("ann", 2)
    assert list(keystore(tmp_path).names(WORKFLOW)) == [(WORKFLOW, None)]


def test_nothing_was_erased_when_the_tombstone_could_not_be_written(tmp_path: Path) -> None:
    dying, store = watched(tmp_path)
    key = dying.current(WORKFLOW)
    store.before["put_new", TOMBSTONE] = away
    with pytest.raises(ObjectStoreError):
        dying.erase(WORKFLOW, actor="ann", reason="asked to")
    assert keystore(tmp_path).get(WORKFLOW, 1) == key


@pytest.mark.parametrize("damaged", [b"", b"null", b"[1]", b'{"actor"', b"\xff"])
def test_a_damaged_tombstone_is_one(damaged: bytes, tmp_path: Path) -> None:
    Objects((tmp_path / "objects").as_uri()).put(TOMBSTONE, damaged)
    assert reason(lambda: keystore(tmp_path).current(WORKFLOW)) == "key_erased"
    assert keystore(tmp_path).erase(WORKFLOW, actor="ann", reason="r").actor == "unknown"


@pytest.mark.parametrize("when", ["put_new", "put"])
def test_a_key_written_while_its_workflow_is_erased_does_not_survive(when: str, tmp_path: Path) -> None:
    """The erasure listed the keys before this one was written."""
    racing, store = watched(tmp_path)
    path = FIRST
    if when == "put":
        racing.current(WORKFLOW)
        key_file(tmp_path / "keys.json", "second", first=secret("first"), second=secret("second"))
    store.before[when, path] = lambda: keystore(tmp_path).erase(WORKFLOW, actor="ann", reason="asked to")
    call = (lambda: racing.rewrap(WORKFLOW, 1)) if when == "put" else (lambda: racing.current(WORKFLOW))
    assert reason(call) == "key_erased"
    assert list(keystore(tmp_path).names(WORKFLOW)) == [(WORKFLOW, None)]
    assert reason(lambda: racing.get(WORKFLOW, 1)) == "key_erased"


def test_rewrapping_keeps_the_data_key_and_needs_only_the_new_kek(tmp_path: Path) -> None:
    key = keystore(tmp_path).current(WORKFLOW)
    both = {"first": secret("first"), "second": secret("second")}
    key_file(tmp_path / "keys.json", "second", **both)
    keys = keystore(tmp_path)
    assert keys.rewrap(WORKFLOW, 1, dry_run=True)
    assert keys.stored(WORKFLOW, 1).kek_id == "first"
    created_at = keys.stored(WORKFLOW, 1).created_at
    assert keys.rewrap(WORKFLOW, 1)
    assert not keys.rewrap(WORKFLOW, 1)
    assert not keys.rewrap(WORKFLOW, 1, dry_run=True)
    key_file(tmp_path / "keys.json", "second", second=secret("second"))
    assert keystore(tmp_path).get(WORKFLOW, 1) == key
    assert keystore(tmp_path).stored(WORKFLOW, 1).created_at == created_at


def test_a_rewrap_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    dying, store = watched(tmp_path)
    key = dying.current(WORKFLOW)
    key_file(tmp_path / "keys.json", "second", first=secret("first"), second=secret("second"))
    store.before["put", FIRST] = away
    with pytest.raises(ObjectStoreError):
        dying.rewrap(WORKFLOW, 1)
    assert keystore(tmp_path).stored(WORKFLOW, 1).kek_id == "first"
    assert keystore(tmp_path).get(WORKFLOW, 1) == key


class Broken(FileKeys):
    """A provider of another package, with errors of its own."""

    def __init__(self, path: Path, fault: Callable[[], bytes]) -> None:
        super().__init__(path)
        self.fault = fault

    def unwrap(self, kek_id: str, wrapped: bytes, context: Any) -> bytes:
        return self.fault()


def _throttled() -> bytes:
    raise OSError(f"throttled, with {CANARY.hex()}")


def test_a_provider_that_is_away_is_retriable_and_its_message_is_not_repeated(tmp_path: Path) -> None:
    plain = keystore(tmp_path)
    plain.current(WORKFLOW)
    broken = Keystore(Broken(tmp_path / "keys.json", _throttled), plain._objects)
    for call in (lambda: broken.get(WORKFLOW, 1), lambda: broken.rotate(WORKFLOW)):
        with pytest.raises(RetriableError, match="the key provider failed: OSError") as caught:
            call()
        assert CANARY.hex() not in f"{caught.value} {caught.value.hint}"
    assert len(list(plain.names(WORKFLOW))) == 1


def test_a_key_that_could_not_be_unwrapped_again_is_never_written(tmp_path: Path) -> None:
    plain = keystore(tmp_path)
    lying = Keystore(Broken(tmp_path / "keys.json", lambda: bytes(32)), plain._objects)
    with pytest.raises(RetriableError, match="does not unwrap what it wrapped"):
        lying.current(WORKFLOW)
    assert list(plain.names()) == []


def test_a_provider_that_gives_a_short_secret_is_key_missing(tmp_path: Path) -> None:
    plain = keystore(tmp_path)
    plain.current(WORKFLOW)
    lying = Keystore(Broken(tmp_path / "keys.json", lambda: b"short"), plain._objects)
    assert reason(lambda: lying.get(WORKFLOW, 1)) == "key_missing"


def test_a_store_that_is_away_is_retriable_and_not_remembered(tmp_path: Path) -> None:
    keys, store = watched(tmp_path)
    store.before["list", "*"] = store.before["info", "*"] = away
    store.before["list", f"keys/{WORKFLOW[:2]}/{WORKFLOW}"] = away
    for call in (lambda: keys.current(WORKFLOW), lambda: keys.get(WORKFLOW, 1)):
        with pytest.raises(RetriableError):
            call()
    store.before.clear()
    assert keys.current(WORKFLOW).number == 1


def test_a_running_workflow_goes_on_for_a_while_without_the_store(tmp_path: Path) -> None:
    clock = Clock()
    writer, store = watched(tmp_path, clock=clock)
    key = writer.current(WORKFLOW)
    folder = f"keys/{WORKFLOW[:2]}/{WORKFLOW}"
    clock.now += ROTATION_SEEN_WITHIN_S
    assert writer.current(WORKFLOW) == key
    seen_at = clock.now
    store.before["list", folder] = store.before["info", "*"] = away
    clock.now += ROTATION_SEEN_WITHIN_S
    store.calls.clear()
    assert writer.current(WORKFLOW) == writer.current(WORKFLOW) == key
    assert store.calls == [("list", folder)]  # not asked again for every checkpoint
    clock.now += AWAY_ASKED_AGAIN_S
    assert writer.current(WORKFLOW) == key
    assert len(store.calls) == 2
    clock.now = seen_at + ERASURE_SEEN_WITHIN_S - 1
    assert writer.current(WORKFLOW) == key
    clock.now += 1
    with pytest.raises(RetriableError):
        writer.current(WORKFLOW)
    store.before.clear()
    assert writer.current(WORKFLOW) == key


def test_a_key_in_use_is_unwrapped_once(tmp_path: Path) -> None:
    """Looking for a newer one shows that it was not erased; a KMS is not asked again."""
    clock = Clock()
    writer, store = watched(tmp_path, clock=clock)
    writer.current(WORKFLOW)
    store.calls.clear()
    for _ in range(20):
        clock.now += ROTATION_SEEN_WITHIN_S
        writer.current(WORKFLOW)
    assert {name for name, _ in store.calls} == {"list"}
    keystore(tmp_path).erase(WORKFLOW, actor="ann", reason="asked to")
    clock.now += ROTATION_SEEN_WITHIN_S
    assert reason(lambda: writer.current(WORKFLOW)) == "key_erased"


def test_prefetch_gives_each_key_or_its_error(tmp_path: Path) -> None:
    names = [derive_id("tests", "many", number) for number in range(PREFETCH_THREADS * 3)]
    made = {name: keystore(tmp_path).current(name) for name in names}
    keystore(tmp_path).erase(names[0], actor="ann", reason="asked to")
    reader, store = watched(tmp_path)
    reader.get(names[1], 1)
    store.calls.clear()
    found = reader.prefetch([(name, 1) for name in names] * 2 + [(names[2], 7)])
    assert {pair: key for pair, key in found.items() if isinstance(key, DataKey)} == {
        (name, 1): made[name] for name in names[1:]
    }
    reasons = {pair: error.reason for pair, error in found.items() if isinstance(error, StateError)}
    assert reasons == {(names[0], 1): "key_erased", (names[2], 7): "key_missing"}
    assert not any(names[1] in path for _, path in store.calls)
    store.calls.clear()
    assert reader.prefetch([(name, 1) for name in names]).keys() == {(name, 1) for name in names}
    assert store.calls == []
    assert reader.prefetch([]) == {}


def test_prefetch_gives_up_when_the_store_is_away(tmp_path: Path) -> None:
    reader, store = watched(tmp_path)
    store.before["info", "*"] = away
    names = [derive_id("tests", "many", number) for number in range(500)]
    found = reader.prefetch([(name, 1) for name in names])
    assert len(found) == len(names)
    assert all(isinstance(error, RetriableError) for error in found.values())
    assert len(store.calls) < 2 * PREFETCH_THREADS


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    keys, store = watched(tmp_path, cached_keys_max=10)
    names = [derive_id("tests", "many", number) for number in range(11)]
    for name in names:
        keys.current(name)
    store.calls.clear()
    keys.get(names[-1], 1)
    assert store.calls == []
    keys.get(names[0], 1)
    assert store.calls
    assert CACHED_KEYS_MAX >= 1000


def test_no_secret_is_in_any_message_log_or_repr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("schemas.keystore.os.urandom", lambda size: CANARY[:size])
    caplog.set_level(0)
    keys = keystore(tmp_path)
    seen = [repr(keys), repr(keys.current(WORKFLOW)), repr(keys.stored(WORKFLOW, 1)), repr(keys.provider)]
    key_file(tmp_path / "keys.json", "first", first=secret("wrong"))
    calls: list[Callable[[], object]] = [
        lambda: keystore(tmp_path).get(WORKFLOW, 1),
        lambda: keystore(tmp_path).rewrap(WORKFLOW, 2),
        lambda: unseal(b"KS\x01\x02\x00\x00\x00\x01" + bytes(40), protection="aes-256-gcm", binding=b"",
                       keys=keys.keys_of(WORKFLOW)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(KintsugiError) as caught:
            call()
        seen.append(shown(caught.value))
    seen.append(caplog.text)
    for text in seen:
        assert not any(form in text for form in (*forms(CANARY), *forms(secret("first")), *forms(secret("wrong"))))


def test_the_keystore_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINTSUGI_KEYS", raising=False)
    monkeypatch.setenv("KINTSUGI_OBJECTS", (tmp_path / "objects").as_uri())
    assert open_keystore() is None
    monkeypatch.setenv("KINTSUGI_KEYS", key_file(tmp_path / "keys.json").as_uri())
    found = open_keystore()
    assert found is not None and found.current(WORKFLOW).number == 1
    monkeypatch.delenv("KINTSUGI_OBJECTS")
    with pytest.raises(ConfigError, match="KINTSUGI_OBJECTS is not"):
        open_keystore()
    assert open_keystore("") is None
