"""The language that selects errors: it means what it says, points at what is wrong, and lets nothing into SQL."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.recover_filter import (
    COMPARISONS_MAX,
    FIELDS,
    NESTED_MAX,
    Both,
    Compare,
    Either,
    FilterError,
    Node,
    Not,
    compiled,
    parse,
    render,
)

_VALUES: dict[str, st.SearchStrategy[str]] = {
    "attempts": st.integers(0, 999_999_999).map(str),
    "age": st.tuples(st.integers(0, 999_999_999), st.sampled_from("smhdw")).map(lambda v: f"{v[0]}{v[1]}"),
    "waiting": st.sampled_from(["true", "false", "YES", "no"]),
    "workflow": st.uuids().map(str),
    "status": st.sampled_from(["open", "recovering", "waiting_for_human"]),
}
_TEXTS = st.text(st.characters(exclude_characters='\x00"', exclude_categories=["Cs"]), max_size=20)


@st.composite
def comparisons(draw: Any) -> Compare:
    name = draw(st.sampled_from(list(FIELDS)))
    return Compare(name, draw(st.sampled_from(FIELDS[name].operators)), draw(_VALUES.get(name, _TEXTS)))


NODES: st.SearchStrategy[Node] = st.recursive(
    comparisons(),
    lambda inner: st.one_of(inner.map(Not), st.builds(Both, inner, inner), st.builds(Either, inner, inner)),
    max_leaves=8,
)


def statement(node: Node) -> tuple[str, dict[str, Any]]:
    condition, values = compiled(node)
    return condition.as_string(None), values


def test_a_filter_means_what_it_says() -> None:
    assert parse("type=timeout and age<1h or not step~'deploy *' and attempts>=2") == Either(
        Both(Compare("type", "=", "timeout"), Compare("age", "<", "1h")),
        Both(Not(Compare("step", "~", "deploy *")), Compare("attempts", ">=", "2")),
    )
    assert parse("TYPE=x AND (code=A OR code=B)") == Both(
        Compare("type", "=", "x"), Either(Compare("code", "=", "A"), Compare("code", "=", "B"))
    )


@given(node=NODES)
def test_what_is_rendered_is_parsed_again(node: Node) -> None:
    assert parse(render(node)) == node


@given(text=st.text(max_size=60) | st.text(alphabet="()andortype=<>~!'\" \\;%-0159hs", max_size=60))
def test_any_text_is_a_filter_or_an_error_that_points_into_it(text: str) -> None:
    wrong: FilterError | None = None
    try:
        statement(parse(text))
    except FilterError as error:
        wrong = error
    assert wrong is None or (0 <= wrong.column <= len(text) and wrong.why)


@given(node=NODES)
def test_no_typed_value_is_in_the_statement(node: Node) -> None:
    text, values = statement(node)
    allowed = "%()=<>:.,' _" + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-0123456789"
    assert set(text) <= set(allowed)
    plain, _ = statement(_blank(node))
    assert text == plain, "the statement depends on fields and operators alone"
    assert len(values) == text.count("%(f")


def _blank(node: Node) -> Node:
    """The same tree with other values."""
    if isinstance(node, Compare):
        sample = {"attempts": "1", "age": "1s", "waiting": "true", "status": "open"}
        sample["workflow"] = "6b696e74-7375-4769-8000-676f6c646a6f"
        return Compare(node.field, node.operator, sample.get(node.field, "x"))
    if isinstance(node, Not):
        return Not(_blank(node.part))
    return type(node)(_blank(node.left), _blank(node.right))


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("", 0, "a field is expected, not the end"),
        ("agee<1h", 0, "a field is expected, not 'agee'; one of type, code"),
        ("type=timeout and", 16, "a field is expected, not the end"),
        ("type=timeout age<1h", 13, "'and', 'or' or the end is expected"),
        ("type<timeout", 4, "type takes one of = != ~"),
        ("age<soon", 4, "'soon' is no value of age; one looks like 30s"),
        ("age<99999999999h", 4, "is no value of age"),
        ("age<１h", 4, "is no value of age"),
        ("attempts=-1", 9, "is no value of attempts"),
        ("attempts=1.5", 9, "is no value of attempts"),
        ("waiting=maybe", 8, "is no value of waiting"),
        ("status=recovered", 7, "is no value of status"),
        ("workflow=7", 9, "is no value of workflow"),
        ("type=", 5, "a value is expected"),
        ("type=(", 5, "a value is expected"),
        ("(type=a", 7, "')' is expected"),
        ("type=a)", 6, "the end is expected"),
        ("type='a", 5, "a quoted value has no end"),
        ("type!a", 4, "'!' has no meaning here"),
        ("type='a\x00'", 5, "is no value of type"),
        ("type=x; DROP TABLE workflows", 8, "the end is expected"),
        ("not " * (NESTED_MAX + 1) + "type=a", 4 * NESTED_MAX, "nested deeper"),
        ("(" * 5_00 + "type=a" + ")" * 500, NESTED_MAX, "nested deeper"),
        (" or ".join(["type=a"] * (COMPARISONS_MAX + 1)), 10 * COMPARISONS_MAX, "more than 64 comparisons"),
        ("type=" + "a" * 5_000, 0, "the filter has 5005 characters"),
    ],
)
def test_an_error_points_at_what_is_wrong(text: str, column: int, why: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert why in caught.value.why
    assert caught.value.column == column


def test_an_error_shows_where() -> None:
    with pytest.raises(FilterError) as caught:
        parse("type=timeout and agee<1h")
    assert str(caught.value).splitlines()[1:] == ["  type=timeout and agee<1h", "                   ^"]


@pytest.mark.parametrize(
    ("glob", "pattern"),
    [("deploy*", "deploy%"), ("a?c", "a_c"), ("50%_off\\", "50\\%\\_off\\\\"), ("plain", "plain")],
)
def test_a_glob_becomes_a_pattern(glob: str, pattern: str) -> None:
    _, values = statement(Compare("step", "~", glob))
    assert values == {"f0": pattern}
