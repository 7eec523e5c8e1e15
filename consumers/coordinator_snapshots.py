"""Snapshots of the coordinator in object storage: a cache, as those of `consumers.snapshots`.

Taken on the loop's thread, written and tidied up on another. Nothing here ever raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import orjson

from . import telemetry
from .deadline import Deadline
from .snapshots import open_store

#: Snapshots kept: the newest, and some to fall back on.
KEPT = 3


class CoordinatorSnapshots:
    """Reads and writes snapshots of one group on one topic of one cluster."""

    def __init__(self, url: str, *, cluster: str, group: str, topic: str) -> None:
        """ConfigError when the URL names no store."""
        self._store = open_store(url)
        self._tags: Mapping[str, object] = {"cluster": cluster, "group": group, "topic": topic}
        self._prefix = f"snapshots/{cluster}/{group}/{topic}"
        self._log = telemetry.log()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._upload: Future[None] | None = None

    def found(self, partition: int, *, low: int, high: int) -> list[tuple[int, Any]]:
        """(next offset, what was dumped) of the snapshots within the log's offsets that can be read, newest first."""
        found: list[tuple[int, Any]] = []
        try:
            for offset, path in sorted(self._list(partition), reverse=True):
                if not low <= offset <= high:
                    self._ignore(path, "outside the log")
                    continue
                try:
                    value = orjson.loads(bytes(self._store.get(path).bytes()))
                    if value["tags"] != {**self._tags, "partition": partition, "offset": offset}:
                        raise ValueError("it belongs to another place")
                    found.append((offset, value["state"]))
                except (ValueError, KeyError, TypeError) as error:
                    self._ignore(path, str(error))
        except Exception as error:  # the store is away: the log is there
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshots not readable", partition=partition, error=error)
        return found

    @property
    def busy(self) -> bool:
        """Whether one is still being written."""
        return self._upload is not None and not self._upload.done()

    def save(self, partition: int, offset: int, state: object) -> None:
        """Write a snapshot of everything before `offset`."""
        tags = {**self._tags, "partition": partition, "offset": offset}
        data = orjson.dumps({"tags": tags, "state": state})
        self._upload = self._pool.submit(self._write, partition, offset, data)

    def settle(self, deadline: Deadline) -> None:
        """Wait for what is being written."""
        if self._upload is not None:
            wait([self._upload], timeout=deadline.left_s())

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(self, partition: int, offset: int, data: bytes) -> None:
        try:
            self._store.put(f"{self._prefix}/{partition}/{offset:020d}", data)
            for _, path in sorted(self._list(partition), reverse=True)[KEPT:]:
                self._store.delete(path)
            telemetry.SNAPSHOTS.labels("saved").inc()
        except Exception as error:
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshot not saved", partition=partition, error=error)

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
