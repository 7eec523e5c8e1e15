"""Records to bytes and back: both wire forms, writers of another version, and bytes that are none of ours."""

from __future__ import annotations

import io
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import catalog, codec
from schemas.catalog import shipped
from schemas.codec import Codec, Unknown
from schemas.errors import DecodeError
from schemas.records import Record
from schemas.records.events import ResourceUsageReported, StepSpec, StepStarted, WorkflowStarted
from schemas.topics import MESSAGE_SIZE_BYTES_MAX

from .kit import NAMES, Ids, changed, field_of, records, step_started

PLAIN, WITH_IDS = Codec(), Codec(Ids())


def written(schema: dict[str, Any], value: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), value)
    return out.getvalue()


def framed(schema_id: int, body: bytes) -> bytes:
    return struct.pack(">bI", 0, schema_id) + body


def values_of(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def refused(reader: Codec, data: bytes | None) -> str:
    with pytest.raises(DecodeError) as caught:
        reader.decode(data)
    assert caught.value.poison
    assert len(str(caught.value)) < 700
    return caught.value.reason


def outcome(reader: Codec, data: bytes) -> Record | Unknown | str:
    """The record, or the reason why it is none; any other exception is a failure."""
    try:
        return reader.decode(data)
    except DecodeError as error:
        return error.reason


# What we write, we read.


@pytest.mark.parametrize("name", NAMES)
def test_every_record_survives_both_wire_forms(name: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(records(name))
    def survives(record: Record) -> None:
        with_id, without = WITH_IDS.encode(record), PLAIN.encode(record)
        assert with_id[5:] == without[10:]
        assert WITH_IDS.decode(with_id) == record
        assert WITH_IDS.decode(without) == record
        assert PLAIN.decode(without) == record

    survives()


def test_first_bytes_say_which_form_it_is() -> None:
    ids = Ids()
    record = step_started()
    schema = shipped()["StepStarted"]
    assert Codec(ids).encode(record)[:5] == b"\x00" + ids.id_of(schema).to_bytes(4, "big")
    assert PLAIN.encode(record)[:10] == b"\xc3\x01" + schema.fingerprint


def test_fingerprint_is_the_one_of_the_avro_specification() -> None:
    def crc64(data: bytes) -> int:
        empty = 0xC15D213AA4D7A795
        value = empty
        for byte in data:
            low = (value ^ byte) & 0xFF
            for _ in range(8):
                low = (low >> 1) ^ (empty if low & 1 else 0)
            value = (value >> 8) ^ low
        return value

    assert crc64(b'"int"') == 0x7275D51A3F395C8F  # the specification's own example
    for schema in shipped().values():
        assert schema.fingerprint == crc64(schema.canonical.encode()).to_bytes(8, "little")


def test_a_schema_is_asked_for_once() -> None:
    ids = Ids()
    data = Codec(ids).encode(step_started())
    reader = Codec(ids)
    for _ in range(3):
        reader.decode(data)
    assert ids.asked == 1


def test_more_writer_schemas_than_are_kept_are_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "WRITERS_MAX", 2)
    ids = Ids()
    reader, record = Codec(ids), step_started()
    body = Codec(ids).encode(record)[5:]
    numbers = [ids.add(shipped()["StepStarted"].text) for _ in range(5)]
    assert [reader.decode(framed(n, body)) for n in (*numbers, *numbers)] == [record] * 10
    assert len(reader._by_id) <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"occurred_at": 2**63},
        {"occurred_at": "now"},
        {"occurred_at": None},
        {"timeout_ms": 2**65},
        {"step_id": None},
        {"step_id": 5},
        {"step_id": b"x"},
        {"step_id": "\ud800"},
        {"external_id": 5},
    ],
)
def test_a_value_that_the_schema_does_not_allow_is_an_error_of_the_caller(wrong: dict[str, Any]) -> None:
    writer = Codec()
    with pytest.raises((ValueError, TypeError)):
        writer.encode(replace(step_started(), **wrong))
    assert writer.decode(writer.encode(step_started())) == step_started()


def test_numbers_that_json_does_not_have_are_written_as_they_are() -> None:
    record = ResourceUsageReported(
        event_id="e", workflow_id="w", workflow_type="t", occurred_at=1, producer="p", memory_mb=math.nan
    )
    found = PLAIN.decode(PLAIN.encode(record))
    assert isinstance(found, ResourceUsageReported)
    assert found.memory_mb is not None and math.isnan(found.memory_mb)


# Bytes that are none of ours.

REASONS = ("empty", "truncated", "wrong_magic", "no_registry", "unknown_fingerprint", "unknown_schema_id", "malformed",
           "trailing_bytes")  # fmt: skip
GOOD = PLAIN.encode(step_started())
WITH_ID = WITH_IDS.encode(step_started())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"\xc3\x01" + bytes(MESSAGE_SIZE_BYTES_MAX), "too_large"),
        (b"\x00", "truncated"),
        (b"\x00\x00\x00\x00", "truncated"),
        (b"\xc3\x01\x02\x03", "truncated"),
        (b"\xc3", "wrong_magic"),
        (b"\x07" + GOOD, "wrong_magic"),
        (b"{}", "wrong_magic"),
        (b"\xc3\x02" + GOOD[2:], "wrong_magic"),
        (b"\xc3\x01" + bytes(8) + GOOD[10:], "unknown_fingerprint"),
        (b"\x00\x77\x77\x77\x77" + WITH_ID[5:], "unknown_schema_id"),
        (GOOD[:10], "malformed"),
        (GOOD[:-1], "malformed"),
        (WITH_ID[:-1], "malformed"),
        (GOOD[:10] + b"\x01" + GOOD[11:], "malformed"),  # a text of negative length
        (GOOD[:10] + b"\x04\xff\xfe" + GOOD[11:], "malformed"),  # a text that is no UTF-8
        (GOOD[:10] + b"\x06\xed\xa0\x80" + GOOD[11:], "malformed"),  # a lone surrogate
        (GOOD + b"\x00", "trailing_bytes"),
        (WITH_ID + GOOD, "trailing_bytes"),
    ],
)
def test_unreadable_bytes_say_why(data: bytes | None, reason: str) -> None:
    assert refused(WITH_IDS, data) == reason


def test_an_id_without_a_registry_says_so() -> None:
    assert refused(PLAIN, WITH_ID) == "no_registry"


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["", *NAMES]), st.booleans())
def test_random_bytes_raise_nothing_but_decode_errors(body: bytes, name: str, by_id: bool) -> None:
    start = prefix_of(name, by_id) if name else b""
    for reader in (PLAIN, WITH_IDS):
        found = outcome(reader, start + body)
        assert isinstance(found, Record) or found in REASONS


def prefix_of(name: str, by_id: bool) -> bytes:
    schema = shipped()[name]
    return struct.pack(">bI", 0, Ids().id_of(schema)) if by_id else b"\xc3\x01" + schema.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_damaged_records_are_read_or_refused_but_break_nothing(name: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(records(name), st.data())
    def survives(record: Record, data: st.DataObject) -> None:
        whole = bytearray(PLAIN.encode(record))
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
        cut = data.draw(st.integers(0, len(whole)))
        for damaged in (bytes(whole), bytes(whole[:cut])):
            found = outcome(WITH_IDS, damaged)
            assert isinstance(found, Record) or found in REASONS

    survives()


# Schemas that arrive by id.


def read_with(schema: dict[str, Any], value: dict[str, Any]) -> Record | Unknown:
    ids = Ids()
    return Codec(ids).decode(framed(ids.add(schema), written(schema, value)))


def test_a_field_that_we_do_not_know_is_left_out() -> None:
    schema = changed("StepStarted", lambda s: s["fields"].append({"name": "colour", "type": "string", "default": ""}))
    assert read_with(schema, {**values_of(step_started()), "colour": "red"}) == step_started()


def test_a_field_that_the_writer_did_not_know_has_its_default() -> None:
    schema = changed("StepStarted", lambda s: s["fields"].remove(field_of(s, "heartbeat_timeout_ms")))
    record = step_started(timeout_ms=5)
    assert read_with(schema, values_of(record)) == record


def test_a_step_of_another_version_is_read() -> None:
    def evolve(schema: dict[str, Any]) -> None:
        step = field_of(schema, "steps")["type"]["items"]
        step["fields"] = [f for f in step["fields"] if f["name"] != "resources"]
        step["fields"].insert(0, {"name": "cost", "type": "double", "default": 0.0})

    schema = changed("WorkflowStarted", evolve)
    value = {
        **values_of(step_started()),
        "workflow_version": "2",
        "steps": [{"cost": 1.5, "step_id": "build", "depends_on": ["plan"]}],
    }
    found = read_with(schema, value)
    assert isinstance(found, WorkflowStarted)
    assert found.steps == (StepSpec(step_id="build", depends_on=("plan",)),)


def test_fields_in_another_order_and_of_a_narrower_type_are_read() -> None:
    def evolve(schema: dict[str, Any]) -> None:
        schema["fields"].reverse()
        field_of(schema, "occurred_at")["type"] = "int"

    assert read_with(changed("StepStarted", evolve), values_of(step_started(occurred_at=7))) == step_started(
        occurred_at=7
    )


def test_a_writer_that_lacks_a_field_without_default_is_malformed() -> None:
    schema = changed("StepStarted", lambda s: s["fields"].remove(field_of(s, "step_id")))
    ids = Ids()
    data = framed(ids.add(schema), written(schema, values_of(step_started())))
    assert refused(Codec(ids), data) == "malformed"


def test_logical_types_of_a_writer_do_not_change_the_types_that_we_read() -> None:
    def annotate(schema: dict[str, Any]) -> None:
        field_of(schema, "event_id")["type"] = {"type": "string", "logicalType": "uuid"}
        field_of(schema, "occurred_at")["type"] = {"type": "long", "logicalType": "timestamp-micros"}

    def evolve(schema: dict[str, Any]) -> None:
        annotate(schema)
        schema["fields"].append({"name": "colour", "type": "string", "default": ""})

    plain = {**values_of(step_started()), "colour": "red"}
    for change in (annotate, evolve):
        found = read_with(changed("StepStarted", change), plain)
        assert found == step_started()
        assert isinstance(found, StepStarted)
        assert type(found.event_id) is str and type(found.occurred_at) is int


def test_a_full_name_without_a_namespace_is_the_same_record() -> None:
    def rename(schema: dict[str, Any]) -> None:
        del schema["namespace"]
        schema["name"] = "kintsugi.StepStarted"

    assert read_with(changed("StepStarted", rename), values_of(step_started())) == step_started()


@pytest.mark.parametrize(
    ("name", "namespace", "shown"),
    [
        ("StepDreamed", "kintsugi", "StepDreamed"),
        ("StepStarted", "elsewhere", "elsewhere.StepStarted"),
        ("StepStarted", None, "StepStarted"),
    ],
)
def test_a_record_of_another_type_is_unknown(name: str, namespace: str | None, shown: str) -> None:
    schema = {"type": "record", "name": name, "fields": [{"name": "dream", "type": ["null", "string"]}]}
    if namespace:
        schema["namespace"] = namespace
    assert read_with(schema, {"dream": "of sheep"}) == Unknown(shown)


def test_an_unknown_record_must_be_whole_too() -> None:
    ids = Ids()
    schema = {"type": "record", "name": "Other", "fields": [{"name": "text", "type": "string"}]}
    schema_id = ids.add(schema)
    assert refused(Codec(ids), framed(schema_id, b"\x08abc")) == "malformed"
    assert refused(Codec(ids), framed(schema_id, b"\x02abc")) == "trailing_bytes"


def test_a_record_of_an_earlier_release_is_read_without_a_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = changed("StepStarted", lambda s: s["fields"].remove(field_of(s, "input_digest")))
    folder = tmp_path / "0.0.9" / "avsc"
    folder.mkdir(parents=True)
    (folder / "step_started.avsc").write_text(json.dumps(earlier), encoding="utf-8")
    monkeypatch.setattr(catalog, "RELEASED", tmp_path)
    catalog.released.cache_clear()
    try:
        start = b"\xc3\x01" + catalog.load(json.dumps(earlier)).fingerprint
        assert Codec().decode(start + written(earlier, values_of(step_started()))) == step_started()
    finally:
        catalog.released.cache_clear()


NODE = {
    "type": "record",
    "name": "Node",
    "fields": [{"name": "next", "type": ["null", "Node"]}],
}


@pytest.mark.parametrize(
    ("schema", "body", "reason"),
    [
        (NODE, b"\x02" * 1_000_000 + b"\x00", "unsafe_schema"),  # ends the process, if decoded
        (
            {"type": "record", "name": "A", "fields": [{"name": "x", "type": {"type": "array", "items": "null"}}]},
            b"\xff\xff\xff\xff\xff\xff\xff\x7f\x00",  # spins for years, if decoded
            "unsafe_schema",
        ),
        ("string", b"\x02a", "unsafe_schema"),
        ({"type": "array", "items": "string"}, b"\x00", "unsafe_schema"),
        ("{", b"", "bad_schema"),
        ("[" * 5000, b"", "bad_schema"),
        ({"type": "record", "name": "A", "fields": [{"name": "x"}]}, b"", "bad_schema"),
        ({"type": "record", "name": "A", "fields": 7}, b"", "bad_schema"),
        ({"type": "record", "fields": []}, b"", "bad_schema"),
        (
            {
                "type": "record",
                "name": "A",
                "fields": [{"name": "x", "type": {"type": "fixed", "name": "A", "size": 1}}],
            },
            b"\x02",
            "bad_schema",
        ),
        ({"type": "record", "name": "A", "fields": [{"name": "x", "type": "B"}]}, b"\x02", "unsafe_schema"),
    ],
)
def test_a_schema_that_cannot_be_used_poisons_the_record_alone(schema: Any, body: bytes, reason: str) -> None:
    ids = Ids()
    text = schema if isinstance(schema, str) and schema[0] in "[{" else json.dumps(schema)
    reader = Codec(ids)
    assert refused(reader, framed(ids.add(text), body)) == reason
    assert reader.decode(WITH_ID) == step_started()


def test_a_parsed_schema_smuggled_in_as_text_is_not_trusted() -> None:
    """fastavro takes a schema with this mark as parsed already, whatever is in it."""
    ids = Ids()
    smuggled = {
        "type": "record",
        "name": "kintsugi.A",
        "__fastavro_parsed": True,
        "__named_schemas": {"kintsugi.Node": NODE},
        "fields": [{"name": "x", "type": "kintsugi.Node"}],
    }
    assert refused(Codec(ids), framed(ids.add(smuggled), b"\x02" * 1_000_000)) == "unsafe_schema"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["record", "array", "fixed"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "fields", "items", "values", "symbols", "size", "namespace", "default"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(json_values, st.binary(max_size=40))
def test_any_text_for_a_schema_is_a_decode_error_or_a_schema(schema: Any, body: bytes) -> None:
    ids = Ids()
    reader = Codec(ids)
    found = outcome(reader, framed(ids.add(json.dumps(schema)), body))
    assert isinstance(found, Unknown) or found in ("bad_schema", "unsafe_schema", "malformed", "trailing_bytes")
    assert reader.decode(WITH_ID) == step_started()


def test_without_memory_a_record_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be set aside, and it is nobody's fault. FAULTS.md row 23."""
    data = PLAIN.encode(step_started())

    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(codec, "schemaless_reader", no_memory)
    with pytest.raises(MemoryError):
        PLAIN.decode(data)
