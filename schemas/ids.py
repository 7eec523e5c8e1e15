"""Deterministic ids: the same cause, kind and number give the same id in every process, for ever.

This is what makes an effect happen once although records may be delivered, decided and sent more than once
(DESIGN.md section 2, decision 1). The namespace and the layout of the name must never change.
"""

from __future__ import annotations

import hashlib
import uuid

_NAMESPACE = uuid.UUID("6b696e74-7375-5769-8000-676f6c646a6f").bytes


def derive_id(cause_id: str, kind: str, number: int = 0) -> str:
    """UUIDv5 of (cause, kind, number), as text. Equal to `uuid.uuid5`, at a third of its cost."""
    digest = hashlib.sha1(_NAMESPACE + f"{cause_id}|{kind}|{number}".encode(), usedforsecurity=False).digest()
    value = int.from_bytes(digest[:16], "big")
    value = value & ~(0xF000 << 64) & ~(0xC000 << 48) | (5 << 76) | (0x8000 << 48)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes of a canonical lower-case UUID; ValueError for anything else."""
    if len(text) != 36 or text[8] != "-" or text[13] != "-" or text[18] != "-" or text[23] != "-":
        raise ValueError(f"not a canonical UUID: {text[:64]!r}")
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16 or text != text.lower():
        raise ValueError(f"not a canonical UUID: {text[:64]!r}")
    return raw


def uuid_text(raw: bytes) -> str:
    """Inverse of `uuid_bytes`."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
