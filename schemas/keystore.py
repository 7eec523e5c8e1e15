"""Workflows' data keys: wrapped, in object storage, one immutable object each; unwrapped, in a bounded cache.

`keys/<2 hex>/<workflow id>/<number>` is written once (`put_new`), so that all who need a workflow's first or next key
agree on one. `erased` beside them says that there are none and never will be again; it is written before they are
deleted, and whoever adds or rewrites a key looks for it afterwards. So an erasure that is cut short anywhere is already
in force, and doing it again finishes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from .errors import ConfigError, KintsugiError, RetriableError, StateError
from .expiring import Expiring
from .ids import check_uuid
from .keys import VARIABLE, KeyProvider, open_provider
from .objects import Objects, ObjectTooLargeError
from .sealing import SECRET_BYTES, DataKey
from .stored_keys import ERASED, FOLDER, OBJECT_BYTES_MAX, StoredKey, context_of, name_of, path_of

_OPTIONAL_VARIABLE = "KINTSUGI_KEYS_OPTIONAL"
#: How long a writer may go on with a key after `keys rotate --workflow`.
ROTATION_SEEN_WITHIN_S = 60.0
#: How long a process may go on reading with a key after its erasure.
ERASURE_SEEN_WITHIN_S = 300.0
#: A key that is not there may be there soon: its writer's put was slow. Until then, asking again costs nothing.
MISSING_ASKED_AGAIN_S = 5.0
#: A store that is away makes each that asks it wait. Who has a key that may still be used goes on with it meanwhile.
AWAY_ASKED_AGAIN_S = 5.0
#: About 2 KB each, with the ciphers made of it.
CACHED_KEYS_MAX = 10_000
#: Requests under way at once in `prefetch`: most of their time is waiting for the store.
PREFETCH_THREADS = 16
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Who erased a workflow's keys, and when; the first that did. `keys_deleted` are those of this call."""

    workflow_id: str
    actor: str
    reason: str
    erased_at: str
    keys_deleted: int


class Keystore:
    """Data keys of workflows. Thread-safe.

    Errors of all calls: StateError "key_erased", "key_missing" (no such key, or none that the provider can open), and
    RetriableError when the store or the provider is away.
    """

    def __init__(
        self,
        provider: KeyProvider,
        objects: Objects,
        *,
        cached_keys_max: int = CACHED_KEYS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider = provider
        self._objects = objects
        self._clock = clock
        self._keys: Expiring[tuple[str, int], DataKey | StateError] = Expiring(cached_keys_max, clock)
        #: Number of the newest key, and when to ask for a newer one.
        self._current: Expiring[str, tuple[int, float] | StateError] = Expiring(cached_keys_max, clock)

    def current(self, workflow_id: str) -> DataKey:
        """The key to seal with: the newest, at most ROTATION_SEEN_WITHIN_S old news; the first is made here.

        While the store is away a workflow goes on with the key it has, for ERASURE_SEEN_WITHIN_S after it was seen.
        """
        newest = self._current.get(workflow_id)
        if isinstance(newest, StateError):
            raise _again(newest)
        if newest is not None and self._clock() < newest[1]:
            return self.get(workflow_id, newest[0])
        try:
            numbers = self._numbers(workflow_id)
            number = numbers[-1] if numbers else self._make(workflow_id, 1)
        except RetriableError:
            held = None if newest is None else self._keys.get((workflow_id, newest[0]))
            if newest is None or not isinstance(held, DataKey):
                raise
            self._remember(workflow_id, newest[0], AWAY_ASKED_AGAIN_S)
            return held
        self._remember(workflow_id, number, ROTATION_SEEN_WITHIN_S)
        held = self._keys.get((workflow_id, number))
        if isinstance(held, DataKey):  # just seen, and no erasure beside it: good for as long again
            self._keys.put((workflow_id, number), held, ERASURE_SEEN_WITHIN_S)
        return self.get(workflow_id, number)

    def at_hand(self, workflow_id: str) -> DataKey | None:
        """As `current`, but None when the store or the provider would have to be asked."""
        newest = self._current.get(workflow_id)
        if isinstance(newest, StateError):
            raise _again(newest)
        if newest is None or self._clock() >= newest[1]:
            return None
        found = self._keys.get((workflow_id, newest[0]))
        return found if isinstance(found, DataKey) else None

    def get(self, workflow_id: str, number: int) -> DataKey:
        """The key with this number."""
        found = self._keys.get((workflow_id, number))
        if found is None:
            found = self._read(workflow_id, number)
        if isinstance(found, StateError):
            raise _again(found)
        return found

    def keys_of(self, workflow_id: str) -> Callable[[int], DataKey]:
        """What `unseal` asks for."""
        return lambda number: self.get(workflow_id, number)

    def prefetch(self, pairs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], DataKey | KintsugiError]:
        """Many keys at once, each with its error when it has one. When the store is away, the rest is not tried."""
        found: dict[tuple[str, int], DataKey | KintsugiError] = {}
        wanted = []
        for pair in dict.fromkeys(pairs):
            cached = self._keys.get(pair)
            if cached is None:
                wanted.append(pair)
            else:
                found[pair] = cached
        away: list[RetriableError] = []

        def fetch(pair: tuple[str, int]) -> DataKey | KintsugiError:
            if away:
                return away[0]
            try:
                return self.get(*pair)
            except RetriableError as error:
                away.append(error)
                return error
            except StateError as error:
                return error

        if wanted:
            with ThreadPoolExecutor(min(PREFETCH_THREADS, len(wanted)), thread_name_prefix="keys") as pool:
                found.update(zip(wanted, pool.map(fetch, wanted), strict=True))
        return found

    def rotate(self, workflow_id: str) -> DataKey:
        """A new key for what the workflow writes from now on; older ones stay readable."""
        numbers = self._numbers(workflow_id)
        number = self._make(workflow_id, numbers[-1] + 1 if numbers else 1)
        self._remember(workflow_id, number, ROTATION_SEEN_WITHIN_S)
        return self.get(workflow_id, number)

    def rewrap(self, workflow_id: str, number: int, *, dry_run: bool = False) -> bool:
        """Wrap a key by the provider's current KEK. False when it is already. What is sealed with it stays as it is."""
        stored = self.stored(workflow_id, number)
        if stored.kek_id == self.provider.current:
            return False
        key = self._unwrap(stored)
        if not dry_run:
            data = self._wrap(key, created_at=stored.created_at)
            self._objects.put(path_of(workflow_id, number), data)
            self._after_write(workflow_id, number)
        return True

    def erase(self, workflow_id: str, *, actor: str, reason: str) -> Erasure:
        """Make all that is sealed for this workflow unreadable, for ever. Again: finishes what was cut short."""
        _check_id(workflow_id)
        tombstone = {"workflow_id": workflow_id, "actor": actor, "reason": reason, "erased_at": _now()}
        if not self._objects.put_new(path_of(workflow_id, ERASED), orjson.dumps(tombstone)):
            tombstone = self.erasure(workflow_id) or tombstone
        deleted = 0
        for _, number in list(self._list(workflow_id)):
            if number is not None:
                self._objects.delete(path_of(workflow_id, number))
                deleted += 1
        self.forget(workflow_id)
        return Erasure(
            workflow_id=workflow_id,
            actor=str(tombstone["actor"]),
            reason=str(tombstone["reason"]),
            erased_at=str(tombstone["erased_at"]),
            keys_deleted=deleted,
        )

    def erasure(self, workflow_id: str) -> dict[str, Any] | None:
        """The tombstone: who erased the workflow's keys, when and why; None when nobody did."""
        _check_id(workflow_id)
        data = self._object(workflow_id, ERASED)
        if data is None:
            return None
        unknown = {"workflow_id": workflow_id, "actor": "unknown", "reason": "unknown", "erased_at": "unknown"}
        try:  # what it says may be damaged; that it is there is what counts
            return {**unknown, **orjson.loads(data)}
        except (orjson.JSONDecodeError, TypeError):
            return unknown

    def stored(self, workflow_id: str, number: int) -> StoredKey:
        """The wrapped key as it lies in the store."""
        _check_id(workflow_id)
        if self._objects.info(path_of(workflow_id, ERASED)) is not None:
            raise _erased(workflow_id)
        data = self._object(workflow_id, number)
        if data is None:
            # The erasure may have come between the two questions.
            if self._objects.info(path_of(workflow_id, ERASED)) is not None:
                raise _erased(workflow_id)
            raise StateError("key_missing", f"workflow {workflow_id} has no data key {number} in the object store")
        return StoredKey.parse(data, workflow_id, number)

    def names(self, workflow_id: str | None = None) -> Iterator[tuple[str, int | None]]:
        """(workflow, number of a key) of all that is stored, in no certain order; number None is an erasure."""
        return self._list(workflow_id)

    def forget(self, workflow_id: str | None = None) -> None:
        """Drop what is cached, of one workflow or of all."""
        self._current.drop_all(lambda key: workflow_id in (None, key))
        self._keys.drop_all(lambda key: workflow_id in (None, key[0]))

    def _remember(self, workflow_id: str, number: int, seconds: float) -> None:
        """This is the newest key, and for so long there is no need to ask."""
        self._current.put(workflow_id, (number, self._clock() + seconds), ERASURE_SEEN_WITHIN_S)

    def _numbers(self, workflow_id: str) -> list[int]:
        """Numbers of a workflow's keys, ascending. StateError "key_erased"."""
        _check_id(workflow_id)
        numbers = [number for _, number in self._list(workflow_id)]
        if None in numbers:
            error = _erased(workflow_id)
            self._current.put(workflow_id, error, ERASURE_SEEN_WITHIN_S)
            self._keys.drop_all(lambda key: key[0] == workflow_id)
            raise error
        return sorted(number for number in numbers if number is not None)

    def _list(self, workflow_id: str | None) -> Iterator[tuple[str, int | None]]:
        prefix = FOLDER if workflow_id is None else f"{FOLDER}/{workflow_id[:2]}/{workflow_id}"
        for info in self._objects.list(prefix):
            found = name_of(info.path)
            if found is not None:  # the store's own temporary files lie beside them
                yield found

    def _object(self, workflow_id: str, name: int | str) -> bytes | None:
        """One object; empty, which nothing of ours is, when it is larger than any of ours."""
        try:
            return self._objects.get(path_of(workflow_id, name), size_bytes_max=OBJECT_BYTES_MAX)
        except ObjectTooLargeError:
            return b""

    def _make(self, workflow_id: str, number: int) -> int:
        """Make a key with this number, unless another was faster: then it is the other's."""
        key = DataKey(workflow_id, number, os.urandom(SECRET_BYTES))
        if self._objects.put_new(path_of(workflow_id, number), self._wrap(key, created_at=_now())):
            self._after_write(workflow_id, number)
            self._keys.put((workflow_id, number), key, ERASURE_SEEN_WITHIN_S)
        else:
            self._keys.drop((workflow_id, number))  # it may be cached as missing
        return number

    def _after_write(self, workflow_id: str, number: int) -> None:
        # An erasure that began before the write may have listed the keys before it, and so not delete this one.
        if self._objects.info(path_of(workflow_id, ERASED)) is not None:
            self._objects.delete(path_of(workflow_id, number))
            self.forget(workflow_id)
            raise _erased(workflow_id)

    def _read(self, workflow_id: str, number: int) -> DataKey | StateError:
        pair = (workflow_id, number)
        try:
            key = self._unwrap(self.stored(workflow_id, number))
        except StateError as error:
            seconds = ERASURE_SEEN_WITHIN_S if error.reason == "key_erased" else MISSING_ASKED_AGAIN_S
            self._keys.put(pair, error, seconds)
            return error
        self._keys.put(pair, key, ERASURE_SEEN_WITHIN_S)
        return key

    def _wrap(self, key: DataKey, *, created_at: str) -> bytes:
        context = context_of(key.workflow_id, key.number)
        kek_id, wrapped = _asked(lambda: self.provider.wrap(key.secret, context))
        # What nobody can unwrap must never replace, or be, the only copy of a key.
        if _asked(lambda: self.provider.unwrap(kek_id, wrapped, context)) != key.secret:
            raise RetriableError("the key provider does not unwrap what it wrapped", hint="kintsugi doctor")
        return StoredKey(
            workflow_id=key.workflow_id, number=key.number, kek_id=kek_id, wrapped=wrapped, created_at=created_at
        ).dump()

    def _unwrap(self, stored: StoredKey) -> DataKey:
        context = context_of(stored.workflow_id, stored.number)
        secret = _asked(lambda: self.provider.unwrap(stored.kek_id, stored.wrapped, context))
        try:
            return DataKey(stored.workflow_id, stored.number, secret)
        except ValueError as error:
            raise StateError("key_missing", f"{path_of(stored.workflow_id, stored.number)}: {error}") from None


def open_keystore(keys_url: str | None = None, objects_url: str | None = None) -> Keystore | None:
    """The keystore that KINTSUGI_KEYS and KINTSUGI_OBJECTS name; None without the first.

    ConfigError names what is wrong with them.
    """
    keys_url = os.environ.get(VARIABLE, "") if keys_url is None else keys_url
    objects_url = os.environ.get("KINTSUGI_OBJECTS", "") if objects_url is None else objects_url
    if not keys_url:
        return None
    if not objects_url:
        raise ConfigError(f"{VARIABLE} is set, KINTSUGI_OBJECTS is not: data keys lie in object storage")
    return Keystore(open_provider(keys_url), Objects(objects_url))


def keys_optional() -> bool:
    """Whether KINTSUGI_KEYS_OPTIONAL=1: while keys are being rolled out, states that nobody sealed are taken too."""
    value = os.environ.get(_OPTIONAL_VARIABLE, "0")
    if value not in ("0", "1", ""):
        raise ConfigError(f"{_OPTIONAL_VARIABLE}: {value!r:.20} must be 0 or 1")
    return value == "1"


def _asked(call: Callable[[], T]) -> T:
    try:
        return call()
    except KintsugiError:
        raise
    except Exception as error:  # a provider of another package; its message may hold what must not be shown
        raise RetriableError(f"the key provider failed: {type(error).__name__}", hint="kintsugi doctor") from error


def _check_id(workflow_id: str) -> None:
    """An id becomes part of a path."""
    try:
        check_uuid(workflow_id)
    except ValueError as error:
        raise StateError("key_missing", f"no workflow has a data key: {error}") from None


def _erased(workflow_id: str) -> StateError:
    return StateError(
        "key_erased",
        f"the data keys of workflow {workflow_id} were erased; what they sealed can be read by nobody",
        hint="kintsugi keys status shows who erased them",
    )


def _again(error: StateError) -> StateError:
    """A copy: one exception raised in several threads would collect all their traces."""
    return StateError(error.reason, str(error), hint=error.hint)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
