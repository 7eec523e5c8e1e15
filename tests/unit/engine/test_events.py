"""A checkpoint's bytes are verified on arrival exactly as a restore verifies them: what one takes, the other takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.inspection import deliver
from engine.policy import default_policy
from engine.testing import Service, World
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of, parse_state
from schemas.errors import StateError
from schemas.records.events import CheckpointCreated

WORLD = World(default_policy())
SERVICE = Service(WORLD)

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
texts = st.text(max_size=8) | st.sampled_from(["1.5", ":5.3", ",7e", "\x00", "\x7f", "\u2028", "é", "\ud83d\ude00"])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def rejection(data: bytes) -> tuple[str, str] | None:
    digest = digest_of(data)
    record = SERVICE.build(
        CheckpointCreated,
        checkpoint_id=WORLD.new_id(),
        step_id="s",
        checkpoint_type="manual",
        sequence=1,
        state_version="1",
        codec="identity",
        size_bytes=len(data),
        digest=digest,
        chain_digest=chain_digest_of(None, digest),
        status="running",
        state=data,
    )
    return deliver(record, 0, 0, 0).rejection


def document(data: Any) -> dict[str, Any]:
    return {"data": data, "status": "running", "step_id": "s", "workflow_id": SERVICE.workflow_id}


def restorable(data: bytes) -> bool:
    try:
        parse_state(data)
    except StateError:
        return False
    return True


@given(values)
def test_what_the_client_writes_is_taken(data: Any) -> None:
    try:
        written = canonical_bytes(document(data))
    except StateError:
        return  # no state: the client refuses it too
    assert rejection(written) is None


@given(values, st.booleans(), st.booleans())
def test_arrival_and_restore_agree_on_any_bytes(data: Any, ascii_only: bool, sort: bool) -> None:
    text = json.dumps(document(data), ensure_ascii=ascii_only, sort_keys=sort, separators=(",", ":"))
    written = text.encode("utf-8", "surrogatepass")
    assert (rejection(written) is None) == restorable(written)


@pytest.mark.parametrize("inner", ["5.0", "1e3", "9007199254740993", "18446744073709551615", "-0", "-0.0", '"\\u0041"'])
def test_a_number_or_text_in_another_form_is_refused(inner: str) -> None:
    good = canonical_bytes(document(0))
    assert rejection(good) is None
    other = good.replace(b'"data":0', f'"data":{inner}'.encode())
    assert rejection(other) is not None
    assert not restorable(other)
