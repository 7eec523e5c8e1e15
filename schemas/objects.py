"""Object storage by URL: a local folder, S3, GCS or Azure (obstore). Every call ends within a bounded time.

Objects that are written once are written with `put_new`: of two writers one wins, and no reader ever sees half of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from .errors import ConfigError, RetriableError

if TYPE_CHECKING:  # an extra of the client: imported when a store is opened
    from datetime import datetime

    from obstore.store import ObjectStore

#: One request to a remote store, and all its retries together.
REQUEST_TIMEOUT_S = 10.0
RETRY_TIMEOUT_S = 15.0
_RETRIES_MAX = 3
_ENTRIES_PER_PAGE = 1_000
_HINT = "check KINTSUGI_OBJECTS and whether the store answers; kintsugi doctor"


class ObjectStoreError(RetriableError):
    """The store is away, too slow, full or refuses; the same call may succeed later."""


class ObjectTooLargeError(ObjectStoreError):
    """The object is larger than its reader allows: not what was asked for, and no retry makes it smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object, as a listing shows it."""

    path: str
    size_bytes: int
    modified_at: datetime


class Objects:
    """A store. Thread-safe. Paths are relative, with `/` between their parts."""

    def __init__(self, url: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """ConfigError when the URL names no store, or when obstore is not installed."""
        self.url = url
        try:
            self._store = _open(url, timeout_s)
        except ImportError as error:
            raise ConfigError(
                "object storage needs the package obstore", hint="pip install 'kintsugi-client[objects]'"
            ) from error
        except Exception as error:
            raise ConfigError(f"KINTSUGI_OBJECTS: {url!r}: {_first_line(error)}") from error

    def put(self, path: str, data: bytes) -> None:
        """Write, whatever is there. ObjectStoreError when it could not be written."""
        try:
            self._store.put(path, data)
        except Exception as error:
            raise _error("written", path, error) from error

    def put_new(self, path: str, data: bytes) -> bool:
        """Write if nothing is there; False when something is. ObjectStoreError when it could not be written."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._store.put(path, data, mode="create")
        except (AlreadyExistsError, PreconditionError, FileExistsError):
            return False
        except Exception as error:
            raise _error("written", path, error) from error
        return True

    def get(self, path: str, *, size_bytes_max: int | None = None) -> bytes | None:
        """The whole object; None when there is none. ObjectTooLargeError when it is larger than allowed."""
        from obstore.exceptions import NotFoundError

        try:
            found = self._store.get(path)
            if size_bytes_max is not None and found.meta["size"] > size_bytes_max:
                raise ObjectTooLargeError(f"object {path}: {found.meta['size']} bytes, {size_bytes_max} allowed")
            return bytes(found.bytes())
        except (FileNotFoundError, NotFoundError):
            return None
        except ObjectStoreError:
            raise
        except Exception as error:
            raise _error("read", path, error) from error

    def get_range(self, path: str, start: int, end: int) -> bytes | None:
        """Bytes from `start` up to `end`, fewer at the object's end; None when there is no object."""
        from obstore.exceptions import NotFoundError

        try:
            return bytes(self._store.get_range(path, start=start, end=end))
        except (FileNotFoundError, NotFoundError):
            return None
        except Exception as error:
            raise _error("read", path, error) from error

    def info(self, path: str) -> ObjectInfo | None:
        """Size and time of an object; None when there is none."""
        from obstore.exceptions import NotFoundError

        try:
            found = self._store.head(path)
        except (FileNotFoundError, NotFoundError):
            return None
        except Exception as error:
            raise _error("read", path, error) from error
        return ObjectInfo(path=found["path"], size_bytes=found["size"], modified_at=found["last_modified"])

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects under a folder, in no certain order; with `after` only those whose path sorts behind it."""
        try:
            for page in self._store.list(prefix=prefix, offset=after, chunk_size=_ENTRIES_PER_PAGE):
                for found in page:
                    yield ObjectInfo(path=found["path"], size_bytes=found["size"], modified_at=found["last_modified"])
        except Exception as error:
            raise _error("listed", prefix, error) from error

    def delete(self, path: str) -> None:
        """Delete; nothing there is well too. ObjectStoreError when it may still be there."""
        from obstore.exceptions import NotFoundError

        try:
            self._store.delete(path)
        except (FileNotFoundError, NotFoundError):
            return
        except Exception as error:
            raise _error("deleted", path, error) from error


def _open(url: str, timeout_s: float) -> ObjectStore:
    from obstore.store import from_url

    if url.startswith("file:"):
        return from_url(url, mkdir=True)
    if url.startswith("memory:"):
        return from_url(url)
    return from_url(
        url,
        client_options={"timeout": timedelta(seconds=timeout_s), "connect_timeout": timedelta(seconds=timeout_s)},
        retry_config={"max_retries": _RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)},
    )


def _error(what: str, path: str, error: Exception) -> ObjectStoreError:
    return ObjectStoreError(f"object {path} could not be {what}: {_first_line(error)}", hint=_HINT)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
