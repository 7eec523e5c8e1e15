"""A human's edit of a state: RFC 7396, and refused when what it leaves is no valid state."""

from __future__ import annotations

from typing import Any

import pytest
from kintsugi_client import RefusedError, StateError
from kintsugi_client.edits import edited, merge_patch


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [  # the examples of RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_patch_merges_as_the_standard_says(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(target, patch) == expected


def test_what_is_patched_stays_as_it_was() -> None:
    target = {"a": {"b": 1}}
    assert merge_patch(target, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert target == {"a": {"b": 1}}


def no_negative(data: Any) -> None:
    if data.get("n", 0) < 0:
        raise StateError("schema", "$.data.n: below 0", path="$.data.n")


def test_a_valid_edit_changes_the_data() -> None:
    assert edited({"n": 1, "m": 2}, '{"n": 7, "m": null}', no_negative) == {"n": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "no JSON object but a list"),
        ("{", "the edit is no JSON"),
        ('{"a": ' * 5_000, "the edit is no JSON"),
        ('{"n": NaN}', "the edited state is not valid"),
        ('{"n": -1}', "n: below 0"),
    ],
)
def test_an_edit_that_leaves_no_valid_state_is_refused(text: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        edited({"n": 1}, text, no_negative)
    assert refused.value.reason == "edit_invalid"
