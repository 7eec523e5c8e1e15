"""Explanations that every reader accepts, made of anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kintsugi_client.texts import clean, describe, json_text, represent

from .test_checkpoints import _ANYTHING

_TEXT = st.text(st.characters(exclude_categories=()))


def acceptable(text: str) -> bool:
    """What Avro and Postgres take."""
    text.encode()
    return "\x00" not in text


@given(_TEXT, st.integers(min_value=0, max_value=50))
def test_text_is_bounded_and_acceptable(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert acceptable(cleaned) and len(cleaned) <= max(limit, 0)
    if len(text) <= limit and acceptable_as_it_is(text):
        assert cleaned == text


def acceptable_as_it_is(text: str) -> bool:
    """Whether nothing has to be replaced."""
    try:
        return acceptable(text)
    except UnicodeEncodeError:
        return False


@given(_ANYTHING)
def test_anything_can_be_described(value: object) -> None:
    assert acceptable(describe(value)) and acceptable(represent(value))


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    for inner in value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from texts_in(inner)


@given(_ANYTHING)
def test_anything_becomes_json(value: Any) -> None:
    text = json_text(value, 10_000)
    assert (text is None) == (value is None)
    if text is not None:
        assert acceptable(text)
        read = json.loads(text, parse_constant=lambda name: 1 / 0)
        assert all(acceptable(found) for found in texts_in(read))


@given(st.dictionaries(_TEXT, st.text(min_size=200)), st.integers(min_value=400, max_value=1_000))
def test_json_is_bounded(value: Any, limit: int) -> None:
    text = json_text(value, limit)
    # What is cut is quoted once more: control characters take six places.
    assert text is not None and len(text) <= 3 * limit
    json.loads(text)
