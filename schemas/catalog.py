"""The schemas that ship: every .avsc file, parsed once, found by record name or by CRC-64 fingerprint.

Those of every released version ship too: without a registry they are all that can read what an earlier version wrote.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any

from fastavro import parse_schema
from fastavro.schema import fingerprint, to_parsing_canonical_form

from . import topics

NAMESPACE = "kintsugi"
RELEASED = Path(__file__).parent / "released"
_FOLDER = Path(__file__).parent / "avsc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """One record's schema: its name, source text as registered, parsed form and CRC-64-AVRO fingerprint."""

    name: str
    topic: str
    text: str
    parsed: Any
    canonical: str
    fingerprint: bytes

    @property
    def subject(self) -> str:
        """Subject in the registry, by the topic-record-name strategy."""
        return f"{self.topic}-{NAMESPACE}.{self.name}"


def load(text: str, *, topic: str = topics.EVENTS) -> Schema:
    """Parse one schema text."""
    raw = json.loads(text)
    canonical = to_parsing_canonical_form(raw)
    return Schema(
        name=raw["name"],
        topic=topic,
        text=text,
        parsed=readable(raw),
        canonical=canonical,
        fingerprint=bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO")),
    )


def readable(raw: Any) -> Any:
    """A schema as fastavro reads and writes by it, whose field names are the very strings that our record types have:
    keyword arguments are found by identity first, and only then, one by one, by what they say."""
    return _interned(parse_schema(raw, named_schemas={}))


def _interned(part: Any) -> Any:
    if isinstance(part, dict):
        for key, value in part.items():
            part[key] = intern(value) if key == "name" and isinstance(value, str) else _interned(value)
    elif isinstance(part, list):
        for item in part:
            _interned(item)
    return part


@cache
def shipped() -> dict[str, Schema]:
    """Every schema that ships, by record name."""
    folders = (("events", topics.EVENTS), ("commands", topics.COMMANDS), ("coordination", topics.COORDINATION))
    found = [
        load(path.read_text(encoding="utf-8"), topic=topic)
        for folder, topic in folders
        for path in sorted((_FOLDER / folder).glob("*.avsc"))
    ]
    return {schema.name: schema for schema in found}


@cache
def by_fingerprint() -> dict[bytes, Schema]:
    """Every schema that ships, by little-endian CRC-64 fingerprint, as single-object encoding writes it."""
    return {schema.fingerprint: schema for schema in shipped().values()}


@cache
def released() -> dict[bytes, Schema]:
    """Every schema of every released version, by fingerprint. Read when the first record of an older schema arrives."""
    found = (load(path.read_text(encoding="utf-8")) for path in sorted(RELEASED.glob("*/avsc/*.avsc")))
    return {schema.fingerprint: schema for schema in found}
