"""Snapshots of a partition's states in object storage. A cache: deleting all of them costs time and loses nothing.

Each names the cluster, topic, partition and offset it belongs to; one of another cluster, or that cannot be read, is
ignored. States are taken on the loop's thread, written and tidied up on another. Nothing here ever raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, NamedTuple

import orjson
from obstore.store import ObjectStore, from_url

from engine.inforce import InForce
from engine.snapshot import VERSION, Dump, SnapshotError, load
from engine.state import WorkflowState
from schemas.errors import ConfigError
from schemas.ids import uuid_bytes, uuid_text

from . import telemetry
from .deadline import Deadline

#: Snapshots kept per partition: the newest, and some to fall back on.
KEPT = 3
#: Uploads under way at once; a partition whose turn is full comes back later.
UPLOADS_MAX = 8
_MAGIC = b"KNTSNAP2"
_HEADER_SIZE_BYTES_MAX = 64 * 1024


class Found(NamedTuple):
    """A snapshot that was read: its place, the states, ids of ended workflows, and what `InForce.dump` gave."""

    offset: int
    states: list[WorkflowState]
    ended: list[str]
    in_force: dict[str, Any]


class Dumping:
    """A snapshot in the making, of everything before `offset`: states are taken a few at a time, between folds.

    Each is taken as it was at the beginning: `spare` is to be called before one changes. Does not raise; `failure` says
    why it came to nothing.
    """

    def __init__(
        self, offset: int, states: Mapping[str, WorkflowState], ended: Iterable[str], in_force: InForce
    ) -> None:
        self.offset = offset
        self._in_force = in_force.dump()
        self.failure: Exception | None = None
        self.held_up_s = 0.0
        self._left = dict(states)
        self._order = iter(list(states))
        self._ended = list(ended)
        self._dump = Dump()

    def spare(self, workflow_id: str) -> None:
        """This workflow's state is about to change: take it now."""
        state = self._left.pop(workflow_id, None)
        if state is not None:
            self._add(state)

    def take(self, most: int | None) -> bool:
        """Take so many more states, all for None. Returns whether all are taken."""
        started_s = time.perf_counter()
        for workflow_id in islice(self._order, most):
            self.spare(workflow_id)
        self.held_up_s += time.perf_counter() - started_s
        return not self._left

    def data(self) -> bytes:
        """The content of the snapshot; made by the thread that writes it."""
        parts = b"".join(uuid_bytes(i) for i in self._ended), orjson.dumps(self._in_force)
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts) + self._dump.data()

    def _add(self, state: WorkflowState) -> None:
        try:
            self._dump.add(state)
        except Exception as error:
            self.failure = error
            self._left.clear()


def open_store(url: str) -> ObjectStore:
    """The object store at a URL. ConfigError when it names none."""
    try:
        return from_url(url, mkdir=True) if url.startswith("file:") else from_url(url)
    except Exception as error:
        raise ConfigError(f"KINTSUGI_OBJECTS: {url!r}: {error}") from error


class Snapshots:
    """Snapshots of one group on one topic of one cluster."""

    def __init__(self, url: str, *, cluster: str, group: str, topic: str) -> None:
        """ConfigError when the URL names no store."""
        self._store = open_store(url)
        self._tags = {"cluster": cluster, "group": group, "topic": topic, "version": VERSION}
        self._prefix = f"snapshots/{cluster}/{group}/{topic}"
        self._log = telemetry.log()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="snapshots")
        self._uploads: set[Future[None]] = set()
        self._lock = threading.Lock()

    def newest(self, partition: int, *, low: int, high: int) -> Found | None:
        """The newest usable snapshot within the log's offsets."""
        try:
            for offset, path in sorted(self._list(partition), reverse=True):
                if not low <= offset <= high:
                    self._ignore(path, "outside the log")
                    continue
                try:
                    found = self._read(bytes(self._store.get(path).bytes()), partition, offset)
                except (SnapshotError, ValueError, KeyError, TypeError) as error:
                    self._ignore(path, str(error))
                    continue
                telemetry.SNAPSHOTS.labels("loaded").inc()
                return found
        except Exception as error:  # the store is away: the log is there
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshots not readable", partition=partition, error=error)
        return None

    @property
    def busy(self) -> bool:
        """Whether uploads are backed up; asking for more would only pile up bytes."""
        return len(self._uploads) >= UPLOADS_MAX

    def save(
        self, partition: int, offset: int, states: Iterable[WorkflowState], ended: Iterable[str], in_force: InForce
    ) -> None:
        """Write a snapshot of everything before `offset`, taken at once."""
        made = Dumping(offset, {state.workflow_id: state for state in states}, ended, in_force)
        made.take(None)
        self.write(partition, made)

    def write(self, partition: int, made: Dumping) -> None:
        """Write a snapshot whose states are all taken."""
        telemetry.SNAPSHOT_SECONDS.observe(made.held_up_s)
        if made.failure is not None:
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshot not made", partition=partition, error=made.failure)
            return
        upload = self._pool.submit(self._upload, partition, made)
        with self._lock:
            self._uploads.add(upload)
        upload.add_done_callback(self._uploaded)

    def settle(self, deadline: Deadline) -> None:
        """Wait for uploads under way."""
        with self._lock:
            uploads = set(self._uploads)
        wait(uploads, timeout=deadline.left_s())

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _uploaded(self, upload: Future[None]) -> None:
        with self._lock:
            self._uploads.discard(upload)

    def _upload(self, partition: int, made: Dumping) -> None:
        try:
            head = orjson.dumps({**self._tags, "partition": partition, "offset": made.offset})
            data = b"".join((_MAGIC, len(head).to_bytes(4, "big"), head, made.data()))
            self._store.put(f"{self._prefix}/{partition}/{made.offset:020d}", data)
            for _, path in sorted(self._list(partition), reverse=True)[KEPT:]:
                self._store.delete(path)
            telemetry.SNAPSHOTS.labels("saved").inc()
        except Exception as error:
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshot not saved", partition=partition, error=error)

    def _read(self, data: bytes, partition: int, offset: int) -> Found:
        size = int.from_bytes(data[8:12], "big")
        if data[:8] != _MAGIC or size > _HEADER_SIZE_BYTES_MAX:
            raise SnapshotError("not a snapshot")
        head = orjson.loads(data[12 : 12 + size])
        wanted = {**self._tags, "partition": partition, "offset": offset}
        if head != wanted:
            other = ", ".join(k for k in wanted if head.get(k) != wanted[k])
            raise SnapshotError(f"it belongs to another {other}")
        gone, at = _part(data, 12 + size)
        in_force, at = _part(data, at)
        ended = [uuid_text(gone[i : i + 16]) for i in range(0, len(gone), 16)]
        return Found(offset, load(data[at:]), ended, orjson.loads(in_force))

    def _ignore(self, path: str, reason: str) -> None:
        telemetry.SNAPSHOTS.labels("ignored").inc()
        self._log.warning("snapshot ignored", path=path, reason=reason[:300])

    def _list(self, partition: int) -> list[tuple[int, str]]:
        found = []
        for chunk in self._store.list(prefix=f"{self._prefix}/{partition}"):
            for meta in chunk:
                name = meta["path"].rsplit("/", 1)[-1]
                if name.isdigit():
                    found.append((int(name), meta["path"]))
        return found


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    """The part that begins here with its length, and where it ends."""
    start = at + 4
    end = start + int.from_bytes(data[at:start], "big")
    return data[start:end], end
