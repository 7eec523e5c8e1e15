"""Values in Postgres' binary form, made from what rows hold: integers for times, text for ids and JSON.

By hand and not by psycopg, whose arrays are dumped element by element in Python, and whose types differ from the rows'.
The server gets exactly the columns' types and casts nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

NULL = b"\xff\xff\xff\xff"
#: Postgres counts from 2000-01-01.
_EPOCH_US = 946_684_800_000_000

_size = struct.Struct(">i").pack
_long = struct.Struct(">iq").pack
_int = struct.Struct(">ii").pack
_head = struct.Struct(">iiIii").pack


def _text(value: str) -> bytes:
    data = value.encode()
    return _size(len(data)) + data


def _uuid(value: str) -> bytes:
    return b"\x00\x00\x00\x10" + bytes.fromhex(value.replace("-", ""))


def _bytea(value: bytes) -> bytes:
    return _size(len(value)) + value


def _jsonb(value: str) -> bytes:
    data = value.encode()
    return _size(len(data) + 1) + b"\x01" + data


class Kind(NamedTuple):
    """A kind of column: the name and number of its type in Postgres, and how a value is written, length first."""

    type: str
    oid: int
    field: Callable[[Any], bytes]


KINDS = {
    "text": Kind("text", 25, _text),
    "uuid": Kind("uuid", 2950, _uuid),
    "jsonb": Kind("jsonb", 3802, _jsonb),
    "bytea": Kind("bytea", 17, _bytea),
    "time": Kind("timestamptz", 1184, lambda value: _long(8, value - _EPOCH_US)),
    "int": Kind("int4", 23, lambda value: _int(4, value)),
    "bigint": Kind("int8", 20, lambda value: _long(8, value)),
    "bool": Kind("bool", 16, lambda value: b"\x00\x00\x00\x01\x01" if value else b"\x00\x00\x00\x01\x00"),
}


class Array(bytes):
    """An array in binary form, to be given to a statement as it is."""


def array(kind: Kind, values: Sequence[Any]) -> Array:
    """An array of one dimension. psycopg.DataError for a value that the type cannot hold, as the server would say."""
    if not values:
        return Array(struct.pack(">iiI", 0, 0, kind.oid))
    field, first, count = kind.field, values[0], len(values)
    try:
        if values.count(first) == count:  # as in every second column
            body = (NULL if first is None else field(first)) * count
        else:
            body = b"".join([NULL if value is None else field(value) for value in values])
    except (struct.error, ValueError) as error:
        raise psycopg.DataError(f"{kind.type}: {error}") from error
    return Array(_head(1, None in values, kind.oid, count, 1) + body)


class ArrayDumper(Dumper):
    """Gives an Array to psycopg; the statement says its type, by a cast."""

    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        """As it is."""
        return obj
