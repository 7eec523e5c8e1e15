"""Snapshots of the coordinator in object storage: a cache, as those of `consumers.snapshots`.

Taken on the loop's thread, written and tidied up on another. Nothing here ever raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import orjson

from .deadline import Deadline
from .snapshot_files import SnapshotFiles


class CoordinatorSnapshots:
    """Reads and writes snapshots of one group on one topic of one cluster."""

    def __init__(self, url: str, *, cluster: str, group: str, topic: str) -> None:
        """ConfigError when the URL names no store."""
        self._files = SnapshotFiles(url, cluster=cluster, group=group, topic=topic)
        self._tags: Mapping[str, object] = {"cluster": cluster, "group": group, "topic": topic}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._upload: Future[None] | None = None

    def found(self, partition: int, *, low: int, high: int) -> list[tuple[int, Any]]:
        """(next offset, what was dumped) of the snapshots within the log's offsets that can be read, newest first."""
        found: list[tuple[int, Any]] = []
        for offset, path, data in self._files.usable(partition, low=low, high=high):
            try:
                value = orjson.loads(data)
                if value["tags"] != {**self._tags, "partition": partition, "offset": offset}:
                    raise ValueError("it belongs to another place")
                found.append((offset, value["state"]))
            except (ValueError, KeyError, TypeError) as error:
                self._files.ignore(path, str(error))
        return found

    @property
    def busy(self) -> bool:
        """Whether one is still being written."""
        return self._upload is not None and not self._upload.done()

    def save(self, partition: int, offset: int, state: object) -> None:
        """Write a snapshot of everything before `offset`."""
        tags = {**self._tags, "partition": partition, "offset": offset}
        data = orjson.dumps({"tags": tags, "state": state})
        self._upload = self._pool.submit(self._files.write, partition, offset, lambda: data)

    def settle(self, deadline: Deadline) -> None:
        """Wait for what is being written."""
        if self._upload is not None:
            wait([self._upload], timeout=deadline.left_s())

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
