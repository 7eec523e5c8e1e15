"""Refuses schemas that a decoder cannot survive, and records that break the house rules.

fastavro 1.13.1 ends the process on a deep recursive value and spins on an array of zero-width items (FAULTS.md row 17),
so such schemas are refused before a single byte is read with them: ours at build time, foreign ones when they arrive.
"""

from __future__ import annotations

from typing import Any

#: Deeper nesting than this, references followed, has no use here and only costs stack.
_DEPTH_MAX = 16
#: Depth, and whether a value takes no bytes.
_Shape = tuple[int, bool]
_Named = dict[str, _Shape | None]
_PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))
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


class _UnsafeError(Exception):
    """The reason."""


def unsafe_reason(schema: Any) -> str | None:
    """Why decoding with this parsed-JSON schema is unsafe; None when it is safe.

    In what is safe every value takes a byte and nesting has an end, so work and memory grow with the bytes read alone.
    """
    try:
        _shape(schema, "", {}, 1)
    except _UnsafeError as error:
        return str(error)
    return None


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
        if not f.get("doc"):
            problems.append(f"field {f['name']} has no doc")
        if f["name"] != f["name"].lower():
            problems.append(f"field {f['name']} is not snake_case")
        if isinstance(f["type"], list) and (f["type"][0] != "null" or f.get("default", 0) is not None):
            problems.append(f"field {f['name']}: a union must be ['null', T] with default null")
    return problems


def _shape(schema: Any, namespace: str, named: _Named, level: int) -> _Shape:
    """(depth, whether a value takes no bytes). `named` holds the shapes of named types; None while one is open."""
    _within(level)
    if isinstance(schema, str):
        return _referred(schema, namespace, named)
    if isinstance(schema, list):  # a union always writes its branch
        return _within(1 + max((_shape(s, namespace, named, level + 1)[0] for s in schema), default=0)), False
    if not isinstance(schema, dict):
        raise _UnsafeError(f"not a schema: {schema!r:.80}")
    kind = schema.get("type")
    if kind in ("record", "error"):
        return _record(schema, namespace, named, level)
    if kind == "array":
        depth, empty = _shape(schema.get("items"), namespace, named, level + 1)
        if empty:
            raise _UnsafeError("array of items that take no bytes")
        return _within(1 + depth), False
    if kind == "map":
        return _within(1 + _shape(schema.get("values"), namespace, named, level + 1)[0]), False
    if kind in ("enum", "fixed"):
        found = named[_full_name(schema, namespace)] = (1, kind == "fixed" and int(schema["size"]) < 1)
        return found
    return _shape(kind, namespace, named, level + 1)


def _referred(name: str, namespace: str, named: _Named) -> _Shape:
    if name in _PRIMITIVES:
        return 1, name == "null"
    full = name if "." in name or not namespace else f"{namespace}.{name}"
    if full not in named:
        raise _UnsafeError(f"refers to {full:.80}, which is not defined before")
    found = named[full]
    if found is None:
        raise _UnsafeError(f"recursive: {full} contains itself")
    return found


def _record(schema: dict[str, Any], namespace: str, named: _Named, level: int) -> _Shape:
    full = _full_name(schema, namespace)
    named[full] = None
    inner, depths = full.rpartition(".")[0], [0]
    for field in schema.get("fields", []):
        depth, empty = _shape(field["type"], inner, named, level + 1)
        if empty:
            # Records of such fields, doubled a few times, keep a decoder busy for ever on no bytes at all.
            raise _UnsafeError(f"field {field['name']!r:.80} takes no bytes")
        depths.append(depth)
    found = named[full] = (_within(1 + max(depths)), len(depths) == 1)
    return found


def _within(depth: int) -> int:
    if depth > _DEPTH_MAX:
        raise _UnsafeError(f"nested deeper than {_DEPTH_MAX}")
    return depth


def _full_name(schema: dict[str, Any], namespace: str) -> str:
    name = str(schema["name"])
    own = schema.get("namespace", namespace)
    return name if "." in name or not own else f"{own}.{name}"
