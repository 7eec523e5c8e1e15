"""Freezes a release of the schemas: `python -m schemas.release VERSION`.

Into `released/VERSION` go every .avsc as it is (`avsc/`), and of every record two sets of bytes with the values they
hold (`bin/`): `full` has a value in every field, `bare` has nulls, defaults and empty texts. All later code must read
them, for ever: a test does, and `compat` compares the schemas. A released version is never written again.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from .admission import UUIDS
from .catalog import RELEASED, Schema, shipped
from .codec import Codec
from .errors import ConfigError
from .generate import snake
from .ids import derive_id
from .records import RECORD_TYPES, Record
from .records.events import StepSpec

_VERSION = re.compile(r"\d+\.\d+\.\d+")
#: Two, three and four bytes of UTF-8, within the narrowest column (20 characters).
_TEXT = "é 漢 😀"
#: Years away from any limit, and more than 32 bits.
_LONG = 1_764_000_000_000_000
_INT = 65_536


def versions(folder: Path = RELEASED) -> list[str]:
    """Released versions, oldest first."""
    found = [path.name for path in folder.iterdir() if _VERSION.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_order)


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def sample(schema: Schema, *, bare: bool) -> Record:
    """A record with the same values whenever it is made."""
    fields = json.loads(schema.text)["fields"]
    values = {f["name"]: _value(schema.name, f, f["type"], bare=bare) for f in fields}
    return RECORD_TYPES[schema.name](**values)


def _value(record: str, field: dict[str, Any], avro: Any, *, bare: bool) -> Any:
    name = field["name"]
    if bare and "default" in field:
        return () if field["default"] == [] else field["default"]
    if isinstance(avro, list):
        return _value(record, field, avro[-1], bare=bare)
    if avro == {"type": "array", "items": "string"} and name.endswith("_ids"):
        return () if bare else (derive_id(record, name, 0), derive_id(record, name, 1))
    if isinstance(avro, dict) and avro["type"] == "array":
        return tuple(_value(record, {"name": name}, avro["items"], bare=b) for b in (() if bare else (False, True)))
    if isinstance(avro, dict):
        return StepSpec(**{f["name"]: _value(record, f, f["type"], bare=bare) for f in avro["fields"]})
    if name in UUIDS or name == "workflow_id":
        return derive_id(record, name)
    made = {
        "string": "" if bare and name != "step_id" else f"{name[:10]} {_TEXT}",
        "bytes": b"" if bare else bytes(range(256)),
        "int": -1 if bare else _INT + len(name),
        "long": 0 if bare else _LONG + len(name),
        "double": len(name) / 8,
        "boolean": not bare and not field.get("default", False),
    }
    return made[avro]


def plain(value: Any) -> Any:
    """A record, or a field's value, as JSON holds it."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def write(version: str, folder: Path = RELEASED) -> Path:
    """Write one release; returns its folder. ConfigError when it is there already, or VERSION is none."""
    if not _VERSION.fullmatch(version):
        raise ConfigError(f"VERSION: {version!r} is not of the form 1.2.3")
    place = folder / version
    if place.exists():
        raise ConfigError(f"{place} exists: a released version never changes", hint="choose the next version")
    newer = [v for v in versions(folder) if _order(v) > _order(version)]
    if newer:
        raise ConfigError(f"VERSION: {version} is older than {newer[-1]}, which is released")
    files = _files()  # all of them before the first is written: a release is whole or not there
    for folder_name in ("avsc", "bin"):
        (place / folder_name).mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def _files() -> dict[str, bytes]:
    codec = Codec()
    files: dict[str, bytes] = {}
    for schema in shipped().values():
        stem = snake(schema.name)
        records = {"full": sample(schema, bare=False), "bare": sample(schema, bare=True)}
        document = {"record": schema.name, **{kind: plain(record) for kind, record in records.items()}}
        files[f"avsc/{stem}.avsc"] = schema.text.encode()
        files[f"bin/{stem}.json"] = (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
        files.update({f"bin/{stem}.{kind}.bin": codec.encode(record) for kind, record in records.items()})
    return files


def main(arguments: list[str]) -> int:
    """Write the release that the one argument names."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m schemas.release VERSION\n")
        return 2
    try:
        place = write(arguments[0])
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{place}: {len(shipped())} records\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
