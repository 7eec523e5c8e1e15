"""Every shipped schema against every released version of itself: both must read what the other wrote, for ever."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .catalog import RELEASED, shipped
from .errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Incompatible:
    """One way in which a schema breaks readers or writers of a released version."""

    record: str
    version: str
    message: str


def compare(name: str, version: str, released: str, current: str) -> list[Incompatible]:
    """Both directions between two schema texts."""
    try:
        from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
        from avro.schema import NamedSchema, parse
    except ImportError:
        raise ConfigError("the package avro is needed to compare schemas", hint="pip install avro") from None
    old, new = (cast(NamedSchema, parse(text)) for text in (released, current))
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    if old.fullname != new.fullname:  # the checker looks at the last part of a name alone; the codec at all of it
        message = f"{old.fullname} became {new.fullname}: another name is another record"
        return [Incompatible(record=name, version=version, message=message)]
    found = []
    for what, reader, writer in (("new reader, old data", new, old), ("old reader, new data", old, new)):
        result = checker.get_compatibility(reader, writer)
        if result.compatibility is not SchemaCompatibilityType.compatible:
            where = ", ".join(sorted(result.locations)) or "/"
            detail = "; ".join(sorted(result.messages))
            found.append(Incompatible(record=name, version=version, message=f"{what}: {detail} at {where}"))
    return found


def problems(folder: Path = RELEASED) -> list[Incompatible]:
    """Every incompatibility with any released version; a record that vanished is one too."""
    found: list[Incompatible] = []
    paths = sorted(folder.glob("*/avsc/*.avsc"))
    if not paths:
        raise ConfigError(f"{folder} holds no released version: nothing to compare with")
    for path in paths:
        version = path.parts[-3]
        text = path.read_text(encoding="utf-8")
        name = json.loads(text)["name"]
        current = shipped().get(name)
        if current is None:
            found.append(Incompatible(record=name, version=version, message="the record is gone"))
            continue
        found += compare(name, version, text, current.text)
    return found
