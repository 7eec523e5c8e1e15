"""From what a record may hold to what Postgres accepts: no input raises, and what jsonb refuses is replaced."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.values import json_text, state_text, text
from projections.verify import json_digest
from schemas.canonical import digest_of

anything = st.text(alphabet=st.characters(codec=None)) | st.sampled_from(
    ["NaN", "Infinity", '{"a":NaN}', '{"a":1e999}', '"\\u0000"', '"\\ud800"', '{"a":1,"a":2}', "[" * 5000, "", "nul"]
)


@given(anything)
def test_any_text_becomes_json_that_postgres_takes(value: str) -> None:
    written = json_text(value)
    assert written is not None
    assert "\\u0000" not in written
    written.encode()  # no lone surrogate
    _no_nan(orjson.loads(written))


def _no_nan(value: object) -> None:
    if isinstance(value, float):
        assert math.isfinite(value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_nan(item)


@given(st.text())
def test_text_has_no_nul(value: str) -> None:
    assert "\x00" not in text(value)
    assert len(text(value)) == len(value)


def test_none_stays_none() -> None:
    assert json_text(None) is None


@pytest.mark.parametrize("data", [b'{"a":1}', '{"ü":[1.5,null,true]}'.encode(), b"{}"])
def test_a_state_that_verifies_is_shown_by_value(data: bytes) -> None:
    shown = state_text(data, codec="identity", size_bytes=len(data), digest=digest_of(data), rejected=None)
    assert orjson.loads(shown) == orjson.loads(data)


@pytest.mark.parametrize(
    ("state", "codec", "digest", "reason"),
    [
        (None, "identity", "", "object storage"),
        (b"{}", "identity", "00", "not those that were saved"),
        (b"{}", "lzma", digest_of(b"{}"), "codec"),
        (b"not json", "identity", digest_of(b"not json"), "not JSON"),
    ],
)
def test_a_state_that_does_not_verify_is_a_marker(state: bytes | None, codec: str, digest: str, reason: str) -> None:
    shown = orjson.loads(state_text(state, codec=codec, size_bytes=len(state or b""), digest=digest, rejected=None))
    assert shown["$kintsugi"] == "unreadable"
    assert reason in shown["reason"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":2}', '{"b": 2, "a": 1}'),
        ("1e3", "1000"),
        ("1.0", "1"),
        ("-0.0", "0.0"),
        ("1e300", "1" + "0" * 300),
        ('["\\u00fc"]', '["ü"]'),
    ],
)
def test_json_of_equal_value_has_one_digest(one: str, other: str) -> None:
    assert json_digest(one) == json_digest(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1", "2"), ("true", "1"), ("1.5", "1"), ("[]", "{}"), ('"1"', "1"), ("null", "0")]
)
def test_json_of_other_value_has_another_digest(one: str, other: str) -> None:
    assert json_digest(one) != json_digest(other)
