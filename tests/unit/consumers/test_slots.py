"""Where a partition stands: a position that was not taken is sent again, and none is moved back."""

from __future__ import annotations

from consumers.slots import Slot


def begun(start: int, committed: int) -> Slot:
    slot = Slot(0)
    slot.begin(start, committed)
    return slot


def test_a_position_that_was_not_taken_is_sent_again() -> None:
    slot = begun(5, 5)
    slot.done(8)
    slot.saved()
    slot.unsaved(8)
    assert slot.dirty and slot.processed > slot.committed, "also by the last commit of all"


def test_a_later_position_on_its_way_makes_up_for_it() -> None:
    slot = begun(5, 5)
    slot.done(8)
    slot.saved()
    slot.done(9)
    slot.saved()
    slot.unsaved(8)
    assert not slot.dirty


def test_what_is_folded_again_moves_no_position_back() -> None:
    slot = begun(3, 8)
    slot.unsaved(8)
    assert not slot.dirty
    slot.done(8)
    assert slot.dirty, "whether 8 was taken is not known"
