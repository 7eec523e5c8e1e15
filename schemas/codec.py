"""Records to bytes and back, in both wire forms.

Confluent's form is `00`, a big-endian 32-bit schema id, the Avro body. Avro's single-object form is `C3 01`, a
little-endian CRC-64 fingerprint, the body. The reader tells them apart by the first bytes. Decoding is one dictionary
look-up and one `schemaless_reader`; schema resolution runs only when the writer's schema differs from ours, and so do
upcasters (`upcasters`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from operator import attrgetter
from typing import Any, Protocol

from fastavro import schemaless_reader, schemaless_writer
from fastavro.schema import to_parsing_canonical_form

from .catalog import NAMESPACE, Schema, by_fingerprint, readable, released, shipped
from .errors import DecodeError
from .lint import unsafe_reason
from .records import RECORD_TYPES, Record
from .records.events import StepSpec
from .topics import MESSAGE_SIZE_BYTES_MAX
from .upcasters import Fill, fills

_CONFLUENT = struct.Struct(">bI")
_SINGLE_OBJECT = b"\xc3\x01"
#: Writer schemas seen by one process. The shipped ones number about 40 per release.
WRITERS_MAX = 4096


class SchemaIds(Protocol):
    """What the codec asks of a schema registry."""

    def id_of(self, schema: Schema) -> int:
        """Registered id of a shipped schema; RetriableError when unreachable, FatalError when not registered."""

    def text_of(self, schema_id: int) -> str | None:
        """Schema text by id; None when the registry does not know it; RetriableError when unreachable."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A record of a type this release does not know: readable, and of no concern but to who must answer it."""

    name: str
    value: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(slots=True)
class _Writer:
    """How to read what one writer schema wrote. `build` is None for records we do not know."""

    name: str
    parsed: Any
    reader: Any
    build: Callable[[dict[str, Any]], Record] | None


_TEXTS = {"type": "array", "items": "string"}


def _builder(name: str) -> Callable[[dict[str, Any]], Record] | None:
    kind = RECORD_TYPES.get(name)
    if kind is None:
        return None
    record_type = kind
    if name == "WorkflowStarted":

        def started(value: dict[str, Any]) -> Record:
            value["steps"] = tuple(_step(s) for s in value["steps"])
            return record_type(**value)

        return started
    texts = tuple(f["name"] for f in json.loads(shipped()[name].text)["fields"] if f["type"] == _TEXTS)
    if texts:

        def with_texts(value: dict[str, Any]) -> Record:
            for field in texts:
                value[field] = tuple(value[field])
            return record_type(**value)

        return with_texts
    return lambda value: record_type(**value)


def _upcasting(
    build: Callable[[dict[str, Any]], Record], missing: tuple[tuple[str, Fill], ...]
) -> Callable[[dict[str, Any]], Record]:
    def upcast(value: dict[str, Any]) -> Record:
        value.update([(name, fill(value)) for name, fill in missing])  # each sees what the writer said
        return build(value)

    return upcast


def _step(value: dict[str, Any]) -> StepSpec:
    value["depends_on"] = tuple(value["depends_on"])
    value["resources"] = tuple(value["resources"])
    return StepSpec(**value)


def _dumper(schema: Schema) -> Callable[[Record], dict[str, Any]]:
    names = tuple(f["name"] for f in json.loads(schema.text)["fields"])
    values = attrgetter(*names)
    if schema.name != "WorkflowStarted":
        return lambda record: dict(zip(names, values(record), strict=True))
    step_names = tuple(StepSpec.__dataclass_fields__)
    step_values = attrgetter(*step_names)

    def started(record: Record) -> dict[str, Any]:
        value = dict(zip(names, values(record), strict=True))
        value["steps"] = [dict(zip(step_names, step_values(s), strict=True)) for s in value["steps"]]
        return value

    return started


class Codec:
    """Encodes and decodes records. Not thread-safe by contract of `encode` alone: give each thread its own.

    With `ids` it writes Confluent's form, without it the single-object form; it reads both either way.
    """

    def __init__(self, ids: SchemaIds | None = None) -> None:
        self._ids = ids
        self._buffer = BytesIO()
        self._encoders: dict[str, tuple[bytes, Any, Callable[[Record], dict[str, Any]]]] = {}
        self._by_id: dict[int, _Writer] = {}
        self._by_fingerprint: dict[bytes, _Writer] = {}

    def encode(self, record: Record) -> bytes:
        """Bytes of a record. Raises ValueError/TypeError for a field value that its schema does not allow."""
        name = type(record).__name__
        found = self._encoders.get(name)
        if found is None:
            schema = shipped()[name]
            prefix = (
                _SINGLE_OBJECT + schema.fingerprint
                if self._ids is None
                else _CONFLUENT.pack(0, self._ids.id_of(schema))
            )
            found = self._encoders[name] = (prefix, schema.parsed, _dumper(schema))
        prefix, parsed, dump = found
        buffer = self._buffer
        buffer.seek(0)
        buffer.truncate()
        buffer.write(prefix)
        try:
            schemaless_writer(buffer, parsed, dump(record))
        except OverflowError as error:
            raise ValueError(f"{name}: {error}") from None
        return buffer.getvalue()

    def decode(self, data: bytes | None) -> Record | Unknown:
        """The record in `data`. DecodeError when it is none; RetriableError when the registry is away."""
        if not data:
            raise DecodeError("empty", "the record has no value")
        if len(data) > MESSAGE_SIZE_BYTES_MAX:
            raise DecodeError("too_large", f"{len(data)} bytes, {MESSAGE_SIZE_BYTES_MAX} allowed")
        writer, start = self._writer(data)
        buffer = BytesIO(data)
        buffer.seek(start)
        try:
            value: Any = schemaless_reader(buffer, writer.parsed, writer.reader)
            complete = buffer.tell() == len(data)
            if complete and writer.build is not None:
                return writer.build(value)
        except MemoryError:
            raise  # no fault of the record: who reads it next may have room
        except Exception as error:  # whatever a damaged body makes the decoder raise, the record is unreadable
            raise DecodeError("malformed", f"{writer.name}: {type(error).__name__}: {error}"[:500]) from error
        if not complete:
            raise DecodeError("trailing_bytes", f"{writer.name}: {len(data) - buffer.tell()} bytes too many")
        return Unknown(writer.name, value)

    def kind_of(self, data: bytes | None) -> type[Record] | None:
        """The record type that `data` claims to be, without reading it. None when it is none of ours or cannot be read;
        RetriableError when the registry is away."""
        try:
            return RECORD_TYPES.get(self._writer(data)[0].name) if data else None
        except DecodeError:
            return None

    def _writer(self, data: bytes) -> tuple[_Writer, int]:
        if data[0] == 0:
            if len(data) < 5:
                raise DecodeError("truncated", f"{len(data)} bytes, a schema id needs 5")
            schema_id = _CONFLUENT.unpack_from(data)[1]
            writer = self._by_id.get(schema_id)
            if writer is None:
                writer = self._remember_id(schema_id)
            return writer, 5
        if data[:2] == _SINGLE_OBJECT:
            if len(data) < 10:
                raise DecodeError("truncated", f"{len(data)} bytes, a fingerprint needs 10")
            print_ = data[2:10]
            writer = self._by_fingerprint.get(print_)
            if writer is None:
                schema = by_fingerprint().get(print_) or released().get(print_)
                if schema is None:
                    raise DecodeError("unknown_fingerprint", f"no schema with fingerprint {print_.hex()}")
                writer = self._by_fingerprint[print_] = _writer_of(schema.text)
            return writer, 10
        raise DecodeError("wrong_magic", f"first bytes {data[:2].hex()} are of no known form")

    def _remember_id(self, schema_id: int) -> _Writer:
        if self._ids is None:
            raise DecodeError("no_registry", f"schema id {schema_id}, but no schema registry is configured")
        text = self._ids.text_of(schema_id)
        if text is None:
            raise DecodeError("unknown_schema_id", f"the schema registry does not know id {schema_id}")
        if len(self._by_id) >= WRITERS_MAX:
            self._by_id.clear()
        writer = self._by_id[schema_id] = _writer_of(text)
        return writer


def _writer_of(text: str) -> _Writer:
    try:
        raw = json.loads(text)
        reason = unsafe_reason(raw)
        if reason is None and not (isinstance(raw, dict) and raw.get("type") == "record"):
            reason = "not a record"
        if reason is not None:
            raise DecodeError("unsafe_schema", reason)
        # The canonical form has full names and no logical types, which would give fields other types than ours have.
        canonical = to_parsing_canonical_form(raw)
        form = json.loads(canonical)
        full = str(form["name"])
        name = full.removeprefix(f"{NAMESPACE}.")
        ours = shipped().get(name) if full != name else None
        same = ours is not None and canonical == ours.canonical
        build = None if ours is None else _builder(name)
        missing = () if ours is None or same else fills(name, {field["name"] for field in form["fields"]})
        return _Writer(
            name=name,
            parsed=ours.parsed if ours is not None and same else readable(form),
            reader=None if ours is None or same else ours.parsed,
            build=build if build is None or not missing else _upcasting(build, missing),
        )
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError("bad_schema", f"the writer's schema cannot be read: {error}"[:500]) from error
