"""Differences of two states: whatever they hold, the changes lead from one to the other, and equal ones have none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.diff import Change, apply, diff, path_text
from schemas.canonical import canonical_bytes

#: As states hold it: without U+0000.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=3)
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, 1.0, -2.0]) | TEXTS
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "c", "d e"]), inner),
    max_leaves=20,
)


@given(before=DOCUMENTS, after=DOCUMENTS)
def test_the_changes_applied_to_the_first_give_the_second(before: Any, after: Any) -> None:
    kept = canonical_bytes(before)
    changes = list(diff(before, after))
    assert canonical_bytes(apply(before, changes)) == canonical_bytes(after)
    assert canonical_bytes(before) == kept, "neither document is changed"


@given(before=DOCUMENTS, after=DOCUMENTS)
def test_there_is_no_change_exactly_when_both_are_one_json_document(before: Any, after: Any) -> None:
    assert (not list(diff(before, after))) == (canonical_bytes(before) == canonical_bytes(after))


@given(before=DOCUMENTS, after=DOCUMENTS)
def test_the_other_way_round_what_was_added_is_removed(before: Any, after: Any) -> None:
    there, back = list(diff(before, after)), list(diff(after, before))
    turned = {"added": "removed", "removed": "added", "changed": "changed"}
    key = repr
    assert sorted(((turned[c.kind], c.path) for c in there), key=key) == sorted(
        ((c.kind, c.path) for c in back), key=key
    )


def test_a_change_says_where_and_what() -> None:
    before = {"data": {"n": 1, "gone": True, "list": [1, 2, 3]}}
    after = {"data": {"n": "1", "new": {}, "list": [1, 5]}}
    assert list(diff(before, after)) == [
        Change(kind="removed", path=("data", "gone"), before=True),
        Change(kind="changed", path=("data", "list", 1), before=2, after=5),
        Change(kind="removed", path=("data", "list", 2), before=3),
        Change(kind="changed", path=("data", "n"), before=1, after="1"),
        Change(kind="added", path=("data", "new"), after={}),
    ]


def test_true_is_not_one_and_a_whole_number_has_one_form() -> None:
    assert [c.kind for c in diff([True, 1], [1, 1.0])] == ["changed"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), "$"),
        (("data", "steps", 2, "step_id"), "$.data.steps[2].step_id"),
        (("odd key", 'say "x"', "\\"), '$["odd key"]["say \\"x\\""]["\\\\"]'),
        (("7",), '$["7"]'),
    ],
)
def test_paths_read_as_people_write_them(path: tuple[str | int, ...], text: str) -> None:
    assert path_text(path) == text
