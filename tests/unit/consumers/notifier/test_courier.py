"""Retries, rates, breakers, and giving up: one channel's deliveries, whatever the channel does."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from prometheus_client import REGISTRY

from consumers.notifier import courier as module
from consumers.notifier.channels import ChannelAwayError, ChannelRefusedError
from consumers.notifier.courier import BREAKER_FAILURES, Courier, Pace, Result
from consumers.notifier.notice import Notice, notice_of

from .kit import incident

FAST = Pace(backoff_s_min=0.01, backoff_s_max=0.02, give_up_s=60.0, breaker_open_s=0.05)
WAIT_S = 30.0
TAG = object()


class Scripted:
    """A channel that does what it is told, in turn; then it takes everything."""

    name = "slack"
    keyed = False
    rate_per_s = 10_000.0
    burst = 10_000

    def __init__(self) -> None:
        self.script: deque[BaseException | threading.Event] = deque()
        self.always: BaseException | None = None
        self.sent: list[str] = []
        self.at_s: list[float] = []

    def send(self, notice: Notice) -> str:
        self.at_s.append(time.monotonic())
        self.sent.append(notice.notification_id)
        step = self.script.popleft() if self.script else self.always
        if isinstance(step, threading.Event):
            assert step.wait(WAIT_S)
        elif step is not None:
            raise step
        return "taken"

    def close(self) -> None:
        pass


class Post:
    """A courier and its results."""

    def __init__(self, channel: Scripted, pace: Pace) -> None:
        self.channel = channel
        self.results: SimpleQueue[Result] = SimpleQueue()
        self.courier = Courier(channel, self.results.put, pace)

    def take(self, name: str, tag: object = TAG) -> bool:
        return self.courier.take(notice_of(incident(), "trigger", name), tag)

    def result(self) -> Result:
        return self.results.get(timeout=WAIT_S)


@pytest.fixture
def post() -> Iterator[Callable[..., Post]]:
    made: list[Post] = []

    def make(channel: Scripted | None = None, pace: Pace = FAST) -> Post:
        made.append(Post(channel or Scripted(), pace))
        return made[-1]

    yield make
    for each in made:
        each.courier.close()


def wait_for(check: Callable[[], Any]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def retried() -> float:
    labels = {"channel": "slack", "kind": "trigger", "outcome": "retried"}
    return REGISTRY.get_sample_value("kintsugi_notifications_total", labels) or 0.0


def test_what_is_taken_has_one_result(post: Callable[..., Post]) -> None:
    at = post()
    assert at.take("a")
    assert at.result() == Result(notification_id="a", tag=TAG, outcome="delivered", tries=1, detail="taken")
    wait_for(lambda: len(at.courier) == 0)


def test_what_passes_is_tried_again_until_it_is_taken(post: Callable[..., Post]) -> None:
    at, before = post(), retried()
    at.channel.script.extend([ChannelAwayError("away"), ChannelAwayError("away"), ValueError("a defect of ours")])
    at.take("a")
    found = at.result()
    assert (found.outcome, found.tries) == ("delivered", 4)
    assert retried() - before == 3


def test_what_is_refused_is_given_up_at_once(post: Callable[..., Post]) -> None:
    at = post()
    at.channel.script.append(ChannelRefusedError("slack answered 404"))
    at.take("a")
    found = at.result()
    assert (found.outcome, found.tries, found.detail) == ("given_up", 1, "slack answered 404")


def test_it_is_given_up_when_its_time_is_over_and_says_what_was_answered_last(post: Callable[..., Post]) -> None:
    at = post(pace=Pace(backoff_s_min=0.01, backoff_s_max=0.02, give_up_s=0.2, breaker_open_s=0.01))
    at.channel.always = ChannelAwayError("slack answered 500")
    at.take("a")
    found = at.result()
    assert found.outcome == "given_up"
    assert found.tries > 1
    assert found.detail == "not within 0 s; slack answered 500"


def test_time_is_over_for_what_waits_behind_others_too(post: Callable[..., Post]) -> None:
    """The breaker is open, and what came last is due first: that must not keep the others alive."""
    at = post(pace=Pace(backoff_s_min=0.01, backoff_s_max=0.02, give_up_s=0.5, breaker_open_s=60.0))
    at.channel.always = ChannelAwayError("away")
    for number in range(20):
        at.take(str(number))
    found = [at.result() for _ in range(20)]
    assert {result.outcome for result in found} == {"given_up"}
    assert {result.notification_id for result in found} == {str(number) for number in range(20)}
    assert len(at.channel.sent) < BREAKER_FAILURES + module.THREADS


def test_the_channel_is_left_alone_as_long_as_it_asks(post: Callable[..., Post]) -> None:
    at = post()
    at.channel.script.append(ChannelAwayError("slow down", retry_after_s=0.5))
    at.take("a")
    wait_for(lambda: at.channel.sent)
    at.take("b")
    assert {at.result().notification_id for _ in range(2)} == {"a", "b"}
    assert at.channel.at_s[1] - at.channel.at_s[0] >= 0.5, "the other waits too: it is the channel that asks"


def test_a_channel_may_not_ask_for_ever(post: Callable[..., Post], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER_S_MAX", 0.05)
    at = post()
    at.channel.script.append(ChannelAwayError("slow down", retry_after_s=1e9))
    at.take("a")
    assert at.result().outcome == "delivered"


def test_an_open_breaker_lets_one_try_at_a_time(post: Callable[..., Post]) -> None:
    at = post(pace=Pace(backoff_s_min=0.001, backoff_s_max=0.002, give_up_s=60.0, breaker_open_s=0.3))
    at.channel.always = ChannelAwayError("away")
    for number in range(50):
        at.take(str(number))
    wait_for(lambda: len(at.channel.sent) >= BREAKER_FAILURES + module.THREADS + 2)
    gaps = [b - a for a, b in zip(at.channel.at_s[-3:], at.channel.at_s[-2:], strict=False)]
    assert all(gap >= 0.3 for gap in gaps)
    at.channel.always = None
    assert {at.result().outcome for _ in range(50)} == {"delivered"}, "and all of them once it is back"


def test_a_rate_is_kept(post: Callable[..., Post]) -> None:
    channel = Scripted()
    channel.rate_per_s, channel.burst = 20.0, 2
    at = post(channel)
    for number in range(8):
        at.take(str(number))
    assert {at.result().outcome for _ in range(8)} == {"delivered"}
    assert channel.at_s[-1] - channel.at_s[0] >= 6 / 20 - 0.06, "two at once, then one every 50 ms"


def test_too_many_are_refused(post: Callable[..., Post], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    at, gate = post(), threading.Event()
    at.channel.script.extend([gate] * module.THREADS)
    for number in range(module.THREADS):
        at.take(str(number))
    wait_for(lambda: len(at.channel.sent) == module.THREADS)
    assert [at.take(name) for name in "abcd"] == [True, True, True, False]
    gate.set()
    assert {at.result().outcome for _ in range(module.THREADS + 3)} == {"delivered"}


def test_what_is_taken_back_is_not_sent(post: Callable[..., Post]) -> None:
    at, gate = post(), threading.Event()
    at.channel.script.extend([gate] * module.THREADS)
    for number in range(module.THREADS):
        at.take(str(number))
    wait_for(lambda: len(at.channel.sent) == module.THREADS)
    at.take("a")
    assert at.courier.recall("a") == 0
    assert at.courier.recall("a") is None
    gate.set()
    assert {at.result().notification_id for _ in range(module.THREADS)} == {"0", "1"}
    assert "a" not in at.channel.sent


def test_what_is_taken_back_in_the_middle_ends_after_this_try(post: Callable[..., Post]) -> None:
    at, gate = post(), threading.Event()

    class Away(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert gate.wait(timeout)
            raise ChannelAwayError("away")

    at.channel.script.append(Away())
    at.take("a")
    wait_for(lambda: at.channel.sent)
    assert at.courier.recall("a") is None
    assert at.courier.is_trying(TAG)
    gate.set()
    found = at.result()
    assert (found.outcome, found.tries) == ("recalled", 1)
    wait_for(lambda: not at.courier.is_trying(TAG))


def test_who_goes_is_forgotten_and_the_others_are_not(post: Callable[..., Post]) -> None:
    at, gate, other = post(), threading.Event(), object()
    at.channel.script.extend([gate] * module.THREADS)
    for number in range(module.THREADS):
        at.take(str(number), other)
    wait_for(lambda: len(at.channel.sent) == module.THREADS)
    at.take("mine", TAG)
    at.take("theirs", other)
    at.courier.forget(TAG)
    assert len(at.courier) == module.THREADS + 1
    gate.set()
    assert "theirs" in {at.result().notification_id for _ in range(module.THREADS + 1)}
    assert "mine" not in at.channel.sent


def test_a_hung_request_does_not_keep_it_from_ending(
    post: Callable[..., Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.1)
    at, gate = post(), threading.Event()
    at.channel.script.append(gate)
    at.take("a")
    wait_for(lambda: at.channel.sent)
    at.courier.close()
    gate.set()
    assert at.result().outcome == "delivered"
