"""What operators do with keys: key files, and all data keys of a store looked at, wrapped anew, or erased.

Every pass over the store can be cut short and begun again: each data key is one object, replaced whole.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from projections.reader import snapshot
from projections.sql import blocks
from schemas.codec import Codec
from schemas.errors import ConfigError, KintsugiError, StateError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.keys import VARIABLE, KeyRing, read_key_file
from schemas.keystore import Keystore, open_keystore
from schemas.records.events import WorkflowKeyErased
from schemas.registry import Registry
from schemas.sealing import SECRET_BYTES
from schemas.topics import EVENTS

from .publish import publish
from .stack import Addresses

#: Problems and erasures that are listed one by one; all are counted.
LISTED_MAX = 100
#: Requests under way at once, and keys read ahead of them: a pass over millions needs no more memory than this.
_THREADS = 16
_WINDOW = 512
_PRODUCER = "kintsugi-cli"
_QUERIES = blocks("ops", "keys.sql")

#: Called with (what is being done, keys done, keys in all).
Progress = Callable[[str, int, int], None]
I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


@dataclass(slots=True)
class KeysReport:
    """All data keys of a store, as a pass over them found them."""

    provider: str
    current: str
    keks: tuple[str, ...]
    data_keys: int = 0
    workflows: int = 0
    by_kek: dict[str, int] = field(default_factory=dict)
    erased: int = 0
    erasures: list[dict[str, Any]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    unusable: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lost_keks(self) -> list[str]:
        """KEKs that wrap data keys and that the provider does not have."""
        return sorted(kek for kek in self.by_kek if kek not in self.keks)

    @property
    def sound(self) -> bool:
        """Whether every data key of a workflow that was not erased can be opened."""
        return not self.unusable and not self.lost_keks


@dataclass(slots=True)
class RewrapReport:
    """What a pass did. `rewrapped` would be, in a dry run."""

    current: str
    rewrapped: int = 0
    already: int = 0
    erased: int = 0
    failed: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)


def opened(objects_url: str) -> Keystore:
    """The keystore of this environment. ConfigError when no keys are configured."""
    found = open_keystore(None, objects_url)
    if found is None:
        raise ConfigError(f"{VARIABLE} is not set: states are not sealed", hint="kintsugi keys init")
    return found


def create_file(path: Path) -> KeyRing:
    """A new key file with one KEK, readable by its owner alone. FileExistsError when there is a file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kek_id = new_kek_id()
    ring = KeyRing(kek_id, {kek_id: os.urandom(SECRET_BYTES)})
    _write_new(path, ring.dump())
    return ring


def key_file_of(url: str) -> Path:
    """The key file that KINTSUGI_KEYS names. ConfigError for another provider: its keys are rotated where they are."""
    if urlsplit(url).scheme != "file":
        raise ConfigError(
            f"{VARIABLE} names no key file: its keys are rotated where they are kept",
            hint="then kintsugi keys rewrap wraps the data keys by the new one",
        )
    return Path(unquote(urlsplit(url).path))


def rotate_file(path: Path, *, make_current: bool, kek_id: str | None = None) -> KeyRing:
    """Add a KEK to a key file, or choose one that is there; the old ones stay. The file is replaced whole.

    Not current yet: it is given to every host first, and made current when all of them can unwrap with it.
    """
    with _locked(path):
        ring = read_key_file(path)
        keys = dict(ring.keys)
        if kek_id is None:
            kek_id = new_kek_id()
            keys[kek_id] = os.urandom(SECRET_BYTES)
        elif kek_id not in keys:
            raise ConfigError(f"{path} has no key {kek_id!r:.80}", hint=f"one of {', '.join(keys)}")
        new = KeyRing(kek_id if make_current else ring.current, keys)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        _write_new(temporary, new.dump())
        temporary.replace(path)
        return new


def new_kek_id() -> str:
    """The day, for people, and what tells two of one day apart."""
    return f"kek-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"


def _write_new(path: Path, data: bytes) -> None:
    """Never readable by others, not even for a moment; on the disk when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One rotation at a time: the later would drop the earlier's key. The folder outlives the file's replacement."""
    if not path.parent.is_dir():
        raise ConfigError(f"{VARIABLE}: {path.parent} is no folder", hint="kintsugi keys init")
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def survey(keystore: Keystore, progress: Progress) -> KeysReport:
    """Look at every data key, without unwrapping any. RetriableError when the store is away."""
    provider = keystore.provider
    report = KeysReport(provider=type(provider).__name__, current=provider.current, keks=provider.names())
    erased = {workflow_id for workflow_id, number in keystore.names() if number is None}
    left: set[str] = set()
    counts: Counter[str] = Counter(dict.fromkeys(report.keks, 0))

    def look(name: tuple[str, int | None]) -> tuple[str, int, str | StateError] | None:
        workflow_id, number = name
        if number is None or workflow_id in erased:
            return None if number is None else (workflow_id, number, "")
        try:
            return workflow_id, number, keystore.stored(workflow_id, number).kek_id
        except StateError as error:
            return workflow_id, number, error

    for found in _each(look, keystore.names(), _count(keystore), "data keys", progress):
        if found is None:
            continue
        workflow_id, number, kek = found
        if workflow_id in erased:
            left.add(workflow_id)
            continue
        report.data_keys += 1
        report.workflows += number == 1
        if isinstance(kek, str):
            counts[kek] += 1
        else:
            report.unusable += 1
            _list(report.problems, workflow_id, number, kek)
    report.by_kek = dict(counts)
    report.erased = len(erased)
    report.unfinished = sorted(left)[:LISTED_MAX]
    report.erasures = [keystore.erasure(workflow_id) or {} for workflow_id in sorted(erased)[:LISTED_MAX]]
    return report


def rewrap(keystore: Keystore, progress: Progress, *, dry_run: bool) -> RewrapReport:
    """Wrap every data key by the current KEK. What fails is counted, and the rest is done all the same."""
    report = RewrapReport(current=keystore.provider.current)

    def one(name: tuple[str, int | None]) -> tuple[str, int, bool | StateError] | None:
        workflow_id, number = name
        if number is None:
            return None
        try:
            return workflow_id, number, keystore.rewrap(workflow_id, number, dry_run=dry_run)
        except StateError as error:
            return workflow_id, number, error

    for found in _each(one, keystore.names(), _count(keystore), "rewrapped", progress):
        if found is None:
            continue
        workflow_id, number, done = found
        if not isinstance(done, StateError):
            report.rewrapped += done
            report.already += not done
        elif done.reason == "key_erased":
            report.erased += 1
        else:
            report.failed += 1
            _list(report.problems, workflow_id, number, done)
    return report


def _count(keystore: Keystore) -> int:
    return sum(1 for _ in keystore.names())


def _each(function: Callable[[I], O], items: Iterable[I], total: int, what: str, progress: Progress) -> Iterator[O]:
    """Results of a function over many items, several at once, never more than a window of them in memory."""
    left, done = iter(items), 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="keys") as pool:
        while window := list(islice(left, _WINDOW)):
            yield from pool.map(function, window)
            done += len(window)
            progress(what, min(done, total), total)


def _list(problems: list[dict[str, Any]], workflow_id: str, number: int, error: KintsugiError) -> None:
    if len(problems) < LISTED_MAX:
        problems.append({"workflow_id": workflow_id, "number": number, "problem": str(error)})


def exposure(at: Addresses, keystore: Keystore, workflow_id: str) -> dict[str, Any]:
    """What becomes unreadable when a workflow's keys are erased, as far as the tables know."""
    keys = [number for _, number in keystore.names(workflow_id)]
    with snapshot(at.postgres) as tables:
        place = tables.query(_QUERIES["place"], {"id": workflow_id})
        counted = tables.query(_QUERIES["exposure"], {"id": workflow_id})[0]
    known = place[0] if place else {"workflow_type": None, "status": None}
    return {
        "workflow_id": workflow_id,
        "workflow_type": known["workflow_type"],
        "status": known["status"],
        **counted,
        "data_keys": sum(number is not None for number in keys),
        "erased": None in keys,
    }


def prove_erasure(at: Addresses, workflow_id: str, *, actor: str, reason: str) -> str:
    """Say in the log that a workflow's keys were erased. Its id is derived: saying it twice is saying it once."""
    with snapshot(at.postgres) as tables:
        place = tables.query(_QUERIES["place"], {"id": workflow_id})
    known: dict[str, Any] = place[0] if place else {"workflow_type": "unknown", "external_id": None}
    record = WorkflowKeyErased(
        event_id=derive_id(workflow_id, "key_erased"),
        workflow_id=workflow_id,
        workflow_type=known["workflow_type"],
        external_id=known["external_id"],
        correlation_id=workflow_id,
        occurred_at=time.time_ns() // 1000,
        producer=_PRODUCER,
        reason=reason,
        actor=actor,
    )
    with Registry(at.registry) as registry:
        value = Codec(registry).encode(record)
    # To the partition that the workflow's service chose: another one is another order.
    partition = known.get("log_partition", -1)
    publish(at.kafka, EVENTS, workflow_id, value, headers=headers_for(record), partition=partition)
    return record.event_id
