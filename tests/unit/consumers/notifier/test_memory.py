"""What is wanted after which records, read live or again from the log: the fold of one partition."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.notifier import memory as module
from consumers.notifier.memory import RENEW_US, Memory, Notification
from schemas.records.events import IncidentChanged, NotificationDelivered

from .kit import INCIDENT, fact, incident

NOW_US = 1_800_000_000_000_000


class Log:
    """A partition and one reader of it, as the role drives it."""

    def __init__(self) -> None:
        self.records: list[IncidentChanged | NotificationDelivered] = []
        self.times: list[int] = []
        self.memory = Memory(0, effects_from=0, high=0, keyed=("pagerduty",))
        self.memory.go_live()
        self.now_us = NOW_US

    def put(self, record: Any) -> list[Notification]:
        """Append a record and read it; what is to be told now."""
        self.records.append(record)
        self.times.append(self.now_us)
        self._read(self.memory, len(self.records) - 1)
        return list(self.memory.take_next())

    def tell(self, notification: Notification, outcome: str = "delivered", tries: int = 1) -> list[Notification]:
        """The fact of a notification is read back."""
        return self.put(
            fact(notification.notification_id, notification.channel, notification.kind, outcome, tries=tries)
        )

    def taken_over(self, *, committed: int) -> list[Notification]:
        """Another reads the log from its beginning; what it tells at its end."""
        self.memory = Memory(0, effects_from=committed, high=len(self.records), keyed=("pagerduty",))
        for offset in range(len(self.records)):
            self._read(self.memory, offset)
        self.memory.go_live()
        return list(self.memory.take_next())

    def _read(self, memory: Memory, offset: int) -> None:
        record = self.records[offset]
        if isinstance(record, IncidentChanged):
            memory.changed(record, offset, self.times[offset])
        else:
            memory.delivered(record, self.times[offset])
        memory.next_offset = offset + 1


def told(found: list[Notification]) -> list[tuple[str, str]]:
    return [(n.channel, n.kind) for n in found]


@pytest.fixture
def log() -> Log:
    return Log()


def test_an_incident_pages_once_on_each_of_its_channels(log: Log) -> None:
    found = log.put(incident(1))
    assert told(found) == [("slack", "trigger"), ("email", "trigger"), ("pagerduty", "trigger")]
    assert log.put(incident(2, error_count=20_000)) == [], "while it is on its way"
    assert [log.tell(n) for n in found] == [[], [], []]
    assert log.put(incident(3, error_count=30_000)) == [], "while a page is open"
    assert log.memory.position == len(log.records)


def test_an_incident_that_does_not_page_tells_nobody(log: Log) -> None:
    assert log.put(incident(1, page=False)) == []
    assert log.put(incident(2, page=False, state="resolved")) == []
    assert len(log.memory) == 0


def test_the_position_stays_before_what_is_not_settled(log: Log) -> None:
    log.put(incident(1, page=False, incident_id=str(uuid.uuid4())))
    slack, mail = log.put(incident(1, channels=("slack", "email")))
    assert log.memory.position == 1
    log.tell(mail)
    assert log.memory.position == 1
    log.tell(slack)
    assert log.memory.position == len(log.records)


def test_one_owner_is_told_once_and_another_again(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    assert log.put(incident(2, channels=("slack",), owner="ann")) == [], "the page comes first"
    (first,) = log.tell(page)
    assert (first.kind, first.record.owner) == ("acknowledge", "ann")
    assert log.put(incident(3, channels=("slack",), owner="ann")) == []
    assert log.tell(first) == []
    (second,) = log.put(incident(4, channels=("slack",), owner="bob"))
    assert (second.kind, second.record.owner) == ("acknowledge", "bob")


def test_an_acknowledgement_without_an_owner_is_told(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.tell(page)
    (found,) = log.put(incident(2, channels=("slack",), reason="acknowledged", actor="ann"))
    assert found.kind == "acknowledge"


def test_an_escalation_is_told_each_time_and_pages_who_was_not_paged(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.tell(page)
    found = log.put(incident(2, channels=("slack", "pagerduty"), page=False, reason="escalated"))
    assert told(found) == [("slack", "escalate"), ("pagerduty", "trigger")]
    for notification in found:
        log.tell(notification)
    again = log.put(incident(3, channels=("slack", "pagerduty"), reason="escalated"))
    assert told(again) == [("slack", "escalate"), ("pagerduty", "escalate")]
    assert {n.notification_id for n in found}.isdisjoint(n.notification_id for n in again)


def test_the_end_is_told_where_a_page_is_open(log: Log) -> None:
    slack, pager = log.put(incident(1, channels=("slack", "pagerduty")))
    log.tell(slack)
    log.tell(pager, "given_up", tries=0)
    (resolve,) = log.put(incident(2, state="resolved"))
    assert (resolve.channel, resolve.kind) == ("slack", "resolve")
    assert log.tell(resolve) == []
    assert len(log.memory) == 0
    assert log.put(incident(2, state="resolved")) == log.put(incident(1)) == [], "what comes twice opens nothing"


def test_an_incident_that_ends_before_anybody_was_told_is_never_told(log: Log) -> None:
    page, *_ = log.put(incident(1, channels=("slack",)))
    log.put(incident(2, state="resolved"))
    log.memory.returned(page, 0)
    assert list(log.memory.take_next()) == []
    assert log.memory.position == len(log.records)
    assert len(log.memory) == 0


@pytest.mark.parametrize(("channel", "kinds"), [("slack", []), ("pagerduty", ["resolve"])])
def test_a_page_that_was_tried_and_is_overtaken_is_closed_where_that_is_harmless(
    log: Log, channel: str, kinds: list[str]
) -> None:
    (page,) = log.put(incident(1, channels=(channel,)))
    log.memory.changed(incident(2, channels=(channel,), state="resolved"), 1, NOW_US)
    assert list(log.memory.overtaken()) == [page]
    log.memory.returned(page, 3)
    assert [n.kind for n in log.memory.take_next()] == kinds


def test_only_the_end_is_told_after_a_page_that_others_waited_for(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.put(incident(2, channels=("slack",), owner="ann"))
    log.put(incident(3, channels=("slack",), reason="escalated", owner="ann"))
    log.put(incident(4, channels=("slack",), state="resolved"))
    assert told(log.tell(page)) == [("slack", "resolve")]


def test_who_could_not_be_paged_is_paged_by_a_later_change(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.tell(page, "given_up")
    assert log.put(incident(2, channels=("slack",))) == []
    log.now_us += RENEW_US
    (again,) = log.put(incident(3, channels=("slack",)))
    assert again.kind == "trigger"
    assert again.notification_id != page.notification_id


def test_an_incident_that_opens_again_pages_again(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.tell(page)
    (resolve,) = log.put(incident(2, channels=("slack",), state="resolved"))
    log.put(incident(3, channels=("slack",)))
    (again,) = log.tell(resolve)
    assert (again.kind, again.record.revision) == ("trigger", 3)


def test_the_next_owner_tells_nothing_again(log: Log) -> None:
    found = log.put(incident(1))
    for notification in found:
        log.tell(notification)
    (resolve, *_) = log.put(incident(2, state="resolved"))
    assert told(log.taken_over(committed=1)) == [(n, "resolve") for n in ("slack", "email", "pagerduty")]
    log.tell(resolve)
    assert told(log.taken_over(committed=1)) == [("email", "resolve"), ("pagerduty", "resolve")]


def test_the_next_owner_tells_what_was_told_without_a_fact_with_the_same_id(log: Log) -> None:
    first = log.put(incident(1))
    log.tell(first[0])
    again = log.taken_over(committed=0)
    assert [n.notification_id for n in again] == [n.notification_id for n in first[1:]]


def test_nothing_before_the_position_is_told(log: Log) -> None:
    log.put(incident(1))
    assert log.taken_over(committed=1) == []
    assert log.memory.position == 1


@pytest.mark.parametrize(("channel", "kinds"), [("slack", []), ("pagerduty", ["resolve"])])
def test_a_page_that_an_owner_before_may_have_opened_is_closed(log: Log, channel: str, kinds: list[str]) -> None:
    """It died between the delivery and the fact, and meanwhile the incident ended."""
    log.put(incident(1, channels=(channel,)))
    log.put(incident(2, channels=(channel,), state="resolved"))
    assert [n.kind for n in log.taken_over(committed=0)] == kinds


def test_a_page_older_than_the_log_is_closed(log: Log) -> None:
    assert told(log.put(incident(9, state="resolved"))) == [("pagerduty", "resolve")]


def test_a_fact_of_another_settles_what_is_on_its_way(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.tell(page)
    assert log.memory.wanted(page.notification_id) is None
    assert told(log.put(incident(2, channels=("slack",), state="resolved"))) == [("slack", "resolve")]


def test_who_gives_up_what_another_has_told_changes_nothing(log: Log) -> None:
    (page,) = log.put(incident(1, channels=("slack",)))
    log.tell(page)
    log.tell(page, "given_up")
    log.now_us += RENEW_US
    assert log.put(incident(2, channels=("slack",))) == []


def test_a_fact_that_names_another_channel_settles_nothing(log: Log) -> None:
    slack, mail = log.put(incident(1, channels=("slack", "email")))
    log.put(fact(slack.notification_id, "email", "trigger"))
    assert log.memory.wanted(slack.notification_id) is slack
    assert log.memory.wanted(mail.notification_id) is mail
    log.tell(slack)
    assert log.memory.position == 0


def test_memory_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INCIDENTS_MAX", 10)
    monkeypatch.setattr(module, "ENDED_MAX", 5)
    (page,) = log.put(incident(1, channels=("slack",)))
    for _ in range(50):
        log.put(incident(1, page=False, incident_id=str(uuid.uuid4())))
    assert len(log.memory) == 10
    assert log.memory.wanted(page.notification_id) is page, "what is to be told is not forgotten"
    for _ in range(50):
        log.put(incident(1, page=False, state="resolved", incident_id=str(uuid.uuid4())))
    assert len(log.memory._ended) == 5


def test_a_close_that_waits_is_the_one_a_new_owner_finds_too(log: Log) -> None:
    """An owner that died may have opened a page, the incident began and ended again meanwhile, and ends once more."""
    both = {"channels": ("slack", "pagerduty")}
    _, paged = log.put(incident(1, **both))
    log.put(incident(2, state="resolved", **both))
    log.tell(paged)
    (closed,) = log.taken_over(committed=0)  # does not page on Slack any more, where the one before may have
    (page,) = log.put(incident(3, **both))
    log.put(incident(4, state="resolved", **both))
    log.tell(closed)
    log.put(incident(5, state="resolved", **both))
    assert told(log.tell(page)) == [("slack", "resolve")]
    assert told(log.taken_over(committed=log.memory.position)) == [("slack", "resolve")]


@given(st.data())
def test_however_often_it_is_taken_over_each_page_is_opened_and_closed_in_turn(data: st.DataObject) -> None:
    """With every delivery noted, a channel sees trigger, then acknowledgements and escalations, then resolve."""
    log = Log()
    seen: dict[str, list[str]] = {"slack": [], "pagerduty": []}
    pending: dict[str, Notification] = {}
    ids: set[str] = set()
    revision = 0

    def take(found: list[Notification]) -> None:
        for n in found:
            assert n.channel not in {p.channel for p in pending.values()}, "one at a time on each channel"
            pending[n.notification_id] = n

    for _ in range(data.draw(st.integers(1, 25))):
        move = data.draw(st.sampled_from(["change", "owner", "escalate", "resolve", "tell", "tell", "take over"]))
        if move == "take over":
            pending.clear()
            take(log.taken_over(committed=log.memory.position))
        elif move == "tell":
            if pending:
                n = pending.pop(data.draw(st.sampled_from(sorted(pending))))
                assert n.notification_id not in ids, "noted once"
                ids.add(n.notification_id)
                seen[n.channel].append(n.kind)
                take(log.tell(n))
        else:
            revision += 1
            fields: dict[str, Any] = {
                "owner": {"owner": f"owner {revision}"},
                "escalate": {"reason": "escalated"},
                "resolve": {"state": "resolved"},
            }.get(move, {})
            take(log.put(incident(revision, channels=("slack", "pagerduty"), **fields)))
    while pending:
        _, n = pending.popitem()
        seen[n.channel].append(n.kind)
        take(log.tell(n))
    assert log.memory.position == len(log.records)
    for channel, kinds in seen.items():
        page_open = False
        for kind in kinds:
            if kind == "trigger":
                assert not page_open, (channel, kinds)
                page_open = True
            elif kind == "resolve":
                assert page_open or channel == "pagerduty", (channel, kinds)
                page_open = False
            else:
                assert page_open, (channel, kinds)
        ended = any(isinstance(r, IncidentChanged) for r in log.records) and len(log.memory) == 0
        assert not (ended and page_open), "an incident that is over leaves no page"
    assert INCIDENT not in log.memory._incidents or not log.memory._incidents[INCIDENT].over
