"""Work waits for a server that is away: long enough for an outage of ten minutes, not for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ops.patience import WAIT_S_MAX, patiently
from projections.generations import BusyError, GenerationError, SwapTimeoutError
from schemas.errors import KintsugiError, RetriableError

TEN_MINUTES_S = 600.0


class Server:
    """Is away until a time of its clock; work on it takes some seconds, even if it is in vain."""

    def __init__(self, back_at_s: float, *, takes_s: float = 0.1, error: Callable[[], KintsugiError] | None = None):
        self.now_s = 0.0
        self.told: list[str] = []
        self.back_at_s, self._takes_s = back_at_s, takes_s
        self._error = error or (lambda: RetriableError("Postgres: it is away"))

    def work(self) -> str:
        self.now_s += self._takes_s
        if self.now_s < self.back_at_s:
            raise self._error()
        return "done"

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def patiently(self) -> str:
        return patiently(self.work, self.told.append, clock=lambda: self.now_s, sleep=self.sleep)


def test_ten_minutes_are_waited_for_and_told() -> None:
    server = Server(TEN_MINUTES_S)
    assert server.patiently() == "done"
    assert TEN_MINUTES_S <= server.now_s < TEN_MINUTES_S + 20, "it notices soon that the server is back"
    assert server.told[0] == "waits 1 s, 900 s at most in all: Postgres: it is away"
    assert len(server.told) < 60, "it does not ask every second"


def test_a_server_that_takes_long_to_refuse_counts_as_away() -> None:
    assert Server(TEN_MINUTES_S, takes_s=10.0).patiently() == "done"


def test_it_does_not_wait_for_ever() -> None:
    server = Server(10 * WAIT_S_MAX)
    with pytest.raises(RetriableError, match="it is away"):
        server.patiently()
    assert WAIT_S_MAX <= server.now_s < WAIT_S_MAX + 20


def test_who_worked_between_two_outages_waits_anew() -> None:
    server, outages = Server(0.0), [0.8 * WAIT_S_MAX] * 3

    def work() -> str:
        if not outages:
            return "done"
        server.now_s += 61.0
        server.back_at_s = server.now_s + outages.pop()
        raise RetriableError("Postgres: it went away")

    def until_back() -> str:
        return work() if server.now_s >= server.back_at_s else server.work()

    assert patiently(until_back, server.told.append, clock=lambda: server.now_s, sleep=server.sleep) == "done"
    assert server.now_s > 2 * WAIT_S_MAX


@pytest.mark.parametrize("error", [GenerationError, SwapTimeoutError, BusyError])
def test_what_no_waiting_helps_is_raised_at_once(error: type[KintsugiError]) -> None:
    server = Server(5.0, error=lambda: error("no"))
    with pytest.raises(error):
        server.patiently()
    assert server.told == []


def test_who_waited_may_find_its_own_lock_held_for_a_while() -> None:
    errors = [RetriableError("Postgres: it is away"), BusyError("another rebuild is at work")]
    server = Server(3.5, error=lambda: errors.pop(0) if len(errors) > 1 else errors[0])
    assert server.patiently() == "done"
    assert "another rebuild" in server.told[-1]
