"""Work that goes on behind: in order, one piece at a time, and what it raises reaches who has put it there."""

from __future__ import annotations

import threading

import pytest

from ops.behind import Behind

_WAIT_S = 60.0


def test_a_piece_is_done_while_the_next_one_is_made_and_outcomes_keep_their_order() -> None:
    go_on = threading.Event()

    def first() -> int:
        assert go_on.wait(_WAIT_S)
        return 1

    with Behind[int]() as behind:
        behind.put(first)
        go_on.set()  # only reached because `put` did not wait
        behind.put(lambda: 2)
        behind.put(lambda: 3)
        assert behind.end() == [1, 2, 3]


def test_two_pieces_are_never_at_work_at_once() -> None:
    seen: list[str] = []

    def piece() -> None:
        seen.append("begins")
        threading.Event().wait(0.001)  # time for another one to begin
        seen.append("ends")

    with Behind[None]() as behind:
        for _ in range(20):
            behind.put(piece)
        behind.end()
    assert seen == ["begins", "ends"] * 20


def test_what_a_piece_raises_comes_with_the_next_call_and_is_not_followed_by_another_piece() -> None:
    done: list[str] = []

    def fails() -> None:
        raise ValueError("no")

    with Behind[None]() as behind:
        behind.put(fails)
        with pytest.raises(ValueError, match="no"):
            behind.put(lambda: done.append("after"))
    assert not done


def test_leaving_waits_for_the_piece_at_work() -> None:
    done: list[str] = []
    with Behind[None]() as behind:
        behind.put(lambda: done.append("written"))
    assert done == ["written"]
