"""JSON Schemas of states: where they say a state breaks them, and what a schema out of the log cannot do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from schemas.admission import STATE_SCHEMA_CHARS_MAX
from schemas.errors import ConfigError, StateError
from schemas.state_schema import BREADTH_MAX, SCHEMA_DEPTH_MAX, _compiled, compiled, schema_text

ORDER = {
    "type": "object",
    "required": ["items"],
    "properties": {
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"price": {"type": "number", "minimum": 0}}},
        }
    },
}
#: As pydantic writes a model that holds itself.
TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "left": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "right": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
        }
    },
    "$ref": "#/$defs/Node",
}
#: Any JSON: it recurs in two branches, of which no value takes both.
ANY = {
    "$defs": {
        "any": {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#/$defs/any"}},
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/any"}},
                {"type": ["string", "number", "boolean", "null"]},
            ]
        }
    },
    "$ref": "#/$defs/any",
}

#: Each part of a state is asked for twice as many schemas as what it is part of.
BRANCHING = {
    "$defs": {
        "a": {"properties": {"in": {"$ref": "#/$defs/either"}}},
        "b": {"properties": {"in": {"$ref": "#/$defs/either"}, "kind": {"const": "b"}}},
        "either": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]},
    },
    "$ref": "#/$defs/either",
}


def refusal(schema: dict[str, Any], value: object) -> StateError:
    """What `value` is told."""
    with pytest.raises(StateError) as refused:
        compiled(schema_text(schema)).validate(value)
    return refused.value


def doubling(levels: int) -> dict[str, Any]:
    """Definitions of which each uses the next one twice."""
    definitions = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**definitions, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        value = {"properties": {"in": value}}
    return value


def test_a_state_that_obeys_passes() -> None:
    compiled(schema_text(ORDER)).validate({"items": [{"price": 1.5}, {}]})


def test_a_state_that_breaks_it_is_told_where() -> None:
    error = refusal(ORDER, {"items": [{}, {}, {"price": 1}, {"price": -1}]})
    assert (error.reason, error.path) == ("schema", "$.data.items[3].price")
    assert str(error) == "$.data.items[3].price: the value is less than the minimum of 0"
    assert refusal(ORDER, {}).path == "$.data"


def test_no_message_shows_a_value() -> None:
    secret = "do not tell"
    schema = {"properties": {"a": {"enum": ["x"], "maxLength": 3, "pattern": "^y$"}}}
    for keyword in ("enum", "maxLength", "pattern"):
        one = {"properties": {"a": {keyword: schema["properties"]["a"][keyword]}}}
        assert secret not in str(refusal(one, {"a": secret}))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "bogus"}, "not valid under any"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "2020-12"),
        ({"pattern": "(?=look)ahead"}, "regex"),
        ({"pattern": "(a{1000}){1000}"}, "regex"),
        ({"$ref": "#/$defs/none"}, "points nowhere"),
        ({"$ref": "https://example.org/schema.json"}, "nothing is loaded"),
        ({"$ref": "file:///etc/hostname"}, "nothing is loaded"),
        ({"properties": {"a": {"$id": "https://example.org/", "$ref": "x"}}}, "is not supported"),
        ({"$dynamicRef": "#x"}, "is not supported"),
        ({"not": "a"}, "stands where a schema should"),
        (doubling(40), f"more than {BREADTH_MAX}"),
        ({"items": {"allOf": [{"minimum": 0}] * 1_000}}, f"more than {BREADTH_MAX}"),
        ({"patternProperties": {f"^a{n}": {} for n in range(300)}}, f"more than {BREADTH_MAX}"),
        ({"allOf": [{"properties": {"a": {"minimum": n}}} for n in range(300)]}, f"more than {BREADTH_MAX}"),
        (nested(SCHEMA_DEPTH_MAX + 1), "nested deeper"),
        ({"description": "x" * STATE_SCHEMA_CHARS_MAX}, "characters"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(StateError, match=says) as refused:
        compiled(json.dumps(schema))
    assert refused.value.reason == "bad_schema"


@pytest.mark.parametrize("text", ["", "[]", "true", "{", "[" * 50_000, '{"type": NaN}'])
def test_a_text_that_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(StateError) as refused:
        compiled(text)
    assert refused.value.reason == "bad_schema"


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    there = tmp_path / "schema.json"
    there.write_text("true")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        for uri in (there.as_uri(), f"http://127.0.0.1:{port}/schema.json"):
            for schema in ({"$ref": uri}, {"$schema": uri}, {"$id": uri, "$ref": "schema.json"}):
                with pytest.raises(StateError):
                    compiled(json.dumps(schema))
        with pytest.raises(TimeoutError):
            server.accept()


def test_patterns_match_in_linear_time() -> None:
    schema = compiled(schema_text({"properties": {"a": {"pattern": "^(a+)+$"}}}))
    with pytest.raises(StateError):
        schema.validate({"a": "a" * 100_000 + "b"})


def test_a_schema_may_recur() -> None:
    deep: dict[str, Any] = {"left": None}
    for _ in range(60):
        deep = {"left": deep, "right": None}
    compiled(schema_text(TREE)).validate(deep)
    assert refusal(TREE, {"left": {"right": {"left": 5}}}).path == "$.data.left"


def test_any_json_may_be_asked_for() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = [{"a": deep}]
    compiled(schema_text(ANY)).validate(deep)


def test_a_schema_that_recurs_in_branches_is_asked_for_few_levels_only() -> None:
    schema = compiled(schema_text(BRANCHING))
    schema.validate({"in": {"in": {"in": {}}}})
    deep: Any = {}
    for _ in range(30):
        deep = {"in": deep}
    assert "recurs in several" in str(refusal(BRANCHING, deep))


def test_a_union_of_many_models_may_be_asked_for() -> None:
    models = {
        f"M{n}": {"properties": {"kind": {"const": n}, "name": {"type": "string"}}, "required": ["kind"]}
        for n in range(100)
    }
    union = {"$defs": models, "anyOf": [{"$ref": f"#/$defs/{name}"} for name in models]}
    compiled(schema_text(union)).validate({"kind": 99, "name": "x"})
    assert refusal(union, {"kind": 100}).path == "$.data"


def test_a_schema_is_compiled_once_also_when_it_cannot_be_used() -> None:
    text = schema_text({"title": "seen once"})
    assert compiled(text) is compiled(text)
    before = _compiled.cache_info().misses
    for _ in range(3):
        with pytest.raises(StateError):
            compiled('{"type": "bogus once"}')
    assert _compiled.cache_info().misses == before + 1


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jsonschema_rs", None)
    with pytest.raises(ConfigError) as refused:
        compiled('{"title": "not compiled before"}')
    assert refused.value.hint == "pip install 'kintsugi-client[schema]'"
