"""Where snapshots lie: one object for each, named by the partition and the offset that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from obstore.store import ObjectStore, from_url

from schemas.errors import ConfigError

from . import telemetry

#: Snapshots kept per partition: the newest, and some to fall back on.
KEPT = 3


class SnapshotFiles:
    """Snapshots of one group on one topic of one cluster. Nothing but the constructor ever raises: they are a cache."""

    def __init__(self, url: str, *, cluster: str, group: str, topic: str) -> None:
        """ConfigError when the URL names no store."""
        self._store = _open(url)
        self._prefix = f"snapshots/{cluster}/{group}/{topic}"
        self._log = telemetry.log()

    def usable(self, partition: int, *, low: int, high: int) -> Iterator[tuple[int, str, bytes]]:
        """(next offset, path, content) of those within the log's offsets, newest first."""
        try:
            for offset, path in sorted(self._list(partition), reverse=True):
                if low <= offset <= high:
                    yield offset, path, bytes(self._store.get(path).bytes())
                else:
                    self.ignore(path, "outside the log")
        except Exception as error:  # the store is away: the log is there
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshots not readable", partition=partition, error=error)

    def ignore(self, path: str, reason: str) -> None:
        """Say that this one is of no use, and why."""
        telemetry.SNAPSHOTS.labels("ignored").inc()
        self._log.warning("snapshot ignored", path=path, reason=reason[:300])

    def write(self, partition: int, offset: int, content: Callable[[], bytes]) -> None:
        """Write one and remove the oldest. The content is made here, on the thread that writes."""
        try:
            self._store.put(f"{self._prefix}/{partition}/{offset:020d}", content())
            for _, path in sorted(self._list(partition), reverse=True)[KEPT:]:
                self._store.delete(path)
            telemetry.SNAPSHOTS.labels("saved").inc()
        except Exception as error:
            telemetry.SNAPSHOTS.labels("failed").inc()
            self._log.warning("snapshot not saved", partition=partition, error=error)

    def _list(self, partition: int) -> list[tuple[int, str]]:
        found = []
        for chunk in self._store.list(prefix=f"{self._prefix}/{partition}"):
            for meta in chunk:
                name = meta["path"].rsplit("/", 1)[-1]
                if name.isdigit():
                    found.append((int(name), meta["path"]))
        return found


def _open(url: str) -> ObjectStore:
    try:
        return from_url(url, mkdir=True) if url.startswith("file:") else from_url(url)
    except Exception as error:
        raise ConfigError(f"KINTSUGI_OBJECTS: {url!r}: {error}") from error
