"""What tests of sealing and of keys share: a record with a sealed state, a key file, a keystore in a folder."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import StateError
from schemas.ids import derive_id
from schemas.keys import FileKeys
from schemas.keystore import Keystore
from schemas.objects import Objects
from schemas.records.events import CheckpointCreated
from schemas.sealing import DataKey

WORKFLOW = derive_id("tests", "workflow")
OTHER = derive_id("tests", "other workflow")
#: Looked for in everything that is shown, stored or raised.
CANARY = hashlib.sha256(b"a secret that must be seen nowhere").digest()


def secret(name: str) -> bytes:
    """32 bytes."""
    return hashlib.sha256(name.encode()).digest()


def key(number: int = 1, *, workflow_id: str = WORKFLOW, name: str = "") -> DataKey:
    """A data key that is the same in every run."""
    return DataKey(workflow_id, number, secret(f"{name}{workflow_id}{number}"))


def holder(*keys: DataKey) -> Callable[[int], DataKey]:
    """Who has these keys and no others."""
    by_number = {k.number: k for k in keys}

    def find(number: int) -> DataKey:
        if number not in by_number:
            raise StateError("key_missing", f"no key {number}")
        return by_number[number]

    return find


def checkpoint(**changed: Any) -> CheckpointCreated:
    """A checkpoint with nothing special about it."""
    fields: dict[str, Any] = {
        "event_id": derive_id("tests", "event"),
        "workflow_id": WORKFLOW,
        "workflow_type": "development",
        "occurred_at": 1_764_000_000_000_000,
        "producer": "tests",
        "checkpoint_id": derive_id("tests", "checkpoint"),
        "step_id": "build",
        "checkpoint_type": "step_complete",
        "sequence": 7,
        "epoch": 1,
        "state_version": "1",
        "codec": "gzip",
        "protection": "aes-256-gcm",
        "size_bytes": 1000,
        "digest": secret("digest").hex(),
        "parent_digest": secret("parent").hex(),
        "chain_digest": secret("chain").hex(),
        "status": "running",
        "metadata": '{"by":"tests"}',
    }
    return CheckpointCreated(**{**fields, **changed})


def key_file(path: Path, current: str = "first", **keys: bytes) -> Path:
    """A key file as `kintsugi keys init` writes it."""
    keys = keys or {"first": secret("first")}
    texts = {name: base64.b64encode(kek).decode() for name, kek in keys.items()}
    path.write_text(json.dumps({"current": current, "keys": texts}), encoding="utf-8")
    path.chmod(0o600)
    return path


def keystore(folder: Path, **options: Any) -> Keystore:
    """A keystore over the folder's key file and objects; a second one shares both and no cache."""
    file = folder / "keys.json"
    if not file.exists():
        key_file(file)
    return Keystore(FileKeys(file), Objects((folder / "objects").as_uri()), **options)


def shown(error: BaseException) -> str:
    """All that an exception holds, and those behind it."""
    parts: list[str] = []
    found: BaseException | None = error
    while found is not None:
        parts += [str(found), repr(found), repr(found.args), repr(getattr(found, "__dict__", {}))]
        parts.append(repr(getattr(found, "doc", "")))  # of JSON errors: the whole document
        found = found.__cause__ or found.__context__
    return "\n".join(parts)


def forms(raw: bytes) -> tuple[str, ...]:
    """How a secret would look if it were shown."""
    return raw.hex(), base64.b64encode(raw).decode(), repr(raw), repr(raw)[2:-1]
