"""Snapshots of a partition's states in object storage. A cache: deleting all of them costs time and loses nothing.

Each names the cluster, topic, partition and offset it belongs to; one of another cluster, or that cannot be read, is
ignored. The bytes are made on the loop's thread, uploaded and tidied up on another. Nothing here ever raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import orjson
from obstore.store import ObjectStore, from_url

from engine.snapshot import VERSION, SnapshotError, dump, load
from engine.state import WorkflowState
from schemas.errors import ConfigError
from schemas.ids import uuid_bytes, uuid_text

from . import telemetry
from .deadline import Deadline

#: Snapshots kept per partition: the newest, and some to fall back on.
KEPT = 3
#: Uploads under way at once; a partition whose turn is full comes back later.
UPLOADS_MAX = 8
_MAGIC = b"KNTSNAP1"
_HEADER_SIZE_BYTES_MAX = 64 * 1024


class Snapshots:
    """Snapshots of one group on one topic of one cluster."""

    def __init__(self, url: str, *, cluster: str, group: str, topic: str) -> None:
        """ConfigError when the URL names no store."""
        try:
            self._store: ObjectStore = from_url(url, mkdir=True) if url.startswith("file:") else from_url(url)
        except Exception as error:
            raise ConfigError(f"KINTSUGI_OBJECTS: {url!r}: {error}") from error
        self._tags = {"cluster": cluster, "group": group, "topic": topic, "version": VERSION}
        self._prefix = f"snapshots/{cluster}/{group}/{topic}"
        self._log = telemetry.log()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="snapshots")
        self._uploads: set[Future[None]] = set()
        self._lock = threading.Lock()

    def newest(self, partition: int, *, low: int, high: int) -> tuple[int, list[WorkflowState], list[str]] | None:
        """(next offset, states, ids of ended workflows) of the newest usable snapshot within the log's offsets."""
        try:
            for offset, path in sorted(self._list(partition), reverse=True):
                if not low <= offset <= high:
                    self._ignore(path, "outside the log")
                    continue
                try:
                    found = self._read(bytes(self._store.get(path).bytes()), partition, offset)
                except (SnapshotError, ValueError, KeyError) as error:
                    self._ignore(path, str(error))
                    continue
                telemetry.SNAPSHOTS.labels("loaded").inc()
                return offset, *found
        except Exception as error:  # the store is away: the log is there
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshots not readable", partition=partition, error=error)
        return None

    @property
    def busy(self) -> bool:
        """Whether uploads are backed up; asking for more would only pile up bytes."""
        return len(self._uploads) >= UPLOADS_MAX

    def save(self, partition: int, offset: int, states: Iterable[WorkflowState], ended: Iterable[str]) -> float:
        """Write a snapshot of everything before `offset`. Returns for how long the caller was held up, seconds."""
        started_s = time.perf_counter()
        try:
            head = orjson.dumps({**self._tags, "partition": partition, "offset": offset})
            gone = b"".join(uuid_bytes(i) for i in ended)
            data = b"".join(
                (_MAGIC, len(head).to_bytes(4, "big"), head, len(gone).to_bytes(4, "big"), gone, dump(states))
            )
            upload = self._pool.submit(self._upload, partition, offset, data)
            with self._lock:
                self._uploads.add(upload)
            upload.add_done_callback(self._uploaded)
        except Exception as error:
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshot not made", partition=partition, error=error)
        held_up_s = time.perf_counter() - started_s
        telemetry.SNAPSHOT_SECONDS.observe(held_up_s)
        return held_up_s

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

    def _upload(self, partition: int, offset: int, data: bytes) -> None:
        try:
            self._store.put(f"{self._prefix}/{partition}/{offset:020d}", data)
            for _, path in sorted(self._list(partition), reverse=True)[KEPT:]:
                self._store.delete(path)
            telemetry.SNAPSHOTS.labels("saved").inc()
        except Exception as error:
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshot not saved", partition=partition, error=error)

    def _read(self, data: bytes, partition: int, offset: int) -> tuple[list[WorkflowState], list[str]]:
        size = int.from_bytes(data[8:12], "big")
        if data[:8] != _MAGIC or size > _HEADER_SIZE_BYTES_MAX:
            raise SnapshotError("not a snapshot")
        head = orjson.loads(data[12 : 12 + size])
        wanted = {**self._tags, "partition": partition, "offset": offset}
        if head != wanted:
            other = ", ".join(k for k in wanted if head.get(k) != wanted[k])
            raise SnapshotError(f"it belongs to another {other}")
        at = 12 + size
        gone_size = int.from_bytes(data[at : at + 4], "big")
        gone = data[at + 4 : at + 4 + gone_size]
        states = load(data[at + 4 + gone_size :])
        return states, [uuid_text(gone[i : i + 16]) for i in range(0, len(gone), 16)]

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
