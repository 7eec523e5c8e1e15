"""Refuses schemas that a decoder cannot survive, and records that break the house rules.

fastavro 1.13.1 ends the process on a deep recursive value and spins on an array of zero-width items (FAULTS.md row 17),
so such schemas are refused before a single byte is read with them: ours at build time, foreign ones when they arrive.
"""

from __future__ import annotations

from typing import Any

#: Deeper nesting than this has no use here and only costs stack.
_DEPTH_MAX = 16
_COMMON = (
    "event_id",
    "workflow_id",
    "workflow_type",
    "external_id",
    "correlation_id",
    "causation_id",
    "occurred_at",
    "producer",
)


def unsafe_reason(schema: Any) -> str | None:
    """Why decoding with this parsed-JSON schema is unsafe; None when it is safe."""
    return _walk(schema, {}, (), 0)


def rule_problems(schema: dict[str, Any]) -> list[str]:
    """House rules that this record's schema breaks: common fields first and in order, docs, snake_case, defaults."""
    problems: list[str] = []
    reason = unsafe_reason(schema)
    if reason:
        problems.append(reason)
    fields = schema.get("fields", [])
    if tuple(f["name"] for f in fields[: len(_COMMON)]) != _COMMON:
        problems.append(f"must begin with the common fields {', '.join(_COMMON)}")
    if schema.get("namespace") != "kintsugi":
        problems.append("namespace must be 'kintsugi'")
    for f in fields:
        if not f.get("doc") and f["name"] != "steps":
            problems.append(f"field {f['name']} has no doc")
        if f["name"] != f["name"].lower():
            problems.append(f"field {f['name']} is not snake_case")
        if isinstance(f["type"], list) and (f["type"][0] != "null" or f.get("default", 0) is not None):
            problems.append(f"field {f['name']}: a union must be ['null', T] with default null")
    return problems


def _walk(schema: Any, named: dict[str, Any], open_names: tuple[str, ...], depth: int) -> str | None:
    if depth > _DEPTH_MAX:
        return f"nested deeper than {_DEPTH_MAX}"
    if isinstance(schema, str):
        if schema in open_names:
            return f"recursive: {schema} contains itself"
        return None
    if isinstance(schema, list):
        return next((r for r in (_walk(s, named, open_names, depth + 1) for s in schema) if r), None)
    if not isinstance(schema, dict):
        return f"not a schema: {schema!r:.80}"
    kind = schema.get("type")
    if kind in ("record", "error"):
        full = _full_name(schema)
        named[full] = named[schema["name"]] = schema
        inner = (*open_names, full, schema["name"])
        fields = schema.get("fields", [])
        return next((r for r in (_walk(f["type"], named, inner, depth + 1) for f in fields) if r), None)
    if kind in ("array", "map"):
        item = schema.get("items" if kind == "array" else "values")
        if kind == "array" and _zero_width(item, named, 0):
            return "array of items that take no bytes"
        return _walk(item, named, open_names, depth + 1)
    if kind in ("enum", "fixed"):
        named[_full_name(schema)] = named[schema["name"]] = schema
        return None
    return _walk(kind, named, open_names, depth + 1)


def _full_name(schema: dict[str, Any]) -> str:
    namespace = schema.get("namespace")
    name = str(schema["name"])
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _zero_width(schema: Any, named: dict[str, Any], depth: int) -> bool:
    """Whether a value of this schema can be written in no bytes."""
    if depth > _DEPTH_MAX:
        return False
    if isinstance(schema, str):
        return schema == "null" or (schema in named and _zero_width(named[schema], named, depth + 1))
    if isinstance(schema, list):
        return False  # a union always writes its branch
    kind = schema.get("type")
    if kind in ("record", "error"):
        return all(_zero_width(f["type"], named, depth + 1) for f in schema.get("fields", []))
    if kind == "fixed":
        return int(schema.get("size", 0)) == 0
    if kind in ("array", "map", "enum"):
        return False
    return _zero_width(kind, named, depth + 1)
