"""Shapes that no decoder survives are refused; so are records that break the house rules."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalog import shipped
from schemas.lint import rule_problems, unsafe_reason

from .kit import NAMES, changed, field_of


def record(name: str, /, *types: Any, **more: Any) -> dict[str, Any]:
    fields = [{"name": f"f{i}", "type": type_} for i, type_ in enumerate(types)]
    return {"type": "record", "name": name, **more, "fields": fields}


def chain(length: int, within: Callable[[str], Any] = str) -> dict[str, Any]:
    """R1 holds R0, R2 holds R1 and so on, side by side: deep, though the text is flat."""
    return record("Top", record("R0", "int"), *(record(f"R{i}", within(f"R{i - 1}")) for i in range(1, length)))


def doubling(length: int) -> dict[str, Any]:
    """Every record holds the one before twice, and the first holds nothing."""
    first = record("R0", "null")
    return record("Top", first, *(record(f"R{i}", f"R{i - 1}", f"R{i - 1}") for i in range(1, length)))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (record("Node", ["null", "Node"]), "recursive: Node contains itself"),
        (record("Node", ["null", "a.Node"], namespace="a"), "recursive: a.Node contains itself"),
        (record("a.Node", ["null", "Node"]), "recursive: a.Node contains itself"),
        (record("Top", record("Node", ["null", "a.Node"]), namespace="a"), "recursive: a.Node contains itself"),
        (record("Node", {"type": "array", "items": "Node"}), "recursive: Node contains itself"),
        (record("Node", {"type": "map", "values": "Node"}), "recursive: Node contains itself"),
        (record("A", record("B", ["null", "A"])), "recursive: A contains itself"),
        (record("A", {"type": "array", "items": "null"}), "array of items that take no bytes"),
        (record("A", {"type": "array", "items": {"type": "null"}}), "array of items that take no bytes"),
        (record("A", {"type": "array", "items": record("E")}), "array of items that take no bytes"),
        (
            record("A", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}),
            "array of items that take no bytes",
        ),
        (
            record("A", ["null", record("E")], {"type": "array", "items": "E"}),
            "array of items that take no bytes",
        ),
        (record("A", "null"), "field 'f0' takes no bytes"),
        (record("A", record("E")), "field 'f0' takes no bytes"),
        (record("A", {"type": "fixed", "name": "F", "size": -1}), "field 'f0' takes no bytes"),
        (doubling(64), "field 'f0' takes no bytes"),
        (chain(64), "nested deeper than 16"),
        (chain(9, lambda name: {"type": "array", "items": name}), "nested deeper than 16"),
        (chain(9, lambda name: {"type": "map", "values": name}), "nested deeper than 16"),
        (chain(9, lambda name: ["null", name]), "nested deeper than 16"),
        ({"type": "array", "items": json.loads('{"type":"array","items":' * 40 + '"int"' + "}" * 40)}, "nested deeper"),
        (json.loads("[" * 40 + '"int"' + "]" * 40), "nested deeper than 16"),
        (record("A", "B", record("B", "int")), "refers to B, which is not defined before"),
        (record("A", "B", namespace="a"), "refers to a.B, which is not defined before"),
        (record("A", 7), "not a schema: 7"),
        (None, "not a schema: None"),
    ],
)
def test_unsafe_schema_is_refused(schema: Any, reason: str) -> None:
    found = unsafe_reason(schema)
    assert found is not None
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "schema",
    [
        *(json.loads(schema.text) for schema in shipped().values()),
        record("A", ["null", "string"]),
        record("A", ["null", record("E")]),
        record("A", record("B", "int"), "B", ["null", "B"], {"type": "array", "items": "B"}),
        record("A", record("b.B", "int"), "b.B", namespace="a"),
        record("A", {"type": "enum", "name": "E", "symbols": ["X"]}, "E"),
        record("A", {"type": "array", "items": ["null"]}),
        record("A", {"type": "fixed", "name": "F", "size": 16}),
        record("A", {"type": "string", "logicalType": "uuid"}),
        chain(14),
        chain(7, lambda name: {"type": "array", "items": name}),
    ],
)
def test_safe_schema_passes(schema: Any) -> None:
    assert unsafe_reason(schema) is None


def schemas() -> st.SearchStrategy[Any]:
    names = ["A", "B", "C", "n.A"]
    leaf = st.sampled_from(["null", "int", "string", "bytes", "boolean", *names])

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        fixed = st.builds(
            lambda n, s: {"type": "fixed", "name": n, "size": s}, st.sampled_from(names), st.integers(0, 3)
        )
        return (
            fixed
            | st.lists(inner, min_size=1, max_size=3)
            | inner.map(lambda items: {"type": "array", "items": items})
            | inner.map(lambda values: {"type": "map", "values": values})
            | st.builds(lambda n, fields: record(n, *fields), st.sampled_from(names), st.lists(inner, max_size=3))
            | st.builds(
                lambda n, fields: record(n, *fields, namespace="n"), st.sampled_from(names), st.lists(inner, max_size=3)
            )
        )

    return st.recursive(leaf, deeper, max_leaves=12)


@settings(max_examples=400, deadline=None)
@given(st.lists(schemas(), max_size=4), st.binary(max_size=20), st.sampled_from([b"\x00", b"\x02", b"\x7f", b"\xff"]))
def test_what_passes_ends_on_any_bytes(types: list[Any], start: bytes, filler: bytes) -> None:
    """Were one schema let through that recurses or spins, this process would not see the end of the test."""
    schema = record("Top", *types)
    if unsafe_reason(schema) is not None:
        return
    try:
        parsed = fastavro.parse_schema(schema, named_schemas={})
    except Exception:
        return  # a name defined twice, a union with two of a kind: the codec calls it a bad schema
    source = io.BytesIO(start + filler * 5000)
    try:
        fastavro.schemaless_reader(source, parsed, None)
    except (EOFError, ValueError, IndexError, OverflowError):
        assert source.tell() > 0


# House rules.


def breaking(name: str) -> tuple[Callable[[dict[str, Any]], None], str]:
    """A change to StepStarted, and what lint says of it."""

    def swap(schema: dict[str, Any]) -> None:
        schema["fields"][0], schema["fields"][1] = schema["fields"][1], schema["fields"][0]

    def set_(field: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda schema: field_of(schema, field).update({key: value})

    nullable = "a union must be ['null', T] with default null"
    return {
        "order": (swap, "must begin with the common fields"),
        "missing": (lambda s: s["fields"].remove(field_of(s, "producer")), "must begin with the common fields"),
        "namespace": (lambda s: s.update(namespace="other"), "namespace must be 'kintsugi'"),
        "doc": (lambda s: field_of(s, "step_id").pop("doc"), "field step_id has no doc"),
        "case": (set_("step_id", "name", "stepId"), "field stepId is not snake_case"),
        "union order": (set_("timeout_ms", "type", ["long", "null"]), f"field timeout_ms: {nullable}"),
        "union default": (set_("timeout_ms", "default", 5), f"field timeout_ms: {nullable}"),
        "union without default": (lambda s: field_of(s, "timeout_ms").pop("default"), f"field timeout_ms: {nullable}"),
        "unsafe": (set_("step_id", "type", {"type": "array", "items": "null"}), "array of items that take no bytes"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["order", "missing", "namespace", "doc", "case", "union order", "union default", "union without default", "unsafe"],
)
def test_broken_house_rule_is_named(name: str) -> None:
    change, problem = breaking(name)
    found = rule_problems(changed("StepStarted", change))
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_schema_keeps_the_house_rules(name: str) -> None:
    assert rule_problems(json.loads(shipped()[name].text)) == []
