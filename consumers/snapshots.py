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

from engine.inforce import InForce
from engine.snapshot import VERSION, Dump, SnapshotError, load
from engine.state import WorkflowState
from schemas.ids import uuid_bytes, uuid_text

from . import telemetry
from .deadline import Deadline
from .snapshot_files import SnapshotFiles

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


class Snapshots:
    """Snapshots of one group on one topic of one cluster."""

    def __init__(self, url: str, *, cluster: str, group: str, topic: str) -> None:
        """ConfigError when the URL names no store."""
        self._files = SnapshotFiles(url, cluster=cluster, group=group, topic=topic)
        self._tags = {"cluster": cluster, "group": group, "topic": topic, "version": VERSION}
        self._log = telemetry.log()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="snapshots")
        self._uploads: set[Future[None]] = set()
        self._lock = threading.Lock()

    def newest(self, partition: int, *, low: int, high: int) -> Found | None:
        """The newest usable snapshot within the log's offsets."""
        for offset, path, data in self._files.usable(partition, low=low, high=high):
            try:
                found = self._read(data, partition, offset)
            except (SnapshotError, ValueError, KeyError, TypeError) as error:
                self._files.ignore(path, str(error))
                continue
            telemetry.SNAPSHOTS.labels("loaded").inc()
            return found
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
        head = orjson.dumps({**self._tags, "partition": partition, "offset": made.offset})
        start = _MAGIC + len(head).to_bytes(4, "big") + head
        self._files.write(partition, made.offset, lambda: start + made.data())

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


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    """The part that begins here with its length, and where it ends."""
    start = at + 4
    end = start + int.from_bytes(data[at:start], "big")
    return data[start:end], end
