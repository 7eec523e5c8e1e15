"""From what a record may hold to what Postgres accepts: no input raises, and what jsonb refuses is replaced."""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.values import json_text, state_text, text
from projections.verify import json_digest
from schemas.canonical import digest_of
from schemas.ids import derive_id
from schemas.records.events import StatePersisted
from schemas.redaction import REDACTED, Redaction
from schemas.sealing import DataKey, binding_of, seal

WORKFLOW_ID = derive_id("a", "workflow")

anything = st.text(alphabet=st.characters(codec=None)) | st.sampled_from(
    ["NaN", "Infinity", '{"a":NaN}', '{"a":1e999}', '"\\u0000"', '"\\ud800"', '{"a":1,"a":2}', "[" * 5000, "", "nul"]
)


@given(anything)
def test_any_text_becomes_json_that_postgres_takes(value: str) -> None:
    written = json_text(value)
    assert written is not None
    assert "\\u0000" not in written.replace("\\\\", "")  # an escaped backslash before "u0000" is no escape
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


def persisted(state: bytes, **fields: Any) -> StatePersisted:
    """A record with this state, which digests to it unless said otherwise."""
    known: dict[str, Any] = {
        "codec": "identity",
        "size_bytes": len(state),
        "digest": digest_of(state),
        **fields,
    }
    return StatePersisted(
        event_id=derive_id("a", "event"),
        workflow_id=WORKFLOW_ID,
        workflow_type="development",
        occurred_at=1,
        producer="test",
        step_id="build",
        version="1",
        state_version="1",
        status="running",
        state=state,
        **known,
    )


@pytest.mark.parametrize("data", [b'{"a":1}', '{"ü":[1.5,null,true]}'.encode(), b"{}"])
def test_a_state_that_verifies_is_shown_by_value(data: bytes) -> None:
    for proven in (False, True):
        shown, hidden = state_text(persisted(data), proven=proven)
        assert (orjson.loads(shown), hidden) == (orjson.loads(data), False)


@pytest.mark.parametrize(
    ("state", "changed", "reason"),
    [
        (b"", {}, "there is no state"),
        (b"{}", {"digest": "00"}, "not those that were saved"),
        (b"{}", {"codec": "lzma"}, "codec"),
        (b"{}", {"protection": "rot13"}, "'rot13' is not known"),
        (b"{}", {"protection": "aes-256-gcm"}, "too few to be sealed"),
        (b"{}" * 40, {"protection": "hmac-sha256"}, "not sealed bytes"),
        (b"not json", {}, "not JSON"),
    ],
)
def test_a_state_that_does_not_verify_is_a_marker(state: bytes, changed: dict[str, Any], reason: str) -> None:
    text, hidden = state_text(persisted(state, **changed))
    shown = orjson.loads(text)
    assert (shown["$kintsugi"], hidden) == ("unreadable", False)
    assert reason in shown["reason"]


def test_a_rejected_state_is_a_marker() -> None:
    shown = orjson.loads(state_text(persisted(b"{}"), rejected="structure: no")[0])
    assert shown == {"$kintsugi": "unreadable", "reason": "structure: no"}


@pytest.mark.parametrize("protection", ["hmac-sha256", "aes-256-gcm"])
def test_an_encrypted_state_stays_so_and_an_authenticated_one_is_shown(protection: str) -> None:
    data = b'{"email":"a@b.c"}'
    clear = persisted(data, protection=protection)
    sealed = seal(data, DataKey(WORKFLOW_ID, 7, bytes(32)), protection=protection, binding=binding_of(clear))
    shown, hidden = state_text(replace(clear, state=sealed), redaction=Redaction(["email"]))
    if protection == "hmac-sha256":
        assert (orjson.loads(shown), hidden) == ({"email": REDACTED}, True)
        assert orjson.loads(state_text(replace(clear, state=sealed))[0]) == orjson.loads(data)
    else:
        assert (orjson.loads(shown), hidden) == (
            {"$kintsugi": "sealed", "protection": protection, "key": 7, "sealed": b64encode(sealed).decode()},
            False,
        )


@pytest.mark.parametrize("protection", ["none", "hmac-sha256", "aes-256-gcm"])
def test_a_state_in_object_storage_is_shown_as_its_place(protection: str) -> None:
    record = persisted(b"", claim_uri="claim:sha256:00", size_bytes=5, protection=protection)
    shown = orjson.loads(state_text(record)[0])
    if protection == "aes-256-gcm":
        assert shown == {
            "$kintsugi": "sealed",
            "protection": protection,
            "claim": "claim:sha256:00",
            "size_bytes": 5,
        }
    else:
        assert shown == {"$kintsugi": "claim", "uri": "claim:sha256:00", "size_bytes": 5}


def test_what_the_policy_names_is_hidden_and_said_to_be() -> None:
    data = b'{"data":{"card":"4711","n":1}}'
    redaction = Redaction(["data.card"])
    for proven in (False, True):
        shown, hidden = state_text(persisted(data), proven=proven, redaction=redaction)
        assert (orjson.loads(shown), hidden) == ({"data": {"card": REDACTED, "n": 1}}, True)
    assert state_text(persisted(b'{"n":1}'), redaction=redaction) == ('{"n":1}', False)
    assert json_text('{"data": {"card": 1}}', redaction) == '{"data":{"card":"[redacted]"}}'


def test_text_that_no_path_leads_into_is_not_shown_when_something_is_hidden() -> None:
    redaction = Redaction(["data.card"])
    assert "4711" not in str(json_text("card 4711", redaction))
    evidence = orjson.dumps({"$kintsugi": "repr", "reason": "NaN", "repr": "{'card': 4711}", "step_id": "build"})
    shown, hidden = state_text(persisted(evidence), redaction=redaction)
    assert hidden
    assert orjson.loads(shown) == {"$kintsugi": "repr", "reason": "NaN", "repr": REDACTED, "step_id": "build"}
    assert "4711" in state_text(persisted(evidence))[0]


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
