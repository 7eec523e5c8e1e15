"""Leases: what a step says, how it waits, and how answers are found in the log. A real coordinator is in the stack's
tests."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from kintsugi_client import ConfigError, LeaseError, NotDeliveredError, SupersededError, WorkflowType, leases
from kintsugi_client._schemas.codec import Codec
from kintsugi_client._schemas.errors import RetriableError
from kintsugi_client._schemas.records.events import (
    ResourceGranted,
    ResourceReleased,
    ResourceRequested,
    StepCompleted,
    StepProgressed,
    WaitBegan,
    WaitEnded,
    WorkflowErrorOccurred,
)
from kintsugi_client.grants import Grants, Wish
from kintsugi_client.run import Run

from .kit import Service, wait_for

COORDINATOR = "kintsugi-coordinator"


class Table:
    """Answers wishes as it is told; without a word it says nothing."""

    def __init__(self) -> None:
        self.answer: Callable[[Wish], None] | None = None
        self.watched: list[Wish] = []
        self.forgotten: list[Wish] = []

    def watch(self, wish: Wish) -> None:
        self.watched.append(wish)
        if self.answer is not None:
            self.answer(wish)

    def forget(self, wish: Wish) -> None:
        self.forgotten.append(wish)

    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


@pytest.fixture
def table(service: Service) -> Table:
    found = service.client.grants = Table()  # type: ignore[assignment]
    found.answer = lambda wish: wish.settle(None)
    return found


@pytest.fixture
def kind(service: Service, table: Table) -> WorkflowType:
    return service.client.workflow_type("development")


def test_a_lease_is_asked_for_and_given_back(service: Service, kind: WorkflowType, table: Table) -> None:
    workflow = kind.begin()
    with workflow.step("train") as step:
        with step.lease("gpu", amount=2, priority=5, timeout_s=1.5):
            assert not service.of(ResourceReleased)
        (asked,), (released,) = service.of(ResourceRequested), service.of(ResourceReleased)
    assert (asked.step_id, asked.resource_id, asked.amount, asked.priority) == ("train", "gpu", 2, 5)
    assert asked.wait_ms == 1_500
    assert (released.lease_id, released.reason) == (asked.lease_id, "returned")
    (wish,) = table.watched
    assert (wish.lease_id, wish.partition) == (asked.lease_id, 3)
    assert service.outbox.records[wish.offset - 1] is asked
    assert table.forgotten == [wish]


def test_each_lease_of_a_step_has_an_id_that_its_next_run_asks_for_again(service: Service, kind: WorkflowType) -> None:
    workflow = kind.begin()
    for _ in range(2):
        with (
            workflow.step("train") as step,
            step.lease("gpu"),
            step.lease("gpu"),
            step.lease("licence"),
        ):
            assert step.state == {}
    ids = [r.lease_id for r in service.of(ResourceRequested)]
    assert ids[:3] == ids[3:] and len(set(ids)) == 3
    with kind.begin().step("train") as step, step.lease("gpu"):
        assert service.of(ResourceRequested)[-1].lease_id not in ids


def test_a_step_that_fails_gives_its_lease_back(service: Service, kind: WorkflowType) -> None:
    with pytest.raises(ValueError, match="broken"), kind.begin().step("train") as step, step.lease("gpu"):
        raise ValueError("broken")
    assert [r.reason for r in service.of(ResourceReleased)] == ["returned"]


@pytest.mark.parametrize(("reason", "code"), [("deadlock", "DEADLOCK"), ("timed_out", "COORDINATION_FAILURE")])
def test_a_refusal_is_an_error_with_a_code(
    service: Service, kind: WorkflowType, table: Table, reason: str, code: str
) -> None:
    table.answer = lambda wish: wish.settle(reason)
    with (
        pytest.raises(LeaseError, match=reason) as refused,
        kind.begin().step("train") as step,
        step.lease("gpu"),
    ):
        raise AssertionError("it was granted")
    assert refused.value.reason == reason
    assert service.of(WorkflowErrorOccurred)[0].error_code == code
    assert [r.reason for r in service.of(ResourceReleased)] == ["given_up"]


def test_a_step_is_told_when_its_lease_is_taken_away(service: Service, kind: WorkflowType, table: Table) -> None:
    def work() -> None:
        with kind.begin().step("train") as step, step.lease("licence"), step.lease("gpu"):
            assert not step.cancelled
            table.watched[1].end("expired")
            assert step.cancelled
            for tell in (step.heartbeat, step.alive):
                with pytest.raises(LeaseError):
                    tell()
            assert not table.forgotten, "it is looked for until the block ends"
            step.check()

    with pytest.raises(LeaseError, match="'gpu' was taken away: expired") as lost:
        work()
    assert (lost.value.reason, lost.value.code) == ("expired", "COORDINATION_FAILURE")
    assert service.of(WorkflowErrorOccurred)[0].error_code == "COORDINATION_FAILURE"
    licence, _ = service.of(ResourceRequested)
    assert [r.lease_id for r in service.of(ResourceReleased)] == [licence.lease_id], "what was taken is not given back"
    assert table.forgotten == table.watched[::-1]


def test_what_was_done_without_a_lease_is_not_done(service: Service, kind: WorkflowType, table: Table) -> None:
    with pytest.raises(LeaseError, match="taken away: deadlock") as lost, kind.begin().step("train") as step:  # noqa: SIM117
        with step.lease("gpu"):
            table.watched[0].end("deadlock")
    assert lost.value.code == "DEADLOCK"
    assert not service.of(StepCompleted)


def test_a_step_goes_on_after_it_has_minded_its_loss(service: Service, kind: WorkflowType, table: Table) -> None:
    with kind.begin().step("train") as step:
        with pytest.raises(LeaseError), step.lease("gpu"):
            table.watched[0].end("lost")
        step.check()
        with step.lease("gpu"):
            assert not step.cancelled
    assert service.of(StepCompleted)


def test_an_error_of_the_step_is_not_hidden_by_a_loss(kind: WorkflowType, table: Table) -> None:
    def work() -> None:
        with kind.begin().step("train") as step, step.lease("gpu"):
            table.watched[0].end("expired")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()


def test_a_step_that_was_replaced_hears_of_that_first(kind: WorkflowType, table: Table) -> None:
    workflow = kind.begin()

    def work() -> None:
        with workflow.step("train") as step, step.lease("gpu"):
            table.watched[0].end("expired")
            workflow.replace_run(Run())

    with pytest.raises(SupersededError):
        work()


def test_silence_is_waited_for_within_a_bound(
    service: Service, kind: WorkflowType, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_SILENCE_S", 0.0)
    table.answer = None
    with pytest.raises(LeaseError, match="no coordinator") as refused, kind.begin().step("train") as step:  # noqa: SIM117
        with step.lease("gpu", timeout_s=0.01):
            raise AssertionError("it was granted")
    assert refused.value.reason == "no_answer"


def test_a_request_that_is_not_in_the_log_was_not_made(
    service: Service, kind: WorkflowType, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_REQUEST_TIMEOUT_S", 0.01)
    with kind.begin().step("train") as step:
        service.outbox.confirms = False
        with pytest.raises(NotDeliveredError), step.lease("gpu"):
            raise AssertionError("it was granted")
    assert not table.watched


def test_a_run_that_is_replaced_while_it_waits_ends_and_gives_nothing_back(
    service: Service, kind: WorkflowType, table: Table
) -> None:
    workflow = kind.begin()
    table.answer = lambda wish: workflow.replace_run(Run())
    with pytest.raises(SupersededError), workflow.step("train") as step, step.lease("gpu"):
        raise AssertionError("it was granted")
    assert not service.of(ResourceReleased)


def test_a_step_that_waits_says_that_it_is_alive(service: Service, table: Table) -> None:
    kind = service.client.workflow_type("patient")
    kind.step("train", heartbeat_timeout_ms=60)(lambda ctx: None)
    timers: list[threading.Timer] = []

    def later(wish: Wish) -> None:
        timers.append(threading.Timer(0.5, wish.settle, [None]))
        timers[-1].start()

    table.answer = later
    with kind.begin().step("train") as step, step.lease("gpu"):
        assert len(service.of(StepProgressed)) >= 2
    timers[0].join()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 0}, "amount: 0 is no number"),
        ({"amount": 1.5}, "amount: 1.5"),
        ({"priority": "high"}, "priority: 'high'"),
        ({"timeout_s": 0}, "timeout_s: 0"),
        ({"timeout_s": float("nan")}, "timeout_s: nan"),
        ({"resource_id": ""}, "resource: '' must be text"),
    ],
)
def test_a_wish_that_says_nothing_is_refused(
    service: Service, kind: WorkflowType, options: dict[str, Any], message: str
) -> None:
    with (
        kind.begin().step("train") as step,
        pytest.raises(ConfigError, match=message),
        step.lease(**{"resource_id": "gpu", **options}),
    ):
        raise AssertionError("it was granted")
    assert not service.of(ResourceRequested)


# -- waits for other workflows ----------------------------------------------------------------------------------------


def test_a_wait_has_a_beginning_and_an_end(service: Service, kind: WorkflowType) -> None:
    other = str(uuid.uuid4())
    workflow = kind.begin()
    with pytest.raises(SupersededError), workflow.step("join") as step, step.waits_for(other):
        workflow.replace_run(Run())  # the code waits on, and must be seen to end
    (began,), (ended,) = service.of(WaitBegan), service.of(WaitEnded)
    assert service.names.index("WaitBegan") < service.names.index("WaitEnded")
    assert (began.step_id, began.awaited_id, began.wait_id) == ("join", other, ended.wait_id)


@pytest.mark.parametrize("workflow_id", ["17", None])
def test_only_workflows_are_waited_for(kind: WorkflowType, workflow_id: Any) -> None:
    with kind.begin().step("join") as step, pytest.raises(ConfigError, match="workflow_id"):  # noqa: SIM117
        with step.waits_for(workflow_id):
            raise AssertionError("it waits")


# -- answers in the log -----------------------------------------------------------------------------------------------


class Line:
    """A record in the log."""

    def __init__(self, offset: int, key: str, value: bytes, error: KafkaError | None = None) -> None:
        self._offset, self._key, self._value, self._error = offset, key, value, error

    def error(self) -> KafkaError | None:
        return self._error

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key.encode()

    def value(self) -> bytes:
        return self._value


class FakeLog:
    """A log of one partition, and the consumers that read it."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.assigned: list[int] = []
        self.troubles: list[Exception] = []
        self.position: int | None = None

    def __call__(self, _kind: type, _settings: dict[str, Any]) -> FakeLog:
        return self

    def assign(self, places: list[TopicPartition]) -> None:
        self.position = places[0].offset if places else None
        self.assigned += [p.offset for p in places]

    def unassign(self) -> None:
        self.position = None

    def poll(self, timeout_s: float) -> Line | None:
        if self.troubles:
            raise self.troubles.pop()
        found = [line for line in self.lines if self.position is not None and line.offset() >= self.position]
        if not found:
            threading.Event().wait(0.01)
            return None
        self.position = found[0].offset() + 1
        return found[0]

    def consume(self, _number: int, _timeout_s: float) -> list[Line]:
        return []

    def close(self) -> None:
        self.position = None


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> FakeLog:
    found = FakeLog()
    monkeypatch.setattr("kintsugi_client.grants.connected", found)
    monkeypatch.setattr("kintsugi_client.grants._RETRY_S", 0.01)
    return found


@pytest.fixture
def grants(log: FakeLog) -> Iterator[Grants]:
    found = Grants({}, Codec)
    yield found
    found.close(5.0)


def line(offset: int, wish: Wish, kind: type = ResourceGranted, **fields: Any) -> Line:
    record = kind(
        event_id=str(uuid.uuid4()),
        workflow_id=wish.workflow_id,
        workflow_type="t",
        occurred_at=1,
        **{"resource_id": "gpu", "lease_id": wish.lease_id, "producer": COORDINATOR, **fields},
    )
    return Line(offset, wish.workflow_id, Codec().encode(record))


def wished(offset: int = 10) -> Wish:
    return Wish(str(uuid.uuid4()), str(uuid.uuid4()), 3, offset)


def test_an_answer_is_found_behind_its_request_alone(log: FakeLog, grants: Grants) -> None:
    wish, other = wished(), wished()
    log.lines = [
        line(9, wish, ResourceReleased, reason="timed_out"),  # of an earlier wish under this id
        line(11, other, lease_id=wish.lease_id),
        Line(12, wish.workflow_id, b"no record"),
        line(13, wish, ResourceReleased, reason="returned", producer="svc/host/1"),
        line(14, wish, lease_id=other.lease_id),
        line(15, wish),
        line(16, wish, ResourceReleased, reason="deadlock"),
    ]
    grants.watch(wish)
    assert wish.wait(10) and wish.refusal is None
    assert log.assigned[0] == 10


def test_a_refusal_says_why_it_is_one(log: FakeLog, grants: Grants) -> None:
    for reason, refusal in (("too_large", "too_large"), (None, "released")):
        wish = wished()
        log.lines = [line(11, wish, ResourceReleased, reason=reason)]
        grants.watch(wish)
        assert wish.wait(10) and wish.refusal == refusal
        grants.forget(wish)


def test_what_takes_a_lease_away_is_found_behind_its_grant(log: FakeLog, grants: Grants) -> None:
    for producer, reason, lost in ((COORDINATOR, "deadlock", "deadlock"), ("operator", "expired", "expired")):
        wish = wished()
        log.lines = [
            line(11, wish),
            line(12, wish, ResourceReleased, reason="returned", producer="svc/host/1"),
            line(13, wish, ResourceReleased, reason=reason, producer=producer),
            line(14, wish, ResourceReleased, reason="workflow_ended"),
        ]
        grants.watch(wish)
        wait_for("the loss", lambda wish=wish: wish.lost)
        assert (wish.refusal, wish.lost) == (None, lost)
        grants.forget(wish)


def test_what_was_read_before_a_wish_was_known_is_read_again(log: FakeLog, grants: Grants) -> None:
    late, early = wished(20), wished(10)
    log.lines = [line(11, early), line(21, late)]
    grants.watch(late)
    assert late.wait(10)
    grants.watch(early)
    assert early.wait(10)


@pytest.mark.parametrize(
    "trouble",
    [
        KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)),
        RetriableError("the registry is away"),
        ValueError("a bug"),
    ],
)
def test_reading_goes_on_after_trouble(
    log: FakeLog, grants: Grants, trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    wish = wished()
    log.troubles = [trouble]
    log.lines = [line(11, wish)]
    grants.watch(wish)
    assert wish.wait(10) and wish.refusal is None
    assert "leases" in caplog.text


def test_nothing_is_read_while_nobody_waits(log: FakeLog, grants: Grants) -> None:
    wish = wished()
    log.lines = [line(11, wish)]
    grants.watch(wish)
    assert wish.wait(10)
    grants.forget(wish)
    wait_for("rest", lambda: log.position is None)


def test_without_a_wish_there_is_no_thread(log: FakeLog, grants: Grants) -> None:
    grants.close(5.0)
    grants.watch(wished())
    assert log.assigned == []
