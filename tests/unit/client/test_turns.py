"""States are written in the order in which they were taken, and none waits for one that is never written."""

from __future__ import annotations

import threading

from kintsugi_client.turns import Turn, Turns


def drawn(turns: Turns, count: int) -> list[Turn]:
    with turns.taking:
        return [turns.draw() for _ in range(count)]


def test_the_order_is_that_of_drawing() -> None:
    turns, order = Turns(), list[int]()
    mine = drawn(turns, 8)

    def use(number: int) -> None:
        with mine[number]:
            order.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in reversed(range(8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order == list(range(8))


def test_a_failure_ends_a_turn() -> None:
    turns = Turns()
    first, second = drawn(turns, 2)
    try:
        with first:
            raise KeyError
    except KeyError:
        pass
    with second:
        pass


def test_what_is_given_up_or_thrown_away_is_passed_over() -> None:
    turns = Turns()
    first, second, third, fourth, fifth = drawn(turns, 5)
    third.give_up()
    with first:
        del second
    del fourth
    ended = threading.Event()

    def use() -> None:
        with fifth:
            ended.set()

    threading.Thread(target=use).start()
    assert ended.wait(20)
