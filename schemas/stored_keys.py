"""The form of wrapped data keys in object storage, and where they lie."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

import orjson

from .errors import StateError

FOLDER = "keys"
#: Beside a workflow's keys, once they were erased.
ERASED = "erased"
#: A key object has some 300 bytes; a KMS may wrap in more.
OBJECT_BYTES_MAX = 16 * 1024
_PATH = re.compile(
    rf"{FOLDER}/[0-9a-f]{{2}}/(?P<workflow_id>[0-9a-f-]{{36}})/(?P<name>(?!0{{10}})\d{{10}}|{ERASED})"
).fullmatch


def path_of(workflow_id: str, name: int | str) -> str:
    """Of the key with this number, or of what else lies beside it."""
    text = f"{name:010d}" if isinstance(name, int) else name
    return f"{FOLDER}/{workflow_id[:2]}/{workflow_id}/{text}"


def name_of(path: str) -> tuple[str, int | None] | None:
    """(workflow, number of a key; None for its erasure); None for a path that is neither."""
    found = _PATH(path)
    if found is None:
        return None
    return found["workflow_id"], None if found["name"] == ERASED else int(found["name"])


def context_of(workflow_id: str, number: int) -> dict[str, str]:
    """What a wrapped key belongs to; it opens for nothing else."""
    return {"workflow_id": workflow_id, "number": str(number)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A data key as it lies in the store: wrapped."""

    workflow_id: str
    number: int
    kek_id: str
    wrapped: bytes
    created_at: str

    def dump(self) -> bytes:
        """The object: canonical JSON."""
        body = {
            "workflow_id": self.workflow_id,
            "number": self.number,
            "kek_id": self.kek_id,
            "wrapped": base64.b64encode(self.wrapped).decode(),
            "created_at": self.created_at,
        }
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def parse(cls, data: bytes, workflow_id: str, number: int) -> StoredKey:
        """Inverse of `dump`. StateError "key_missing" for anything but this key's object."""
        stored = None
        try:
            raw: Any = orjson.loads(data)
            stored = cls(
                workflow_id=raw["workflow_id"],
                number=raw["number"],
                kek_id=str(raw["kek_id"]),
                wrapped=base64.b64decode(raw["wrapped"], validate=True),
                created_at=str(raw["created_at"]),
            )
        except (ValueError, TypeError, KeyError):
            pass
        if stored is None or (stored.workflow_id, stored.number) != (workflow_id, number):
            raise StateError("key_missing", f"{path_of(workflow_id, number)} is damaged, or another key's object")
        return stored
