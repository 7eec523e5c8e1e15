"""Delivers through one channel, in threads of its own: whatever one channel does, no other waits for it.

A delivery is tried until the channel takes it, refuses it for good, or its time is over; each ends in exactly one
`Result`. Between two tries it waits longer and longer, and never less than the channel asks for. A bucket of tokens
keeps to the channel's rate. When several tries in a row failed, the breaker opens: only one delivery tries again, after
a while, instead of all of them.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .. import telemetry
from .channels import Channel, ChannelAwayError, ChannelRefusedError
from .notice import Notice

#: Deliveries that wait for one channel. One more is given up at once, and said.
WAITING_MAX = 1_000
#: One hung request does not hold up the next message.
THREADS = 2
#: Between two tries: doubled each time, with jitter, up to the largest.
BACKOFF_S_MIN = 1.0
BACKOFF_S_MAX = 60.0
#: A channel may ask for more time between two tries, but not for more than this.
RETRY_AFTER_S_MAX = 300.0
#: After an hour somebody has noticed in another way, and what is told would be old news.
GIVE_UP_S = 3_600.0
#: Failures in a row that open the breaker, and how long it stays open.
BREAKER_FAILURES = 5
BREAKER_OPEN_S = 15.0
#: How long threads sleep at most when there is nothing to do.
_IDLE_S = 1.0
#: Shortest sleep, so that rounding cannot make them spin.
_WAIT_S_MIN = 0.001
#: At a stop: as long as threads that are not in the middle of a request need to notice.
_CLOSE_S = 1.0

DELIVERED, GIVEN_UP, RECALLED = "delivered", "given_up", "recalled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times of one courier, so that tests need not wait."""

    backoff_s_min: float = BACKOFF_S_MIN
    backoff_s_max: float = BACKOFF_S_MAX
    give_up_s: float = GIVE_UP_S
    breaker_open_s: float = BREAKER_OPEN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a delivery ended: delivered, given_up, or recalled by who asked for it. `tag` is who asked."""

    notification_id: str
    tag: object
    outcome: str
    tries: int
    detail: str


@dataclass(slots=True, kw_only=True)
class _Delivery:
    notice: Notice
    tag: object
    until_s: float
    tries: int = 0
    recalled: bool = False
    said: str = ""
    number: int = field(default=0)


class Courier:
    """The queue and the threads of one channel. All methods may be called from any thread."""

    def __init__(self, channel: Channel, report: Callable[[Result], None], pace: Pace | None = None) -> None:
        self._channel = channel
        self._report = report
        self._pace = pace or Pace()
        self._changed = threading.Condition()
        #: (moment, number, id): when to try again, and when to give up. An entry that is not of what waits under that
        #: id now is passed over.
        self._due: list[tuple[float, int, str]] = []
        self._ends: list[tuple[float, int, str]] = []
        self._waiting: dict[str, _Delivery] = {}
        self._under_way: dict[str, _Delivery] = {}
        self._numbers = itertools.count()
        self._closed = False
        self._tokens = float(channel.burst)
        self._tokens_at_s = time.monotonic()
        #: Until when the channel asked to be left alone, and until when the breaker is open.
        self._asked_until_s = 0.0
        self._broken_until_s = 0.0
        self._failures = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"notify-{channel.name}-{n}", daemon=True) for n in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def take(self, notice: Notice, tag: object, tries: int = 0) -> bool:
        """Deliver it; a `Result` will follow. False, and nothing follows, when too many wait already."""
        with self._changed:
            if len(self._waiting) >= WAITING_MAX:
                return False
            until_s = time.monotonic() + self._pace.give_up_s
            self._put(_Delivery(notice=notice, tag=tag, until_s=until_s, tries=tries), time.monotonic())
            return True

    def recall(self, notification_id: str) -> int | None:
        """Take a delivery back. How often it was tried; None when it cannot be taken back: its result is there, or
        follows after the try that is being made."""
        with self._changed:
            waiting = self._waiting.pop(notification_id, None)
            if waiting is not None:
                return waiting.tries
            under_way = self._under_way.get(notification_id)
            if under_way is not None:
                under_way.recalled = True
            return None

    def forget(self, tag: object) -> None:
        """Drop what waits for this one who asked; what is under way is not tried again."""
        with self._changed:
            for key in [key for key, found in self._waiting.items() if found.tag is tag]:
                del self._waiting[key]
            for found in self._under_way.values():
                found.recalled = found.recalled or found.tag is tag

    def is_trying(self, tag: object) -> bool:
        """Whether something for this one is being tried at this moment."""
        with self._changed:
            return any(found.tag is tag for found in self._under_way.values())

    def __len__(self) -> int:
        """Deliveries not ended."""
        return len(self._waiting) + len(self._under_way)

    def close(self) -> None:
        """Stop. A request in the middle is left alone: its thread does not keep the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self._channel.close()

    def _put(self, delivery: _Delivery, due_s: float) -> None:
        key = delivery.notice.notification_id
        delivery.number = next(self._numbers)
        self._waiting[key] = delivery
        heapq.heappush(self._due, (due_s, delivery.number, key))
        heapq.heappush(self._ends, (delivery.until_s, delivery.number, key))
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                found = self._next()
                while not self._closed and found is None:
                    self._changed.wait(self._wait_s(time.monotonic()))
                    found = self._next()
                if self._closed:
                    return
            assert found is not None
            delivery, in_time = found
            if in_time:
                self._try(delivery)
            else:
                self._end(delivery, GIVEN_UP, f"not within {self._pace.give_up_s:.0f} s; {delivery.said}".rstrip("; "))

    def _next(self) -> tuple[_Delivery, bool] | None:
        """What to try now, or to give up: then the channel is not asked, and need not be ready."""
        now_s = time.monotonic()
        end_s, key = self._top(self._ends)
        if end_s <= now_s:
            delivery = self._under_way[key] = self._waiting.pop(key)
            return delivery, False
        due_s, key = self._top(self._due)
        if due_s > now_s or not self._ready(now_s):
            return None
        delivery = self._under_way[key] = self._waiting.pop(key)
        self._tokens -= 1
        if self._failures >= BREAKER_FAILURES:
            self._broken_until_s = now_s + self._pace.breaker_open_s  # this one is the trial
        return delivery, True

    def _top(self, heap: list[tuple[float, int, str]]) -> tuple[float, str]:
        """The earliest moment of what waits, and its id; never, when nothing waits."""
        while heap:
            moment_s, number, key = heap[0]
            found = self._waiting.get(key)
            if found is not None and found.number == number:
                return moment_s, key
            heapq.heappop(heap)
        return math.inf, ""

    def _ready(self, now_s: float) -> bool:
        rate = self._channel.rate_per_s
        self._tokens = min(float(self._channel.burst), self._tokens + (now_s - self._tokens_at_s) * rate)
        self._tokens_at_s = now_s
        return self._tokens >= 1 and now_s >= max(self._asked_until_s, self._broken_until_s)

    def _wait_s(self, now_s: float) -> float:
        at_s = max(self._top(self._due)[0], self._asked_until_s, self._broken_until_s)
        if self._tokens < 1:
            at_s = max(at_s, self._tokens_at_s + (1 - self._tokens) / self._channel.rate_per_s)
        at_s = min(at_s, self._top(self._ends)[0])
        return min(_IDLE_S, max(_WAIT_S_MIN, at_s - now_s))

    def _try(self, delivery: _Delivery) -> None:
        delivery.tries += 1
        retry_after_s = 0.0
        try:
            answer = self._channel.send(delivery.notice)
        except ChannelRefusedError as error:
            self._answered()
            self._end(delivery, GIVEN_UP, str(error))
            return
        except ChannelAwayError as error:
            delivery.said = str(error)
            retry_after_s = min(RETRY_AFTER_S_MAX, error.retry_after_s or 0.0)
        except Exception as error:  # a defect of ours on one message must not end the thread
            telemetry.log().error("defect", error=error)
            delivery.said = f"a defect: {type(error).__name__}"
        else:
            self._answered()
            self._end(delivery, DELIVERED, answer)
            return
        self._failed(delivery, retry_after_s)

    def _answered(self) -> None:
        with self._changed:
            self._failures = 0
            self._broken_until_s = 0.0
            self._changed.notify_all()

    def _failed(self, delivery: _Delivery, retry_after_s: float) -> None:
        now_s = time.monotonic()
        pace = self._pace
        telemetry.NOTIFICATIONS.labels(self._channel.name, delivery.notice.kind, "retried").inc()
        with self._changed:
            self._failures += 1
            self._asked_until_s = max(self._asked_until_s, now_s + retry_after_s)
            if self._failures >= BREAKER_FAILURES:
                self._broken_until_s = now_s + pace.breaker_open_s
            if not delivery.recalled:
                # Bounded before the power is taken: a delivery may be tried often.
                wait_s = min(pace.backoff_s_max, pace.backoff_s_min * 2.0 ** min(delivery.tries - 1, 30))
                due_s = min(now_s + wait_s * random.uniform(0.5, 1.0), delivery.until_s)
                self._landed(delivery)
                self._put(delivery, due_s)
                return
        self._end(delivery, RECALLED, delivery.said)

    def _end(self, delivery: _Delivery, outcome: str, detail: str) -> None:
        key = delivery.notice.notification_id
        self._report(
            Result(notification_id=key, tag=delivery.tag, outcome=outcome, tries=delivery.tries, detail=detail)
        )
        with self._changed:
            self._landed(delivery)

    def _landed(self, delivery: _Delivery) -> None:
        key = delivery.notice.notification_id
        if self._under_way.get(key) is delivery:  # one of another owner may have the same id
            del self._under_way[key]
