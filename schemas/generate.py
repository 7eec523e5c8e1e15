"""Writes `records/events.py`, `commands.py` and `coordination.py` from the .avsc files: `python -m schemas.generate`.

A test fails when the files on disk differ from what this writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_IMPORTS = {
    "events": "from .base import Part, Record",
    "commands": "from .base import Command",
    "coordination": "from .base import Record",
}
_TYPES = {
    "string": "str",
    "long": "int",
    "int": "int",
    "boolean": "bool",
    "double": "float",
    "bytes": "bytes",
}


def snake(name: str) -> str:
    """File name stem of a record: `StepStarted` is in `step_started.avsc`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _python_type(avro: Any) -> str:
    if isinstance(avro, list):
        return f"{_python_type(next(t for t in avro if t != 'null'))} | None"
    if isinstance(avro, dict) and avro["type"] == "array":
        return f"tuple[{_python_type(avro['items'])}, ...]"
    if isinstance(avro, dict):
        return str(avro["name"])
    return _TYPES[avro]


def _default(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)  # double quotes, as the formatter has them
    return "()" if value == [] else repr(value)


def _class(schema: dict[str, Any], base: str) -> list[str]:
    lines = ["@dataclass(frozen=True, slots=True, kw_only=True)", f"class {schema['name']}({base}):"]
    lines += [f'    """{schema["doc"]}"""', ""]
    for field in schema["fields"]:
        default = f" = {_default(field['default'])}" if "default" in field else ""
        lines.append(f"    {field['name']}: {_python_type(field['type'])}{default}")
    return [*lines, "", ""]


def _nested(schema: dict[str, Any]) -> list[dict[str, Any]]:
    types = [f["type"] for f in schema["fields"] if isinstance(f["type"], dict)]
    return [t["items"] for t in types if isinstance(t.get("items"), dict)]


def render(folder: str) -> str:
    """Python source of every record in `avsc/<folder>`, sorted by name."""
    schemas = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((_HERE / "avsc" / folder).glob("*.avsc"))
    ]
    lines = [
        f'"""Records of `avsc/{folder}`. Written by `python -m schemas.generate`; do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "from dataclasses import dataclass",
        "",
        _IMPORTS[folder],
        "",
        "",
    ]
    for schema in schemas:
        for part in _nested(schema):
            lines += _class(part, "Part")
        lines += _class(schema, "Command" if folder == "commands" else "Record")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Rewrite the generated modules."""
    for folder in ("events", "commands", "coordination"):
        (_HERE / "records" / f"{folder}.py").write_text(render(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
