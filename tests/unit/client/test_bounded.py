"""A call that does not end is left behind; what it would have returned is nobody's any more."""

from __future__ import annotations

import threading

import pytest
from kintsugi_client import RetriableError
from kintsugi_client.bounded import Bounded

from .kit import wait_for


def test_a_call_returns_and_raises_as_it_would_alone() -> None:
    bounded = Bounded()
    assert bounded.call("it", lambda: 5, 5.0) == 5
    with pytest.raises(KeyError):
        bounded.call("it", lambda: {}["a"], 5.0)
    with pytest.raises(SystemExit):
        bounded.call("it", lambda: exit(1), 5.0)


def test_a_call_that_takes_too_long_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(RetriableError, match=r"it: no answer within 0\.05 s"):
        Bounded().call("it", release.wait, 0.05)
    release.set()


def test_no_more_hang_than_allowed_and_room_comes_back() -> None:
    bounded, release = Bounded(hanging_max=2), threading.Event()
    for _ in range(2):
        with pytest.raises(RetriableError, match="no answer"):
            bounded.call("it", release.wait, 0.01)
    with pytest.raises(RetriableError, match="too many"):
        bounded.call("it", lambda: None, 5.0)
    release.set()

    def answers() -> bool:
        try:
            return bounded.call("it", lambda: True, 5.0)
        except RetriableError:
            return False

    wait_for("room", answers)
