"""Records that nobody can read or apply: the partition moves on, the bytes are kept, a counter says so."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from consumers.dead_letter import SIZE_HEADER, VALUE_SIZE_BYTES_MAX
from schemas.codec import Codec
from schemas.records import Record
from schemas.records.commands import CancelWorkflow
from schemas.records.events import StepStarted
from schemas.topics import EVENTS

from .kit import Role, Topics, build, failing, wait_for

Start = Callable[..., Role]


def _step(workflow_id: str, **fields: object) -> Record:
    return build(StepStarted, workflow_id, **{"step_id": "s", "step_run_id": str(uuid.uuid4()), **fields})


def _bytes(topics: Topics, name: str, key: str) -> bytes | None:
    """The bytes of one kind of bad record, as a service that lost its mind would write them."""
    good = topics.codec.encode(_step(key))
    made: dict[str, Callable[[], bytes | None]] = {
        "unknown_schema_id": lambda: struct.pack(">bI", 0, 2_000_000_000) + good[5:],
        "malformed": lambda: good[:-3],
        "wrong_magic": lambda: b"\x07" + good,
        "unknown_fingerprint": lambda: b"\xc3\x01" + bytes(8) + good[5:],
        "truncated": lambda: b"\x00\x00",
        "empty": lambda: None,
        "trailing_bytes": lambda: good + b"\x00",
        "bad_id": lambda: topics.codec.encode(_step("not-a-uuid")),
        "wrong_key": lambda: topics.codec.encode(_step(str(uuid.uuid4()))),
        "too_long": lambda: topics.codec.encode(_step(key, step_id="x" * 300)),
        "bad_time": lambda: topics.codec.encode(_of(_step(key), occurred_at=-1)),
        "wrong_topic": lambda: Codec(topics.registry).encode(
            build(CancelWorkflow, key, command_id=str(uuid.uuid4()), expires_at=0, reason="r", actor="a")
        ),
    }
    return made[name]()


def _of(record: Record, **changed: object) -> Record:
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return type(record)(**{**fields, **changed})


REASONS = ("unknown_schema_id", "malformed", "wrong_magic", "unknown_fingerprint", "truncated", "empty",
           "trailing_bytes", "bad_id", "wrong_key", "too_long", "bad_time", "wrong_topic")  # fmt: skip


def test_every_kind_of_bad_record_is_set_aside_with_its_reason(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    keys = {reason: str(uuid.uuid4()) for reason in REASONS}
    headers = [("traceparent", b"00-11111111111111111111111111111111-2222222222222222-01"), ("own", b"\xff\x00")]
    values = {reason: _bytes(topics, reason, key) for reason, key in keys.items()}
    for reason, key in keys.items():
        topics.raw(key.encode(), values[reason], headers)
        topics.put(*failing(key))  # behind it, in the same partition
    moved_on = set(keys.values())
    wait_for("commands behind each", lambda: {c.workflow_id for c in topics.commands(moved_on)} == moved_on)
    for reason, key in keys.items():
        letter = topics.dead_letters(key.encode())[0]
        source = next(m for m in topics.read(EVENTS, {key}) if (m.value() or None) == (values[reason] or None))
        found = dict(letter.headers() or [])
        assert letter.value() == values[reason]
        assert letter.timestamp()[1] == source.timestamp()[1]
        assert list(letter.headers() or [])[:2] == headers
        assert found["__connect.errors.exception.message"].split(b":")[0].decode() == reason
        assert found["__connect.errors.topic"] == EVENTS.encode()
        assert found["__connect.errors.partition"] == str(source.partition()).encode()
        assert found["__connect.errors.offset"] == str(source.offset()).encode()
        assert found["__connect.errors.connector.name"] == b"kintsugi"
        assert role.metric("kintsugi_dlq_records_total", reason=reason) == 1
    assert role.stop() == 0


@pytest.mark.parametrize("first", [b"\x02", b"\x00\x00\x00\x00\x01", b"\xc3\x01"])
def test_a_mebibyte_of_junk_is_set_aside(topics: Topics, start: Start, first: bytes) -> None:
    role = start()
    role.wait_log("partitions assigned")
    key = str(uuid.uuid4())
    junk = first + os.urandom(1024 * 1024)
    topics.raw(key.encode(), junk)
    topics.put(*failing(key))
    wait_for("a command", lambda: topics.commands({key}))
    assert [m.value() for m in topics.dead_letters(key.encode())] == [junk]


def test_a_record_without_a_key_is_set_aside(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    before = len(topics.dead_letters(None))
    topics.raw(None, topics.codec.encode(_step(str(uuid.uuid4()))))
    wait_for("a dead letter", lambda: len(topics.dead_letters(None)) == before + 1)
    assert role.metric("kintsugi_dlq_records_total", reason="null_key") >= 1


def test_a_restart_does_not_set_the_same_record_aside_again(topics: Topics, start: Start) -> None:
    key = str(uuid.uuid4())
    topics.raw(key.encode(), b"junk")
    for _ in range(2):
        role = start()
        role.wait_log("partitions assigned")
        wait_for("no lag", lambda role=role: role.metric("kintsugi_consumer_lag_records") == 0)
        wait_for("a dead letter", lambda: topics.dead_letters(key.encode()))
        assert role.stop() == 0
    assert len(topics.dead_letters(key.encode())) == 1


def test_a_record_that_no_dead_letter_can_hold_stays_where_it_is_and_is_told(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    key = str(uuid.uuid4())
    packs = Producer(
        {"bootstrap.servers": topics.at.kafka, "compression.type": "zstd", "message.max.bytes": 100_000_000}
    )
    size = VALUE_SIZE_BYTES_MAX + 1024 * 1024
    packs.produce(EVENTS, b"\x07" + bytes(size - 1), key.encode())
    assert packs.flush(20) == 0
    topics.put(*failing(key))
    wait_for("a command", lambda: topics.commands({key}))
    (letter,) = topics.dead_letters(key.encode())
    found = dict(letter.headers() or [])
    assert (letter.value(), found[SIZE_HEADER]) == (None, str(size).encode())
    assert int(found["__connect.errors.offset"]) >= 0
    assert role.stop() == 0
