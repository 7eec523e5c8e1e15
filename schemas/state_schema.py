"""JSON Schema of a state (draft 2020-12): what a service says its `data` looks like, checked by it and by the engine.

A schema comes out of the log, so it may be anybody's: it loads nothing from anywhere (a `$ref` points into the schema
itself), its patterns match in linear time, and its size, its depth and how far its references expand are bounded.
Messages never show a value of the state: a rejection is told in clear.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .admission import STATE_SCHEMA_CHARS_MAX
from .canonical import canonical_bytes
from .errors import ConfigError, StateError

if TYPE_CHECKING:  # an extra of the client: imported when the first schema is compiled
    from jsonschema_rs import Draft202012Validator

DRAFT = "https://json-schema.org/draft/2020-12/schema"
#: Of a schema. As deep as a state may be, and a state's schema has some two levels for each of the state's.
SCHEMA_DEPTH_MAX = 128
#: Subschemas that are looked at when references are followed: 40 definitions, each of the next one twice, are 2^40.
EXPANDED_MAX = 20_000
#: Ways through a schema that recurs in several of its branches; each level of the state multiplies them.
_WAYS_MAX = 1_000_000
#: Compiled schemas kept: a process has a few workflow types, the engine those of all services.
CACHED_SCHEMAS_MAX = 256
#: Bytes of a compiled pattern, and of what matching may remember.
_PATTERN_BYTES_MAX = 1024 * 1024
_MESSAGE_CHARS_MAX = 500
_PATH_CHARS_MAX = 200
_MASK = "the value"

#: Keywords by what they hold: one schema or a list of them for the same value; maps of schemas for the same value;
#: schemas for the value's parts.
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
_IN_PLACE_MAPS = ("dependentSchemas",)
_PARTS = (
    "items",
    "prefixItems",
    "contains",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
)
_DEFINITIONS = ("$defs", "definitions")
#: Other ways to point somewhere. What such a reference means depends on more than the schema's text.
_REFUSED = ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$anchor", "$vocabulary")


class StateSchema:
    """A compiled schema. Thread-safe."""

    def __init__(self, validator: Draft202012Validator, ways: int) -> None:
        self._validator = validator
        self._depth_max = _depth_for(ways)

    def validate(self, value: object, *, path: str = "$.data") -> None:
        """StateError "schema" with the path of the first value that breaks it. `path` is where `value` stands."""
        if self._depth_max is not None and not _within(value, self._depth_max):
            raise StateError(
                "schema",
                f"{path}: nested deeper than {self._depth_max}, which is all that a schema may be asked for that recurs"
                " in several of its branches",
                path=path,
            )
        if self._validator.is_valid(value):
            return
        import jsonschema_rs

        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            at = path_of(path, error.instance_path)
            raise StateError("schema", f"{at}: {error.message}"[:_MESSAGE_CHARS_MAX], path=at) from None
        raise StateError("schema", f"{path}: breaks its schema", path=path)


def path_of(root: str, steps: list[str | int]) -> str:
    """`$.data.items[3].price`."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return (root + "".join(parts))[:_PATH_CHARS_MAX]


def schema_text(schema: Mapping[str, Any]) -> str:
    """A schema as it travels in the log. StateError when it is no JSON data, or "bad_schema" as `compiled`."""
    text = canonical_bytes(dict(schema)).decode()
    compiled(text)
    return text


def compiled(text: str) -> StateSchema:
    """The schema of a text, from the cache when it was seen before.

    StateError "bad_schema" when it cannot be used, ConfigError when jsonschema-rs is not installed.
    """
    found = _compiled(text)
    if isinstance(found, str):
        raise StateError("bad_schema", found)
    return found


@lru_cache(maxsize=CACHED_SCHEMAS_MAX)
def _compiled(text: str) -> StateSchema | str:
    """The schema, or why it cannot be used: that is remembered too, or each state would find it out again."""
    try:
        import jsonschema_rs
    except ImportError as error:
        raise ConfigError(
            "schemas of states need the package jsonschema-rs", hint="pip install 'kintsugi-client[schema]'"
        ) from error
    if len(text) > STATE_SCHEMA_CHARS_MAX:
        return f"the schema has {len(text)} characters, {STATE_SCHEMA_CHARS_MAX} allowed"
    try:
        schema = json.loads(text)
        ways = _Survey(schema).ways()
        options = jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES_MAX, dfa_size_limit=_PATTERN_BYTES_MAX)
        validator = jsonschema_rs.Draft202012Validator(
            schema, offline=True, pattern_options=options, validate_formats=False, mask=_MASK
        )
    except (ValueError, TypeError, RecursionError, jsonschema_rs.ReferencingError) as error:
        message = getattr(error, "message", None) or str(error)
        return f"the schema cannot be used: {message}"[:_MESSAGE_CHARS_MAX]
    return StateSchema(validator, ways)


class _Survey:
    """Walks a schema along its references before it is compiled. ValueError for what is refused."""

    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, dict):
            raise ValueError("a schema is a JSON object")
        if schema.get("$schema", DRAFT).rstrip("#") != DRAFT:
            raise ValueError(f"$schema: only {DRAFT} is known")
        self._root = schema
        self._left = EXPANDED_MAX
        self._targets: dict[str, Any] = {}
        #: Of the definition being walked: returns to a definition that is not at its end, by their first step down.
        self._returns: Counter[str] = Counter()

    def ways(self) -> int:
        """How many times one part of a value can be asked for by each level of it: 1 but for branching recursion."""
        self._walk(self._root, (), 0, None)
        for definition in self._definitions(self._root):
            self._walk(definition, (), 0, None)
        worst = 1
        for pointer, target in list(self._targets.items()):
            self._returns.clear()
            self._walk(target, (pointer,), 0, None)
            everywhere = self._returns.pop("*", 0)
            worst = max(worst, everywhere + max(self._returns.values(), default=0))
        return worst

    def _walk(self, schema: Any, under: tuple[str, ...], depth: int, step: str | None) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise ValueError(f"{type(schema).__name__} stands where a schema should")
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its references expand to more than {EXPANDED_MAX} schemas")
        if depth > SCHEMA_DEPTH_MAX:
            raise ValueError(f"nested deeper than {SCHEMA_DEPTH_MAX}")
        for keyword in _REFUSED:
            if keyword in schema:
                raise ValueError(f"{keyword} is not supported; use $ref with a path into the schema")
        if "$id" in schema and schema is not self._root:
            raise ValueError("$id within the schema is not supported")
        if "$ref" in schema:
            self._follow(schema["$ref"], under, depth, step)
        for part, down in _subschemas(schema):
            self._walk(part, under, depth + 1, step if step is not None or down is None else down)

    def _follow(self, pointer: Any, under: tuple[str, ...], depth: int, step: str | None) -> None:
        target = self._resolve(pointer)
        self._targets[pointer] = target
        if pointer in under:
            self._returns["*" if step is None else step] += 1
        else:
            self._walk(target, (*under, pointer), depth + 1, step)

    def _resolve(self, pointer: Any) -> Any:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise ValueError(f"$ref {pointer!r:.200} does not point into the schema, and nothing is loaded")
        found: Any = self._root
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ValueError(f"$ref {pointer!r:.200} points nowhere") from None
        return found

    @staticmethod
    def _definitions(schema: dict[str, Any]) -> Iterator[Any]:
        for keyword in _DEFINITIONS:
            held = schema.get(keyword)
            if isinstance(held, dict):
                yield from held.values()


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[Any, str | None]]:
    """Schemas right below, with the step they take down the value: None for none, "*" for any part of it."""
    for keyword in _IN_PLACE:
        held = schema.get(keyword)
        for part in held if isinstance(held, list) else () if held is None else (held,):
            yield part, None
    for keyword in _IN_PLACE_MAPS:
        for part in _values(schema.get(keyword)):
            yield part, None
    for keyword in _PARTS:
        held = schema.get(keyword)
        for part in held if isinstance(held, list) else () if held is None else (held,):
            yield part, "*"
    for part in _values(schema.get("patternProperties")):
        yield part, "*"
    held = schema.get("properties")
    if isinstance(held, dict):
        for name, part in held.items():
            yield part, f".{name}"


def _values(held: Any) -> list[Any]:
    return list(held.values()) if isinstance(held, dict) else []


def _depth_for(ways: int) -> int | None:
    """Levels of a value after which `_WAYS_MAX` are reached; None when they never are."""
    if ways <= 1:
        return None
    depth, total = 0, 1
    while total * ways <= _WAYS_MAX:
        depth, total = depth + 1, total * ways
    return depth


def _within(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels > 0 and all(_within(part, levels - 1) for part in value.values())
    if isinstance(value, list | tuple):
        return levels > 0 and all(_within(part, levels - 1) for part in value)
    return True
