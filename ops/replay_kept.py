"""Documents of replays in object storage, where `debugging.replay_mode.storage` says: by session, written once.

What a document must be is its SHA-256 in the session's results, in the log: one that was changed is not shown.
"""

from __future__ import annotations

import hashlib

import click

from schemas.errors import ConfigError, FatalError
from schemas.objects import Objects

from .output import MISMATCH, NotFoundError

#: A document with each step of a long range; larger ones are written to stdout, and kept by whoever wants them.
KEPT_BYTES_MAX = 512 * 1024 * 1024
_FOLDER = "replays"


class ChangedError(click.ClickException):
    """The document is not the one that the session wrote."""

    exit_code = MISMATCH


class Kept:
    """The documents of one place."""

    def __init__(self, storage: str, objects: str) -> None:
        """`storage`: as the policy says; empty for a folder in `objects`. ConfigError when it is no place."""
        self._folder = "" if storage else f"{_FOLDER}/"
        try:
            self._objects = Objects(storage or objects)
        except ConfigError as error:
            raise ConfigError(
                f"debugging.replay_mode.storage of the policy in force: {storage!r:.200} is no object storage",
                hint="an URL such as s3://bucket/folder, or nothing for a folder in KINTSUGI_OBJECTS",
            ) from error

    def put(self, session_id: str, data: bytes) -> str:
        """Keep a document; where it is. RetriableError when the storage is away."""
        if len(data) > KEPT_BYTES_MAX:
            raise FatalError(
                f"the document has {len(data)} bytes, {KEPT_BYTES_MAX} are kept",
                hint="without --keep, or a shorter range",
            )
        path = f"{self._folder}{session_id}"
        self._objects.put_new(path, data)
        return path

    def get(self, session_id: str, sha256: str) -> bytes:
        """A document that was kept. NotFoundError when it is not there, ChangedError when it is another."""
        data = self._objects.get(f"{self._folder}{session_id}", size_bytes_max=KEPT_BYTES_MAX)
        if data is None:
            raise NotFoundError(f"no document of session {session_id} was kept")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ChangedError(f"the document of session {session_id} was changed after it was written")
        return data
