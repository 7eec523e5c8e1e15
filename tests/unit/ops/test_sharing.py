"""Work that is shared: each piece is done once, whoever does it, and an error ends it."""

from __future__ import annotations

import pytest

from ops.sharing import share


@pytest.mark.parametrize(("processes", "pieces", "workers"), [(1, 5, 1), (2, 50, 2), (3, 2, 2), (4, 0, 1)])
def test_each_piece_is_done_once(processes: int, pieces: int, workers: int) -> None:
    begun: list[int] = []
    done: list[list[int]] = share(list, range(pieces), processes, begins=begun.append)
    assert len(done) == workers
    assert sorted(piece for pieces_of_one in done for piece in pieces_of_one) == list(range(pieces))
    assert begun == done[0]  # the numbers of our own are told, before each


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_the_work(processes: int) -> None:
    with pytest.raises(TypeError):
        share(sum, ["not a number"] * 4, processes, begins=lambda number: None)  # type: ignore[arg-type]
