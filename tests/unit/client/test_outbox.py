"""The buffer in front of Kafka, while Kafka is not there: what it takes, what it refuses first, what it reports."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from kintsugi_client import BufferFullError, ClosedError, NotDeliveredError
from kintsugi_client._schemas.catalog import Schema, shipped
from kintsugi_client._schemas.codec import Codec
from kintsugi_client._schemas.errors import FatalError, RetriableError
from kintsugi_client._schemas.records import Record
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    StepCompleted,
    StepProgressed,
    StepStarted,
    WorkflowStarted,
)
from kintsugi_client.outbox import Delivery, Outbox
from kintsugi_client.schema_ids import WRITTEN, SchemaIds
from kintsugi_client.settings import Settings

from .kit import Written, wait_for


def settings(**producer: Any) -> Settings:
    return Settings(kafka="127.0.0.1:1", service="test", common={}, of_producer=producer, of_consumer={})


def record(kind: type[Record], **fields: Any) -> Record:
    more: dict[type[Record], dict[str, Any]] = {
        StepStarted: {"step_id": "a", "step_run_id": str(uuid.uuid4())},
        StepProgressed: {"step_id": "a", "step_run_id": str(uuid.uuid4())},
        StepCompleted: {"step_id": "a", "step_run_id": str(uuid.uuid4()), "duration_ms": 1},
        WorkflowStarted: {"workflow_version": "1", "steps": ()},
        CheckpointCreated: {
            "checkpoint_id": str(uuid.uuid4()),
            "step_id": "a",
            "checkpoint_type": "manual",
            "sequence": 1,
            "state_version": "1",
            "codec": "identity",
            "size_bytes": 2,
            "digest": "0" * 64,
            "chain_digest": "0" * 64,
            "status": "running",
            "state": b"{}",
        },
    }
    return kind(
        event_id=str(uuid.uuid4()),
        workflow_id=str(uuid.uuid4()),
        workflow_type="t",
        occurred_at=1,
        producer="p",
        **{**more[kind], **fields},
    )


@pytest.fixture
def make() -> Iterator[Callable[..., Outbox]]:
    made: list[Outbox] = []

    def outbox(ids: SchemaIds | None = None, interceptors: tuple[Any, ...] = (), **producer: Any) -> Outbox:
        made.append(Outbox(settings(**producer), ids, interceptors))
        return made[-1]

    yield outbox
    for found in made:
        found.close(0)


def fill(outbox: Outbox, kind: type[Record], **fields: Any) -> int:
    """Send until it is refused; how many were taken."""
    for count in range(10_000):
        try:
            outbox.send(record(kind, **fields))
        except BufferFullError:
            return count
    raise AssertionError("never full")


def test_what_matters_least_is_refused_first(make: Callable[..., Outbox]) -> None:
    outbox = make(**{"queue.buffering.max.messages": 100})
    taken = [fill(outbox, kind) for kind in (StepProgressed, CheckpointCreated, StepCompleted)]
    assert taken == [80, 10, 10]
    with pytest.raises(BufferFullError, match=r"\(100 records or 131072 KiB\): StepStarted refused"):
        outbox.send(record(StepStarted))
    report = outbox.undelivered()
    assert (report.waiting, report.given_up, report.refused) == (100, 0, 4)
    assert report.by_type == {"StepProgressed": 81, "CheckpointCreated": 11, "StepCompleted": 11, "StepStarted": 1}


def test_bytes_count_too(make: Callable[..., Outbox]) -> None:
    outbox = make(**{"queue.buffering.max.kbytes": 100})
    assert fill(outbox, CheckpointCreated, state=bytes(20_000)) == 4  # of 90 KiB
    outbox.send(record(StepCompleted))


def test_a_record_larger_than_any_message_is_refused_at_once(make: Callable[..., Outbox]) -> None:
    outbox = make()
    with pytest.raises(NotDeliveredError, match="MSG_SIZE_TOO_LARGE"):
        outbox.send(record(CheckpointCreated, state=bytes(13 * 1024 * 1024)))
    assert outbox.undelivered().refused == 1


def test_a_close_reports_what_was_not_delivered_and_takes_nothing_more(make: Callable[..., Outbox]) -> None:
    outbox = make()
    waiting = [outbox.send(record(StepStarted)) for _ in range(3)]
    report = outbox.close(0)
    assert report and (report.waiting, report.by_type) == (3, {"StepStarted": 3})
    assert outbox.close(5) == report
    with pytest.raises(ClosedError, match="StepStarted not recorded"):
        outbox.send(record(StepStarted))
    # Who waits for one of them is told at once.
    for delivery in waiting:
        with pytest.raises(NotDeliveredError, match="PURGE"):
            delivery.wait(5)


def test_nothing_waiting_is_nothing_to_report(make: Callable[..., Outbox]) -> None:
    assert not make().close(0)


def test_a_record_that_its_schema_does_not_allow_is_the_callers_mistake(make: Callable[..., Outbox]) -> None:
    outbox = make()
    with pytest.raises((TypeError, ValueError)):
        outbox.send(record(StepStarted, step_id=7))
    assert not outbox.undelivered()


def test_interceptors_see_each_record_in_turn(make: Callable[..., Outbox]) -> None:
    seen: list[str] = []

    def note(word: str) -> Callable[[Record], Record]:
        return lambda given: seen.append(word) or given  # type: ignore[func-returns-value]

    make(None, (note("first"), note("second"))).send(record(StepStarted))
    assert seen == ["first", "second"]


def test_a_producer_that_broke_is_replaced(make: Callable[..., Outbox], monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = make()
    lost = outbox.send(record(StepStarted))
    broken = outbox._producer

    class Broken:
        def produce(self, *_: object, **__: object) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL))

        def __getattr__(self, name: str) -> Any:
            return getattr(broken, name)

    monkeypatch.setattr(outbox, "_producer", Broken())
    outbox.send(record(StepCompleted))
    wait_for("the loss", lambda: outbox.undelivered().given_up == 1)
    with pytest.raises(NotDeliveredError):
        lost.wait(5)
    assert outbox.undelivered().by_type == {"StepStarted": 1, "StepCompleted": 1}


def test_a_delivery_tells_all_who_wait() -> None:
    delivery, told = Delivery(), []
    delivery.then(lambda: told.append("before"))
    assert not delivery.known and not delivery.wait_known(0)
    delivery.settle(None, Written(4))  # type: ignore[arg-type]
    delivery.then(lambda: told.append("after"))
    assert told == ["before", "after"] and delivery.known
    delivery.wait(0)
    assert (delivery.partition, delivery.offset, delivery.timestamp_us) == (3, 4, 1_700_000_000_000_000)


# -- schema ids -------------------------------------------------------------------------------------------------------


class Registry:
    """A registry that answers as it is told."""

    def __init__(self) -> None:
        self.away = False
        self.missing: set[str] = set()
        self.odd = False
        self.asked: list[str] = []
        self.hold = threading.Event()
        self.hold.set()

    def id_of(self, schema: Schema) -> int:
        self.hold.wait(20)
        self.asked.append(schema.name)
        if self.odd:
            raise ValueError("<html>")
        if self.away:
            raise RetriableError("away")
        if schema.name in self.missing:
            raise FatalError(f"{schema.name} is not registered", hint="run: kintsugi schemas register")
        return 100 + WRITTEN.index(schema.name)

    def text_of(self, schema_id: int) -> str | None:
        return f"text {schema_id}"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("kintsugi_client.schema_ids._RETRY_S", 0.02)
    return Registry()


def forms(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """First bytes of what is produced."""
    found: list[bytes] = []
    monkeypatch.setattr(
        outbox, "_produce", lambda record, value, parent, delivered: found.append(value[: 5 if value[0] == 0 else 2])
    )
    return found


def test_ids_are_fetched_once_and_used(
    make: Callable[..., Outbox], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(SchemaIds(registry))  # type: ignore[arg-type]
    found = forms(outbox, monkeypatch)
    outbox.send(record(WorkflowStarted))
    outbox.send(record(StepStarted))
    assert found == [b"\x00\x00\x00\x00\x64", b"\x00\x00\x00\x00\x65"]
    wait_for("all ids", lambda: sorted(registry.asked) == sorted(WRITTEN))


@pytest.mark.parametrize("trouble", ["away", "odd"])
def test_without_the_registry_records_are_written_in_the_other_form(
    make: Callable[..., Outbox], registry: Registry, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    setattr(registry, trouble, True)
    outbox = make(SchemaIds(registry))  # type: ignore[arg-type]
    found = forms(outbox, monkeypatch)
    outbox.send(record(StepStarted))
    assert found == [b"\xc3\x01"]
    setattr(registry, trouble, False)
    wait_for("the ids", lambda: set(registry.asked) >= set(WRITTEN))
    wait_for("the form", lambda: outbox.send(record(StepStarted)) and found[-1] == b"\x00\x00\x00\x00\x65")


def test_a_registry_that_does_not_answer_holds_nobody_up_for_long(
    make: Callable[..., Outbox], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kintsugi_client.schema_ids.PATIENCE_S", 0.05)
    registry.hold.clear()
    outbox = make(SchemaIds(registry))  # type: ignore[arg-type]
    found = forms(outbox, monkeypatch)
    outbox.send(record(StepStarted))
    assert found == [b"\xc3\x01"]
    registry.hold.set()


def test_a_schema_that_is_not_registered_is_a_deployment_that_is_missing(
    make: Callable[..., Outbox], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.missing = {"StepStarted"}
    outbox = make(SchemaIds(registry))  # type: ignore[arg-type]
    found = forms(outbox, monkeypatch)
    with pytest.raises(FatalError, match="StepStarted is not registered") as refused:
        outbox.send(record(StepStarted))
    assert refused.value.hint == "run: kintsugi schemas register"
    outbox.send(record(WorkflowStarted))
    registry.missing = set()
    wait_for("its id", lambda: registry.asked.count("StepStarted") > 1 and not outbox._ids._missing)  # type: ignore[union-attr]
    outbox.send(record(StepStarted))
    assert found == [b"\x00\x00\x00\x00\x64", b"\x00\x00\x00\x00\x65"]


def test_both_forms_read_the_same(registry: Registry) -> None:
    ids = SchemaIds(registry)  # type: ignore[arg-type]
    assert ids.text_of(3) == "text 3"
    sent = record(StepStarted)
    assert Codec().decode(Codec().encode(sent)) == sent
    assert set(WRITTEN) <= set(shipped())
