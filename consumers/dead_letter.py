"""Records that cannot be read or applied, set aside: key, value, headers and time untouched, and why beside them.

The recovery role and the coordinator write them. A batch that is done again writes them again; readers tell copies
apart by topic, partition and offset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from confluent_kafka import Message

from schemas.dead_letters import STAGE_DECODE
from schemas.errors import PoisonError
from schemas.headers import Headers
from schemas.topics import MESSAGE_SIZE_BYTES_MAX

#: A service's producer may compress: what was within the broker's limit on the wire may be larger here, and no dead
#: letter could hold it. It stays where it stands; the headers say where that is, and how large it is.
VALUE_SIZE_BYTES_MAX = MESSAGE_SIZE_BYTES_MAX
SIZE_HEADER = "kintsugi.value.size.bytes"
#: An exception's message may quote the record; a header is no place for a megabyte.
_TEXT_MAX = 1000
#: Before the names of the headers that say why: Kafka Connect's.
PREFIX = "__connect.errors."


def raw(part: str | bytes | None) -> bytes | None:
    """A key or value as bytes; the client library's types allow text, its consumer gives bytes."""
    return part.encode() if isinstance(part, str) else part


def headers_of(message: Message) -> Headers:
    """The record's own headers."""
    return list(cast(Headers, message.headers() or ()))


def value_of(message: Message) -> bytes | None:
    """The record's value; None for one that no dead letter can hold."""
    value = raw(message.value())
    return None if value is not None and len(value) > VALUE_SIZE_BYTES_MAX else value


def dead_letter_headers(message: Message, error: Exception, stage: str) -> Headers:
    """The record's own headers, then Kafka Connect's; none that is there already is overwritten."""
    reason = reason_of(error)
    kind = type(error)
    found = headers_of(message)
    values = {
        "topic": str(message.topic()),
        "partition": str(message.partition()),
        "offset": str(message.offset()),
        "connector.name": "kintsugi",
        "task.id": str(message.partition()),
        "stage": stage,
        "class.name": "schemas.admission" if stage == STAGE_DECODE else "engine.fold",
        "exception.class.name": f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": f"{reason}: {error}"[:_TEXT_MAX],
        # Where in our code it was found out tells a reader nothing; the message does.
        "exception.stacktrace": "",
    }
    taken = {name for name, _ in found}
    size = len(raw(message.value()) or b"")
    if size > VALUE_SIZE_BYTES_MAX:
        found.append((SIZE_HEADER, str(size).encode()))
    return found + [
        (PREFIX + name, value.encode("utf-8", "replace"))
        for name, value in values.items()
        if PREFIX + name not in taken
    ]


def said_in(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """What a dead letter's headers say of why it is one, by name, without the prefix."""
    return {
        name.removeprefix(PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(PREFIX)
    }


def reason_of(error: Exception) -> str:
    """A short word for counters and headers."""
    return error.reason if isinstance(error, PoisonError) else "not_applicable"
