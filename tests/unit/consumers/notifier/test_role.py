"""The handler between loop, couriers and log: what it tells, notes and keeps, and what a log that fails does to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Message

from consumers.clock import BrokerClock
from consumers.deadline import Deadline
from consumers.handler import LogRange, OwnPosition
from consumers.notifier import courier as courier_module
from consumers.notifier import role as module
from consumers.notifier.channels import ChannelAwayError, ChannelRefusedError
from consumers.notifier.courier import Pace
from consumers.notifier.notice import Notice
from consumers.notifier.role import Notifier
from consumers.outbox import Outbox
from schemas.codec import Codec
from schemas.errors import KintsugiError, RetriableError
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.events import NotificationDelivered, WorkflowCompleted

from .kit import INCIDENT, fact, incident

FAST = Pace(backoff_s_min=0.01, backoff_s_max=0.02, give_up_s=60.0, breaker_open_s=0.05)
WAIT_S = 30.0


class Recorded:
    """A channel that remembers, and fails as told."""

    keyed = False
    rate_per_s = 10_000.0
    burst = 10_000

    def __init__(self, name: str) -> None:
        self.name = name
        self.keyed = name == "pagerduty"
        self.sent: list[tuple[str, str]] = []
        self.script: deque[Exception] = deque()

    def send(self, notice: Notice) -> str:
        if self.script:
            raise self.script.popleft()
        self.sent.append((notice.kind, notice.incident_id))
        return "taken"

    def close(self) -> None:
        pass


class Log:
    """One partition in memory: what the outbox sends stands in it and is read back."""

    def __init__(self) -> None:
        self.values: list[tuple[bytes | None, bytes | None]] = []
        self.codec = Codec()
        self.fails = False
        self._sent: list[tuple[bytes | None, bytes | None]] = []

    def put(self, *records: Record) -> None:
        for record in records:
            self.values.append((record.workflow_id.encode(), self.codec.encode(record)))

    def send(self, topic: str, key: bytes, value: bytes, headers: object, *, cause: int, partition: int) -> None:
        assert (topic, cause, partition) == ("workflow.events", 0, 0)
        self._sent.append((key, value))

    def flush(self) -> dict[int, KintsugiError]:
        sent, self._sent = self._sent, []
        if self.fails and sent:
            return {0: RetriableError("away")}
        self.values += sent
        return {}

    def close(self) -> None:
        pass

    def facts(self) -> list[tuple[str, str, str]]:
        records = [self.codec.decode(value) for _, value in self.values if value and len(value) > 20]
        return [(r.channel, r.kind, r.outcome) for r in records if isinstance(r, NotificationDelivered)]


class Member:
    """A notifier and the loop around it."""

    def __init__(self, log: Log, channels: dict[str, Recorded], committed: int | None) -> None:
        self.log = log
        self.role = Notifier(channels, Codec(), cast(Outbox, log), BrokerClock(), FAST)
        self.assign(committed)

    def assign(self, committed: int | None) -> None:
        found = LogRange(partition=0, low=0, high=len(self.log.values), committed=committed)
        self.at = self.role.assigned(found) or 0

    def round(self) -> dict[int, KintsugiError]:
        self.role.tick(0, lambda _: self.at >= len(self.log.values))
        failed = dict(self.role.flush())
        if not failed and self.at < len(self.log.values):
            batch = [
                Message(topic="t", partition=0, offset=offset, key=key, value=value, timestamp=(2, 1_800_000_000_000))
                for offset, (key, value) in enumerate(self.log.values)
                if offset >= self.at
            ]
            self.at = len(self.log.values)
            self.role.handle(0, batch)
            failed = dict(self.role.flush())
        return failed

    def until(self, check: Callable[[], Any]) -> None:
        end_s = time.monotonic() + WAIT_S
        while not check():
            assert time.monotonic() < end_s, self.log.facts()
            self.round()
            time.sleep(0.002)

    def settle(self) -> None:
        self.until(lambda: self.at == len(self.log.values) == self.role.stored(0))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def slack() -> Recorded:
    return Recorded("slack")


@pytest.fixture
def join(log: Log, slack: Recorded) -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def make(committed: int | None = None, **channels: Recorded) -> Member:
        made.append(Member(log, channels or {"slack": slack}, committed))
        return made[-1]

    yield make
    for member in made:
        member.role.close()


def page(revision: int = 1, **fields: Any) -> Record:
    return incident(revision, **{"channels": ("slack",), **fields})


def test_it_keeps_a_position_of_its_own(join: Callable[..., Member]) -> None:
    assert isinstance(join().role, OwnPosition)


def test_told_noted_and_read_back_it_is_settled(log: Log, slack: Recorded, join: Callable[..., Member]) -> None:
    member = join()
    log.put(page())
    member.settle()
    assert slack.sent == [("trigger", INCIDENT)]
    assert log.facts() == [("slack", "trigger", "delivered")]
    found = log.codec.decode(log.values[-1][1])
    assert isinstance(found, NotificationDelivered)
    assert found.notification_id == derive_id(INCIDENT, "notify|slack|trigger", 1)
    assert (found.tries, found.detail) == (1, "taken")
    assert log.values[-1][0] == INCIDENT.encode()


def test_what_is_refused_is_noted_as_given_up(log: Log, slack: Recorded, join: Callable[..., Member]) -> None:
    slack.script.append(ChannelRefusedError("slack answered 404"))
    member = join()
    log.put(page())
    member.settle()
    assert log.facts() == [("slack", "trigger", "given_up")]


def test_one_too_many_is_noted_as_given_up(
    log: Log, slack: Recorded, join: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "WAITING_MAX", 0)
    member = join()
    log.put(page())
    member.settle()
    assert log.facts() == [("slack", "trigger", "given_up")]
    assert slack.sent == []


def test_a_channel_that_is_not_configured_is_noted_once(log: Log, join: Callable[..., Member]) -> None:
    member = join()
    log.put(page(channels=("pagerduty", "pigeon")), page(2, channels=("pagerduty", "pigeon")))
    log.put(incident(9, "00000000-0000-4000-8000-00000000000d", state="resolved", channels=("pagerduty",)))
    member.settle()
    assert sorted(log.facts()) == [("pagerduty", "trigger", "given_up"), ("pigeon", "trigger", "given_up")]


def test_other_records_and_junk_are_passed_over(log: Log, slack: Recorded, join: Callable[..., Member]) -> None:
    member = join()
    log.values += [(None, None), (b"", b""), (b"k", b"\x00"), (b"k", b"\xc3\x01junkjunkjunk"), (b"k", b"\x07")]
    start = incident()
    log.put(
        WorkflowCompleted(
            event_id=start.event_id, workflow_id=INCIDENT, workflow_type="w", occurred_at=1, producer="test"
        )
    )
    log.values.append((b"another key", log.codec.encode(page())))
    log.put(page(2))
    member.settle()
    assert slack.sent == [("trigger", INCIDENT)]
    found = log.codec.decode(log.values[-1][1])
    assert isinstance(found, NotificationDelivered)
    assert found.notification_id == derive_id(INCIDENT, "notify|slack|trigger", 2), "the first had a wrong key"


def test_when_the_fact_is_lost_it_is_told_again_under_the_same_id(
    log: Log, slack: Recorded, join: Callable[..., Member]
) -> None:
    member = join()
    log.put(page())
    log.fails = True
    failed: dict[int, KintsugiError] = {}
    member.until(lambda: failed.update(member.round()) or failed)
    assert log.facts() == []
    assert member.role.stored(0) == 0
    log.fails = False
    member.assign(committed=0)
    member.settle()
    assert slack.sent == [("trigger", INCIDENT)] * 2
    assert log.facts() == [("slack", "trigger", "delivered")]


def test_nothing_is_told_before_all_that_others_left_is_read(
    log: Log, slack: Recorded, join: Callable[..., Member]
) -> None:
    """The position is behind the facts: the one before died before it could commit."""
    log.put(page(), fact(derive_id(INCIDENT, "notify|slack|trigger", 1), "slack", "trigger"), page(2))
    member = join(committed=0)
    member.settle()
    assert slack.sent == []
    log.put(page(3, state="resolved"))
    member.settle()
    assert slack.sent == [("resolve", INCIDENT)]


def test_a_log_that_ends_without_a_record_is_read_to_its_end_too(
    log: Log, slack: Recorded, join: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.put(page())
    member = join()
    member.role.assigned(LogRange(partition=0, low=0, high=2, committed=None))  # a transaction's end is at offset 1
    for _ in range(3):
        member.round()
    assert member.role.stored(0) == 0
    assert slack.sent == []
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    member.settle()
    assert slack.sent == [("trigger", INCIDENT)]


def test_an_incident_that_ends_while_its_page_is_tried_again_is_left_alone(
    log: Log, slack: Recorded, join: Callable[..., Member]
) -> None:
    slack.script.extend([ChannelAwayError("away", retry_after_s=300.0)])
    member = join()
    log.put(page())
    member.until(lambda: not slack.script)
    log.put(page(2, state="resolved"))
    member.settle()
    assert slack.sent == []
    assert log.facts() == []


def test_another_owners_fact_ends_what_waits_here(log: Log, slack: Recorded, join: Callable[..., Member]) -> None:
    slack.script.extend([ChannelAwayError("away", retry_after_s=300.0)])
    member = join()
    log.put(page())
    member.until(lambda: not slack.script)
    log.put(fact(derive_id(INCIDENT, "notify|slack|trigger", 1), "slack", "trigger"))
    member.settle()
    assert member.role.tick(0, lambda _: True) is None, "nothing is on its way"
    assert slack.sent == []


def test_at_a_handover_what_was_told_is_noted_and_the_rest_is_left(
    log: Log, slack: Recorded, join: Callable[..., Member]
) -> None:
    mail = Recorded("email")
    mail.script.extend([ChannelAwayError("away", retry_after_s=300.0)])
    member = join(slack=slack, email=mail)
    log.put(page(channels=("slack", "email")))
    member.round()
    member.until(lambda: slack.sent and not mail.script)
    member.role.revoked([0], Deadline(10))
    assert log.facts() == [("slack", "trigger", "delivered")]
    assert member.role.stored(0) == 0, "the mail is not settled"
    successor = join(committed=0, slack=slack, email=mail)
    successor.settle()
    assert slack.sent == mail.sent == [("trigger", INCIDENT)]


def test_a_partition_that_is_lost_is_told_of_no_more(log: Log, slack: Recorded, join: Callable[..., Member]) -> None:
    slack.script.extend([ChannelAwayError("away")] * 3)
    member = join()
    log.put(page())
    member.round()
    member.role.lost([0])
    for _ in range(5):
        member.role.tick(0, lambda _: True)
        member.role.flush()
    assert log.facts() == []
    assert member.role.stored(0) == 0
