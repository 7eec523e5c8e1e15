"""Sealed bytes: given back whole to who has the key, for the record they were made for; refused in any other way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError, StateError
from schemas.ids import derive_id
from schemas.records import RECORD_TYPES, Record
from schemas.records.events import CheckpointCreated, StatePersisted, StateRestored, WorkflowErrorOccurred
from schemas.sealing import (
    SEALED_FIELDS,
    SEALED_TEXT,
    DataKey,
    binding_of,
    key_number_of,
    needs_cryptography,
    seal,
    seal_fields,
    unseal,
    unseal_fields,
)

from .kit import records
from .sealed_kit import CANARY, OTHER, WORKFLOW, checkpoint, forms, holder, key, secret

BOTH = pytest.mark.parametrize("protection", ["hmac-sha256", "aes-256-gcm"])
#: Not bound: what says where the bytes are and where the event came from.
UNBOUND = {"state", "claim_uri", "sealed", "event_id", "occurred_at", "producer", "correlation_id", "causation_id"}
STATEFUL = (CheckpointCreated, StatePersisted, StateRestored)
HEADER_BYTES = 8


def refused(sealed: bytes, protection: str, binding: bytes, *keys: DataKey) -> str:
    """Why it is refused."""
    with pytest.raises(StateError) as caught:
        unseal(sealed, protection=protection, binding=binding, keys=holder(*(keys or (key(),))))
    return caught.value.reason


@BOTH
@given(data=st.binary(max_size=2000), binding=st.binary(max_size=200), number=st.integers(1, 2**32 - 1))
def test_what_is_sealed_is_given_back(protection: str, data: bytes, binding: bytes, number: int) -> None:
    sealed = seal(data, key(number), protection=protection, binding=binding)
    assert unseal(sealed, protection=protection, binding=binding, keys=holder(key(number))) == data
    assert key_number_of(sealed) == number


@BOTH
def test_the_layout_is_the_documented_one(protection: str) -> None:
    sealed = seal(b"payload", key(0x01020304), protection=protection, binding=b"b")
    algorithm = {"hmac-sha256": 1, "aes-256-gcm": 2}[protection]
    assert sealed[:HEADER_BYTES] == b"KS\x01" + bytes([algorithm]) + b"\x01\x02\x03\x04"
    if protection == "hmac-sha256":
        assert sealed[HEADER_BYTES + 32 :] == b"payload"
    else:
        assert len(sealed) == HEADER_BYTES + 12 + len(b"payload") + 16
        assert b"payload" not in sealed


def test_bytes_sealed_by_this_release_stay_readable() -> None:
    """Frozen: another layout, subkey or binding would make what lies in logs unreadable."""
    binding = binding_of(checkpoint())
    frozen = {
        "hmac-sha256": "4b53010100000001ec5294b1fae10dce97c854e36df8a40af461ed09404d5fecc0069127355f9f827b2261223a317d",
        "aes-256-gcm": "4b530102000000012185df6f3f4b0fd7bc2f995a70c7055160d8d68b67238b5016075c16249ea1f71a2d93",
    }
    for protection, text in frozen.items():
        assert unseal(bytes.fromhex(text), protection=protection, binding=binding, keys=holder(key())) == b'{"a":1}'


@BOTH
def test_every_changed_byte_is_refused(protection: str) -> None:
    sealed = seal(b'{"step":"build","secret":true}', key(), protection=protection, binding=b"binding")
    reasons = []
    for position in range(len(sealed)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(sealed)
            changed[position] ^= mask
            reasons.append(refused(bytes(changed), protection, b"binding"))
    assert len(reasons) == 3 * len(sealed)
    # A changed number names another key; with that key there, the bytes are refused all the same.
    assert set(reasons) == {"decryption", "key_missing"}
    renumbered = sealed[:7] + b"\x02" + sealed[8:]
    assert refused(renumbered, protection, b"binding", key(1), replace(key(1), number=2)) == "decryption"


@BOTH
def test_every_truncation_and_extension_is_refused(protection: str) -> None:
    sealed = seal(b'{"step":"build"}', key(), protection=protection, binding=b"binding")
    for length in range(len(sealed)):
        assert refused(sealed[:length], protection, b"binding") == "decryption"
        assert refused(sealed[length:] if length else b"", protection, b"binding") in ("decryption", "key_missing")
    for more in (b"\x00", b"KS", sealed):
        assert refused(sealed + more, protection, b"binding") == "decryption"


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for protection in ("hmac-sha256", "aes-256-gcm"):
        assert refused(data, protection, b"") in ("decryption", "key_missing")
    with pytest.raises(StateError):
        key_number_of(data[:HEADER_BYTES])


@pytest.mark.parametrize("said", ["none", "hmac-sha256", "rot13", "AES-256-GCM"])
def test_a_record_that_says_another_protection_is_refused(said: str) -> None:
    assert refused(seal(b"x", key(), protection="aes-256-gcm", binding=b"b"), said, b"b") == "decryption"


@BOTH
def test_wrong_missing_and_erased_keys_are_told_apart(protection: str) -> None:
    sealed = seal(b"x", key(3), protection=protection, binding=b"b")
    assert refused(sealed, protection, b"b", key(3, name="wrong")) == "decryption"
    assert refused(sealed, protection, b"b", replace(key(3), workflow_id=OTHER)) == "decryption"
    assert refused(sealed, protection, b"b", key(2)) == "key_missing"

    def erased(number: int) -> DataKey:
        raise StateError("key_erased", f"key {number} was erased")

    with pytest.raises(StateError) as caught:
        unseal(sealed, protection=protection, binding=b"b", keys=erased)
    assert caught.value.reason == "key_erased"


def test_binding_and_data_cannot_trade_bytes() -> None:
    """A MAC over their mere concatenation would take this."""
    sealed = seal(b"ta", key(), protection="hmac-sha256", binding=b"da")
    assert refused(sealed[:-2] + b"a", "hmac-sha256", b"dat") == "decryption"


def test_nonces_differ() -> None:
    sealed = {seal(b"x", key(), protection="aes-256-gcm", binding=b"") for _ in range(1000)}
    assert len({s[HEADER_BYTES : HEADER_BYTES + 12] for s in sealed}) == 1000


def test_the_two_subkeys_differ_by_purpose_and_workflow() -> None:
    mine, others = key(), DataKey(OTHER, 1, key().secret)
    macs = {k.mac().digest() for k in (mine, others)}
    assert len(macs) == 2
    assert mine.secret not in macs


@pytest.mark.parametrize("protection", ["none", "", "gcm"])
def test_nothing_is_sealed_by_an_unknown_protection(protection: str) -> None:
    with pytest.raises(ValueError, match="one of hmac-sha256, aes-256-gcm"):
        seal(b"x", key(), protection=protection, binding=b"")


@pytest.mark.parametrize(("number", "raw"), [(0, bytes(32)), (2**32, bytes(32)), (1, bytes(31)), (1, b"")])
def test_a_data_key_has_32_bytes_and_a_number(number: int, raw: bytes) -> None:
    with pytest.raises(ValueError, match="a data key has"):
        DataKey(WORKFLOW, number, raw)


def _other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        # Towards zero: the largest integers of canonical JSON have no neighbour beyond them.
        return [value - 1 if value > 0 else value + 1, -value or 7]
    if isinstance(value, str):
        return [value + "x", ""]
    return ["something"] if value is None else [None]


@pytest.mark.parametrize("field", [f.name for f in fields(CheckpointCreated) if f.name not in UNBOUND])
def test_every_change_of_a_bound_field_is_refused(field: str) -> None:
    record = checkpoint()
    sealed = seal(b"{}", key(), protection="aes-256-gcm", binding=binding_of(record))
    values = _other_values(getattr(record, field))
    assert values
    for value in values:
        changed = replace(record, **{field: value})
        assert refused(sealed, "aes-256-gcm", binding_of(changed)) == "decryption"


@pytest.mark.parametrize("kind", STATEFUL, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_records_with_other_fields_have_another_binding(kind: type[Record], data: st.DataObject) -> None:
    texts = st.characters(exclude_characters="\x00", exclude_categories=("Cs",))
    one = data.draw(records(kind.__name__))
    field = data.draw(st.sampled_from([f.name for f in fields(kind) if f.name not in UNBOUND]))
    plain = {
        f.name: data.draw(st.text(texts)) if isinstance(v, str) else min(max(v, -(2**53) + 1), 2**53 - 1)
        for f in fields(kind)
        if isinstance(v := getattr(one, f.name), str | int)
    }
    one = replace(one, **plain)
    other = replace(one, **{field: _other_values(getattr(one, field))[0]})
    bound = other != one
    assert (binding_of(one) != binding_of(other)) == bound


def test_origin_and_place_are_not_bound() -> None:
    moved = {
        "state": b"bytes",
        "claim_uri": "claim:sha256:0",
        "event_id": derive_id("tests", "again"),
        "occurred_at": 1,
        "producer": "someone",
        "correlation_id": WORKFLOW,
        "causation_id": OTHER,
    }
    assert binding_of(checkpoint(**moved)) == binding_of(checkpoint())


def test_swaps_between_workflows_checkpoints_and_sequences_are_refused() -> None:
    mine = checkpoint()
    others = [
        checkpoint(workflow_id=OTHER),
        checkpoint(checkpoint_id=derive_id("tests", "another checkpoint")),
        checkpoint(sequence=8),
        checkpoint(epoch=2),
        checkpoint(chain_digest=secret("another chain").hex()),
    ]
    for other in others:
        sealed = seal(b"{}", key(workflow_id=other.workflow_id), protection="hmac-sha256", binding=binding_of(other))
        assert refused(sealed, "hmac-sha256", binding_of(mine)) == "decryption"


def test_the_binding_is_canonical_json_without_defaults() -> None:
    bound = json.loads(binding_of(checkpoint(epoch=0, metadata=None)))
    assert bound["record"] == "CheckpointCreated"
    assert bound["fields"]["sequence"] == 7
    assert {"epoch", "metadata", "evidence", "external_id"}.isdisjoint(bound["fields"])
    assert list(bound["fields"]) == sorted(bound["fields"])


def test_a_field_that_a_later_release_adds_keeps_old_bytes_readable() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Later(CheckpointCreated):
        added: int = 0

    Later.__name__ = "CheckpointCreated"
    known = {f.name: getattr(checkpoint(), f.name) for f in fields(CheckpointCreated)}
    assert binding_of(Later(**known)) == binding_of(checkpoint())
    assert binding_of(Later(**known, added=1)) != binding_of(checkpoint())


def _record(name: str) -> Record:
    """A record of this type, all of its texts set."""
    kind = RECORD_TYPES[name]
    common = {"event_id": derive_id("tests", name), "workflow_id": WORKFLOW, "workflow_type": "development"}
    values: dict[str, Any] = {**common, "occurred_at": 1, "producer": "tests"}
    for f in fields(kind):
        if f.name in values or f.name == "sealed":
            continue
        values[f.name] = {"attempt_number": 1, "duplicate": False, "progress": 0.5, "steps": ()}.get(
            f.name, f"the {f.name}" if f.name in SEALED_FIELDS[name] or f.type == "str" else None
        )
    return kind(**values)


@pytest.mark.parametrize("name", list(SEALED_FIELDS))
def test_texts_are_sealed_and_given_back(name: str) -> None:
    record = _record(name)
    sealed: Any = seal_fields(record, key())
    for field in SEALED_FIELDS[name]:
        assert getattr(sealed, field) in (None, SEALED_TEXT)
        assert f"the {field}".encode() not in sealed.sealed
    assert unseal_fields(sealed, holder(key())) == record
    assert seal_fields(sealed, key()) is sealed
    assert unseal_fields(record, holder()) is record


#: Records that pass a person's answer on: their texts are bound to the error that it is about.
ANSWERS = ("InterventionResolved", "RetryStep", "ResumeFromCheckpoint", "SkipStep")


@pytest.mark.parametrize("name", [name for name in SEALED_FIELDS if name not in ANSWERS])
@pytest.mark.parametrize("moved", [{"workflow_id": OTHER}, {"event_id": derive_id("tests", "another event")}])
def test_sealed_texts_belong_to_one_event(name: str, moved: dict[str, str]) -> None:
    sealed = replace(seal_fields(_record(name), key()), **moved)
    with pytest.raises(StateError) as caught:
        unseal_fields(sealed, holder(key()))
    assert caught.value.reason == "decryption"


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("moved", [{"workflow_id": OTHER}, {"error_id": derive_id("tests", "another error")}])
def test_sealed_answers_belong_to_one_error(name: str, moved: dict[str, str]) -> None:
    sealed = replace(seal_fields(_record(name), key()), **moved)
    with pytest.raises(StateError) as caught:
        unseal_fields(sealed, holder(key()))
    assert caught.value.reason == "decryption"


@pytest.mark.parametrize(("name", "text"), [("RetryStep", "edit"), ("SkipStep", "result")])
def test_a_sealed_answer_is_read_in_the_command_that_carries_it_out(name: str, text: str) -> None:
    error_id = derive_id("tests", "an error")
    answer: Any = seal_fields(replace(_record("InterventionResolved"), error_id=error_id), key())
    command: Any = replace(_record(name), error_id=error_id, sealed=answer.sealed, **{text: None})
    assert getattr(unseal_fields(command, holder(key())), text) == f"the {text}"


def test_sealed_texts_do_not_move_to_another_type_of_record() -> None:
    taken: Any = seal_fields(_record("WorkflowStarted"), key())
    given: Any = replace(_record("WorkflowCompleted"), event_id=taken.event_id, sealed=taken.sealed)
    with pytest.raises(StateError) as caught:
        unseal_fields(given, holder(key()))
    assert caught.value.reason == "decryption"


def test_what_tells_errors_apart_stays_in_clear() -> None:
    record = _record("WorkflowErrorOccurred")
    assert isinstance(record, WorkflowErrorOccurred)
    sealed = seal_fields(replace(record, error_code="E_DISK", fingerprint="abc"), key())
    assert (sealed.error_message, sealed.stack_trace, sealed.context) == (SEALED_TEXT, None, None)
    assert (sealed.error_code, sealed.fingerprint, sealed.step_id) == ("E_DISK", "abc", record.step_id)


def test_a_heartbeat_without_a_message_is_not_sealed() -> None:
    heartbeat = replace(_record("StepProgressed"), **{"message": None})
    assert seal_fields(heartbeat, key()) is heartbeat


def test_the_secret_is_never_shown() -> None:
    data_key = DataKey(WORKFLOW, 1, CANARY)
    sealed = seal(b"x", data_key, protection="aes-256-gcm", binding=b"")
    data_key.mac()
    seen = [repr(data_key), str(data_key), f"{data_key}", sealed.hex()]
    with pytest.raises(StateError) as caught:
        unseal(sealed, protection="aes-256-gcm", binding=b"other", keys=lambda _: data_key)
    seen += [str(caught.value), repr(caught.value)]
    for text in seen:
        assert not any(form in text for form in forms(CANARY))


def test_a_client_without_keys_needs_no_cryptography() -> None:
    code = (
        "import sys\n"
        "import schemas.keys, schemas.keystore, schemas.sealing\n"
        "assert schemas.keystore.open_keystore('', '') is None\n"
        "assert 'cryptography' not in sys.modules and 'obstore' not in sys.modules\n"
        "sys.modules['cryptography'] = None\n"
        "from schemas.errors import ConfigError\n"
        "key = schemas.sealing.DataKey('w', 1, bytes(32))\n"
        "for protection in ('hmac-sha256', 'aes-256-gcm'):\n"
        "    try: schemas.sealing.seal(b'', key, protection=protection, binding=b'')\n"
        "    except ConfigError as error: print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["pip install 'kintsugi-client[keys]'"] * 2
    assert isinstance(needs_cryptography(ImportError("no")), ConfigError)
