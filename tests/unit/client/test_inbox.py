"""From bytes to a command: what is none, and what is of another release."""

from __future__ import annotations

import json
import threading
import uuid
from typing import Any

import pytest
from kintsugi_client._schemas import codec as codec_module
from kintsugi_client._schemas.catalog import Schema, load, shipped
from kintsugi_client._schemas.codec import Codec
from kintsugi_client._schemas.errors import RetriableError
from kintsugi_client._schemas.records.commands import RetryStep
from kintsugi_client.inbox import ForeignCommand, Inbox

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Bytes:
    """A Kafka message with this value."""

    def __init__(self, value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> None:
        self._value = value
        self._headers = headers

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 17

    def timestamp(self) -> tuple[int, int]:
        return 2, 5_000


def command(**fields: Any) -> RetryStep:
    values: dict[str, Any] = {
        "event_id": str(uuid.uuid4()),
        "workflow_id": str(uuid.uuid4()),
        "workflow_type": "mine",
        "occurred_at": 1,
        "producer": "test",
        "command_id": str(uuid.uuid4()),
        "expires_at": 1,
        "reason": "",
        "actor": "engine",
        "step_id": "build",
    }
    return RetryStep(**{**values, **fields})


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(Codec(), {"mine"}.__contains__)


def read(inbox: Inbox, value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> Any:
    return inbox.read(Bytes(value, headers), threading.Event())  # type: ignore[arg-type]


def test_a_command_is_read_with_its_place_time_and_trace(inbox: Inbox) -> None:
    sent = command()
    received = read(inbox, Codec().encode(sent), [("traceparent", TRACE.encode())])
    assert received.command == sent
    assert (received.place, received.timestamp_ms, received.trace) == ((2, 17), 5_000, TRACE)
    assert inbox.unreadable == 0


def test_a_command_to_another_service_is_none(inbox: Inbox) -> None:
    assert read(inbox, Codec().encode(command(workflow_type="theirs"))) is None
    assert inbox.unreadable == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\x00\x00\x00\x00\x07abc",
        b"\x02junk",
        b"\xc3\x01" + bytes(8),
        Codec().encode(command())[:-4],
        Codec().encode(command()) + b"x",
        b"\x00" * (1024 * 1024),
        Codec().encode(command(workflow_id="no uuid")),
        Codec().encode(command(command_id="no uuid")),
        Codec().encode(command(step_id="x" * 1_000)),
    ],
)
def test_what_cannot_be_read_is_counted_and_skipped(inbox: Inbox, value: bytes | None) -> None:
    assert read(inbox, value) is None
    assert inbox.unreadable == 1


def test_an_event_in_the_command_topic_is_no_command(inbox: Inbox) -> None:
    from kintsugi_client._schemas.records.events import WorkflowResumed

    sent = command()
    event = WorkflowResumed(
        event_id=sent.event_id,
        workflow_id=sent.workflow_id,
        workflow_type="mine",
        occurred_at=1,
        producer="t",
        reason="",
        actor="",
    )
    assert read(inbox, Codec().encode(event)) is None


class Ids:
    """A registry that knows one schema of a newer release, or is away."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.away = 0

    def id_of(self, schema: Schema) -> int:
        return 7

    def text_of(self, schema_id: int) -> str | None:
        if self.away:
            self.away -= 1
            raise RetriableError("the registry is away")
        return self.schema.text if schema_id == 7 else None


def newer(drop: str = "") -> Schema:
    raw = json.loads(shipped()["RetryStep"].text)
    raw["name"] = "TeleportStep"
    raw["fields"] = [f for f in raw["fields"] if f["name"] != drop]
    raw["fields"].append({"name": "destination", "type": "string", "doc": "Where to."})
    return load(json.dumps(raw))


def bytes_of(schema: Schema, **fields: Any) -> bytes:
    from io import BytesIO

    from fastavro import schemaless_writer

    sent = command(**fields)
    values = {name: getattr(sent, name) for name in sent.__dataclass_fields__}
    buffer = BytesIO(b"\x00\x00\x00\x00\x07")
    buffer.seek(5)
    schemaless_writer(buffer, schema.parsed, {**values, "destination": "the moon"})
    return buffer.getvalue()


def test_a_command_of_a_newer_release_can_be_answered() -> None:
    schema = newer()
    inbox = Inbox(Codec(Ids(schema)), {"mine"}.__contains__)
    received = read(inbox, bytes_of(schema, attempt_number=3))
    assert isinstance(received.command, ForeignCommand)
    assert (received.command.name, received.command.attempt_number) == ("TeleportStep", 3)
    assert read(inbox, bytes_of(schema, workflow_type="theirs")) is None


@pytest.mark.parametrize("fields", [{"command_id": "x"}, {"workflow_id": ""}, {"error_id": "x"}])
def test_a_newer_record_without_proper_ids_is_no_command(fields: dict[str, str]) -> None:
    schema = newer()
    assert read(Inbox(Codec(Ids(schema)), {"mine"}.__contains__), bytes_of(schema, **fields)) is None


@pytest.mark.parametrize("drop", ["command_id", "expires_at"])
def test_a_newer_record_that_lacks_a_commands_fields_is_no_command(drop: str) -> None:
    schema = newer(drop)
    assert read(Inbox(Codec(Ids(schema)), {"mine"}.__contains__), bytes_of(schema)) is None


def test_a_registry_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.inbox._RETRY_S", 0.01)
    ids = Ids(shipped()["RetryStep"])
    ids.away = 3
    sent = command()
    received = read(Inbox(Codec(ids), {"mine"}.__contains__), Codec(ids).encode(sent))
    assert received.command == sent


def test_a_stop_ends_the_wait() -> None:
    ids = Ids(shipped()["RetryStep"])
    ids.away = 10**9
    stopping = threading.Event()
    inbox = Inbox(Codec(ids), {"mine"}.__contains__)
    threading.Timer(0.05, stopping.set).start()
    assert inbox.read(Bytes(Codec(ids).encode(command())), stopping) is None  # type: ignore[arg-type]
    assert codec_module.Unknown("x") == codec_module.Unknown("x", {"a": 1})
