"""A record of a Kafka partition as the broker gave it, and its Avro form in the archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from fastavro import parse_schema, schemaless_reader

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "LogRecord",
    "namespace": "kintsugi.archive",
    "doc": "A record of a Kafka partition as the broker gave it.",
    "fields": [
        {"name": "offset", "type": "long"},
        {"name": "timestamp_ms", "type": "long"},
        {"name": "timestamp_type", "type": "int", "doc": "0 none, 1 set by the producer, 2 set by the broker"},
        {"name": "key", "type": ["null", "bytes"]},
        {"name": "value", "type": ["null", "bytes"]},
        {
            "name": "headers",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Header",
                    "fields": [{"name": "key", "type": "string"}, {"name": "value", "type": ["null", "bytes"]}],
                },
            },
        },
    ],
}
_PARSED = parse_schema(SCHEMA)

#: Order and duplicates are kept; a value may be missing.
RecordHeaders = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of a partition, from the archive or from the log: the two cannot be told apart."""

    partition: int
    offset: int
    timestamp_ms: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders


def long(number: int) -> bytes:
    """A number as Avro writes it: zigzag, seven bits a byte."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


#: Lengths of nearly all keys, values and headers, encoded.
_LENGTHS = [long(number) for number in range(4096)]
_SOME, _NONE = b"\x02", b"\x00"


def sized(data: bytes) -> bytes:
    """Bytes or text behind their length."""
    size = len(data)
    return (_LENGTHS[size] if size < len(_LENGTHS) else long(size)) + data


def _nullable(data: bytes | None) -> bytes:
    return _NONE if data is None else _SOME + sized(data)


def encode(record: LogRecord) -> bytes:
    """The record's Avro bytes; what the tests hold against fastavro's reader, at twice its writer's speed."""
    parts = [
        long(record.offset),
        long(record.timestamp_ms),
        long(record.timestamp_type),
        _nullable(record.key),
        _nullable(record.value),
    ]
    if record.headers:
        parts.append(long(len(record.headers)))
        for key, value in record.headers:
            parts.append(sized(key.encode()))
            parts.append(_nullable(value))
    parts.append(_NONE)
    return b"".join(parts)


def decode(partition: int, count: int, raw: bytes) -> Iterator[LogRecord]:
    """So many records, one behind the other. ValueError when the bytes are not exactly those records."""
    source = BytesIO(raw)
    for _ in range(count):
        try:
            found: Any = schemaless_reader(source, _PARSED, None)
        except Exception as error:  # fastavro raises what it meets
            raise ValueError(f"a record cannot be read: {type(error).__name__}") from None
        yield LogRecord(
            partition,
            found["offset"],
            found["timestamp_ms"],
            found["timestamp_type"],
            found["key"],
            found["value"],
            tuple([(header["key"], header["value"]) for header in found["headers"]]),
        )
    if source.tell() != len(raw):
        raise ValueError("bytes behind the last record")
