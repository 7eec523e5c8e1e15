"""JSON Schema of a state (draft 2020-12): what a service says its `data` looks like, checked by it and by the engine.

A schema comes out of the log, so it may be anybody's: it loads nothing from anywhere (a `$ref` points into the schema
itself), its patterns match in linear time, and its size, its depth and how far its references expand are bounded.
Messages never show a value of the state: a rejection is told in clear.
"""

from __future__ import annotations

import json
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
#: Subschemas that one value may be asked for, with references followed: a union of a hundred models has some 200. So
#: a state of 1 MB is checked in some seconds at worst, and 40 definitions, each of the next one twice, are refused.
BREADTH_MAX = 256
#: A schema that reaches this further down than so many levels recurs in several of its branches: it may be asked for
#: values that are not nested so deep. One that reaches it before is refused.
_LEVELS_MIN = 6
#: Places of a value, each with the subschemas that it is asked for, looked at in a survey.
_PLACES_MAX = 2_000
#: Compiled schemas kept: a process has a few workflow types, the engine those of all services.
CACHED_SCHEMAS_MAX = 256
#: Bytes of a compiled pattern, and of what matching may remember.
_PATTERN_BYTES_MAX = 1024 * 1024
_MESSAGE_CHARS_MAX = 500
_PATH_CHARS_MAX = 200
_MASK = "the value"

#: Keywords by what their schemas are asked for: the value itself, its items, its properties; alone, in lists, in maps.
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "contentSchema")
_OF_ITEMS = ("items", "prefixItems", "contains", "unevaluatedItems")
_OF_PROPERTIES = ("additionalProperties", "unevaluatedProperties", "propertyNames", "patternProperties")
_MAPS = ("dependentSchemas", "patternProperties", "properties", "$defs", "definitions")
_DEFINITIONS = ("$defs", "definitions")
#: Other ways to point somewhere. What such a reference means depends on more than the schema's text.
_REFUSED = ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$anchor", "$vocabulary")


class StateSchema:
    """A compiled schema. Thread-safe."""

    def __init__(self, text: str, validator: Draft202012Validator, levels_max: int | None) -> None:
        #: What it was compiled from.
        self.text = text
        self._validator = validator
        self._levels_max = levels_max

    def validate(self, value: object, *, path: str = "$.data") -> None:
        """StateError "schema" with the path of the first value that breaks it. `path` is where `value` stands."""
        if self._levels_max is not None and not _within(value, self._levels_max):
            what = f"nested deeper than {self._levels_max}, and the schema recurs in several of its branches"
            raise StateError("schema", f"{path}: {what}", path=path)
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
        levels_max = _Survey(schema).levels_max()
        options = jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES_MAX, dfa_size_limit=_PATTERN_BYTES_MAX)
        validator = jsonschema_rs.Draft202012Validator(
            schema, offline=True, pattern_options=options, validate_formats=False, mask=_MASK
        )
    except (ValueError, TypeError, RecursionError, jsonschema_rs.ReferencingError) as error:
        message = getattr(error, "message", None) or str(error)
        return f"the schema cannot be used: {message}"[:_MESSAGE_CHARS_MAX]
    return StateSchema(text, validator, levels_max)


#: Subschemas by the step down the value that leads to them: "" for none, "[]" and "{}" for any item and property.
_Parts = list[tuple[str, Any]]


class _Survey:
    """Looks a schema through before it is compiled. ValueError for what is refused."""

    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, dict):
            raise ValueError("a schema is a JSON object")
        if str(schema.get("$schema", DRAFT)).rstrip("#") != DRAFT:
            raise ValueError(f"$schema: only {DRAFT} is known")
        self._root = schema
        self._check(schema, 0)

    def levels_max(self) -> int | None:
        """How deep a value may be nested; None without such a limit."""
        places: dict[tuple[int, ...], list[Any]] = {(id(self._root),): [self._root]}
        seen: set[tuple[int, ...]] = set()
        level = 0
        while places:
            below: dict[tuple[int, ...], list[Any]] = {}
            for asked in places.values():
                parts = self._parts_of(asked)
                if parts is None:
                    if level < _LEVELS_MIN:
                        raise ValueError(f"one value is asked for more than {BREADTH_MAX} of its schemas")
                    return level
                for group in _groups(parts):
                    below.setdefault(tuple(sorted(map(id, group))), group)
            seen |= places.keys()
            if len(seen) > _PLACES_MAX:
                raise ValueError(f"it tells more than {_PLACES_MAX} kinds of values apart")
            places = {place: asked for place, asked in below.items() if place not in seen}
            level += 1
        return None

    def _parts_of(self, asked: list[Any]) -> _Parts | None:
        """What the parts of a value are asked for that is asked for these; None when it is asked for too many."""
        parts: _Parts = []
        waiting: list[tuple[Any, frozenset[str]]] = [(schema, frozenset()) for schema in asked]
        count = 0
        while waiting:
            schema, through = waiting.pop()
            count += 1
            if count > BREADTH_MAX:
                return None
            if not isinstance(schema, dict):
                continue
            pointer = schema.get("$ref")
            if pointer is not None and pointer not in through:
                waiting.append((self._resolve(pointer), through | {pointer}))
            for step, part in _subschemas(schema):
                if step:
                    parts.append((step, part))
                else:
                    waiting.append((part, through))
        return parts

    def _check(self, schema: Any, depth: int) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise ValueError(f"{type(schema).__name__} stands where a schema should")
        if depth > SCHEMA_DEPTH_MAX:
            raise ValueError(f"nested deeper than {SCHEMA_DEPTH_MAX}")
        for keyword in _REFUSED:
            if keyword in schema:
                raise ValueError(f"{keyword} is not supported; use $ref with a path into the schema")
        if "$id" in schema and schema is not self._root:
            raise ValueError("$id within the schema is not supported")
        if "$ref" in schema:
            self._resolve(schema["$ref"])
        for keyword in _DEFINITIONS:
            for _, part in _held(schema, keyword, ""):
                self._check(part, depth + 1)
        for _, part in _subschemas(schema):
            self._check(part, depth + 1)

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


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keywords, step in ((_IN_PLACE, ""), (_OF_ITEMS, "[]"), (_OF_PROPERTIES, "{}")):
        for keyword in keywords:
            yield from _held(schema, keyword, step)
    yield from _held(schema, "properties", ".")


def _held(schema: dict[str, Any], keyword: str, step: str) -> Iterator[tuple[str, Any]]:
    held = schema.get(keyword)
    if held is None:
        return
    if keyword not in _MAPS:
        yield from ((step, part) for part in (held if isinstance(held, list) else (held,)))
    elif isinstance(held, dict):
        yield from ((f".{name}" if step == "." else step, part) for name, part in held.items())
    else:
        raise ValueError(f"{keyword}: {type(held).__name__} stands where a map of schemas should")


def _groups(parts: _Parts) -> Iterator[list[Any]]:
    """What is asked for together: an item, a property by its name, one of any other name."""
    by_step: dict[str, list[Any]] = {}
    for step, part in parts:
        by_step.setdefault(step, []).append(part)
    items, others = by_step.pop("[]", []), by_step.pop("{}", [])
    for group in (items, others, *(named + others for named in by_step.values())):
        if group:
            yield group


def _within(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels > 0 and all(_within(part, levels - 1) for part in value.values())
    if isinstance(value, list | tuple):
        return levels > 0 and all(_within(part, levels - 1) for part in value)
    return True
