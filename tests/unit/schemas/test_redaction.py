"""A path hides what it names, everywhere it leads to, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.redaction import DEPTH_MAX, NOTHING, PATH_CHARS_MAX, PATHS_MAX, REDACTED, STEPS_MAX, Redaction

STATE = {
    "workflow_id": "w",
    "data": {
        "customer": {"email": "a@b.c", "name": "Ann"},
        "cards": [{"number": "4711", "kind": "visa"}, {"number": "4712", "password": "p"}],
        "password": ["x", "y"],
        "a.b": {"c": 1},
    },
}


def hidden(*paths: str, value: Any = STATE) -> Any:
    return Redaction(paths).apply(value)[0]


def changed(**data: Any) -> Any:
    return {**STATE, "data": {**STATE["data"], **data}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data.customer.email", changed(customer={"email": REDACTED, "name": "Ann"})),
        ("data.customer", changed(customer=REDACTED)),
        ("data.customer.*", changed(customer={"email": REDACTED, "name": REDACTED})),
        (
            "data.cards[*].number",
            changed(cards=[{"number": REDACTED, "kind": "visa"}, {"number": REDACTED, "password": "p"}]),
        ),
        (
            "data.cards[1].number",
            changed(cards=[{"number": "4711", "kind": "visa"}, {"number": REDACTED, "password": "p"}]),
        ),
        ("data.password[0]", changed(password=[REDACTED, "y"])),
        (
            "**.password",
            changed(
                password=REDACTED, cards=[{"number": "4711", "kind": "visa"}, {"number": "4712", "password": REDACTED}]
            ),
        ),
        ('data."a.b".c', changed(**{"a.b": {"c": REDACTED}})),
        ("data.**.email", changed(customer={"email": REDACTED, "name": "Ann"})),
        ("**.customer.**.email", changed(customer={"email": REDACTED, "name": "Ann"})),
        ("data", {**STATE, "data": REDACTED}),
        ("*", dict.fromkeys(STATE, REDACTED)),
        ("data.cards.number", STATE),
        ("customer.email", STATE),
        ("data[*]", STATE),
        ("nothing.there", STATE),
    ],
)
def test_a_path_hides_what_it_names(path: str, expected: Any) -> None:
    before = json.dumps(STATE)
    shown, anything = Redaction([path]).apply(STATE)
    assert shown == expected
    assert anything == (expected != STATE)
    assert json.dumps(STATE) == before, "the value itself stays as it is"


def test_several_paths_hide_together() -> None:
    shown = hidden("data.customer.email", "data.cards", "workflow_id")
    assert shown == {**changed(customer={"email": REDACTED, "name": "Ann"}, cards=REDACTED), "workflow_id": REDACTED}


def test_without_paths_nothing_is_looked_at() -> None:
    value = object()
    assert NOTHING.apply(value) == (value, False)
    assert not NOTHING
    assert Redaction(["a"])


@pytest.mark.parametrize(
    "path",
    ["", ".", "a.", ".a", "a..b", "a[", "a[]", "a[x]", "a[*]b", "a]b", "**", "**.**", "a.***", 'a."', "[-1]", "a*b"],
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|expected|names no field"):
        Redaction([path])


def test_paths_are_bounded() -> None:
    with pytest.raises(ValueError, match="paths"):
        Redaction(["a"] * (PATHS_MAX + 1))
    with pytest.raises(ValueError, match="characters"):
        Redaction(["a" * (PATH_CHARS_MAX + 1)])
    with pytest.raises(ValueError, match="steps"):
        Redaction([".".join("a" * (STEPS_MAX + 1))])


def test_deeper_than_it_looks_it_hides_what_a_path_could_reach() -> None:
    deep: Any = "secret"
    for _ in range(DEPTH_MAX + 50):
        deep = {"x": deep}
    assert "secret" not in json.dumps(hidden("**.password", value=deep))
    assert hidden("other.password", value=deep) is deep, "no path leads in here"


def test_paths_made_to_be_slow_are_not() -> None:
    value: Any = {"a": 1}
    for _ in range(60):
        value = {"a": value, "b": 1}
    worst = ".".join(["**", "a"] * 30 + ["x"])
    assert hidden(worst, value=value) is value


keys = st.sampled_from(["a", "b", "c.d", ""])
values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
steps = st.sampled_from(["a", "b", '"c.d"', "*", "**", "[*]", "[0]", "[1]"])


def path_of(parts: list[str]) -> str:
    text = ""
    for part in parts:
        text += part if part.startswith("[") or not text else "." + part
    return text


def matches(parts: list[str], place: list[str | int]) -> bool:
    """What a path means, written the slow way."""
    if not parts:
        return not place
    if parts[0] == "**":
        return any(matches(parts[1:], place[n:]) for n in range(len(place) + 1))
    if not place:
        return False
    head = place[0]
    fits = parts[0] in ("[*]", f"[{head}]") if isinstance(head, int) else parts[0] == "*" or parts[0].strip('"') == head
    return fits and matches(parts[1:], place[1:])


def slowly(paths: list[list[str]], value: Any, place: list[str | int]) -> Any:
    if any(matches(parts, place) for parts in paths):
        return REDACTED
    if isinstance(value, dict):
        return {k: slowly(paths, v, [*place, k]) for k, v in value.items()}
    if isinstance(value, list):
        return [slowly(paths, v, [*place, n]) for n, v in enumerate(value)]
    return value


@given(st.lists(st.lists(steps, min_size=1, max_size=5).filter(lambda p: set(p) != {"**"}), max_size=4), values)
def test_it_hides_exactly_what_the_paths_mean(paths: list[list[str]], value: Any) -> None:
    redaction = Redaction([path_of(parts) for parts in paths])
    expected = slowly(paths, value, [])
    assert redaction.apply(value) == (expected, expected != value)
    assert redaction.apply(value)[0] == expected, "what is remembered changes nothing"
