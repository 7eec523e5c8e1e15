"""Which fields of a state are hidden, by the place of its event."""

from __future__ import annotations

from ops.hidden import Hidden

PLACES = {0: [(0, ()), (10, ("data.card",)), (20, ("data.name",))]}
STATE = {"data": {"card": 1, "name": 2, "n": 3}}


def test_a_row_hides_what_its_own_projector_hid() -> None:
    hidden = Hidden(PLACES)
    shown = [hidden.in_row(0, offset).apply(STATE)[0]["data"] for offset in (9, 10, 19, 20)]
    assert [[k for k, v in data.items() if v == "[redacted]"] for data in shown] == [[], ["card"], ["card"], ["name"]]


def test_people_are_shown_neither_what_was_hidden_then_nor_what_is_hidden_now() -> None:
    hidden = Hidden(PLACES)
    assert hidden.from_people(0, 15).apply(STATE)[0]["data"] == {"card": "[redacted]", "name": "[redacted]", "n": 3}
    assert hidden.from_people(0, 5).apply(STATE)[0]["data"] == {"card": 1, "name": "[redacted]", "n": 3}


def test_a_partition_of_which_nothing_is_known_hides_nothing() -> None:
    assert Hidden({}).from_people(3, 1).apply(STATE) == (STATE, False)
