"""Work that several processes take piece by piece: who starts late, or is slow, takes less of it.

The process that began takes part, so that one more costs the start of one process, and that while work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

Piece = TypeVar("Piece")
Done = TypeVar("Done")

#: In a process that joined: how many pieces were taken by all.
_joined: list[Synchronized[int]] = []


def share(
    work: Callable[[Iterator[Piece]], Done], pieces: Sequence[Piece], processes: int, *, begins: Callable[[int], None]
) -> list[Done]:
    """What `work` came to in each process; it is given its pieces one by one and must be picklable, if there are
    several processes. `begins` is called here, before a piece of our own, with the number of those taken before it.

    When one process fails the others end after the pieces they are at, and its error is raised.
    """
    context = get_context("spawn")  # Kafka's client does not survive a fork
    taken = context.Value("q", 0)
    more = min(processes, len(pieces)) - 1
    with ExitStack() as stack:
        others = []
        if more > 0:
            pool = stack.enter_context(
                ProcessPoolExecutor(more, mp_context=context, initializer=_joins, initargs=(taken,))
            )
            others = [pool.submit(_join, work, pieces) for _ in range(more)]
        try:
            return [work(_left(pieces, taken, begins)), *(other.result() for other in others)]
        finally:
            taken.value = len(pieces)


def _joins(taken: Synchronized[int]) -> None:
    _joined.append(taken)


def _join(work: Callable[[Iterator[Piece]], Done], pieces: Sequence[Piece]) -> Done:
    return work(_left(pieces, _joined[0], lambda number: None))


def _left(pieces: Sequence[Piece], taken: Synchronized[int], begins: Callable[[int], None]) -> Iterator[Piece]:
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value = number + 1
        if number >= len(pieces):
            return
        begins(number)
        yield pieces[number]
