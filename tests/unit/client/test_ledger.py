"""The memory of command ids: first copies, later copies, and how long they are remembered."""

from __future__ import annotations

import pytest
from kintsugi_client import KintsugiError
from kintsugi_client.ledger import AGAIN, COMMAND_EXPIRY_MAX_MS, NEW, Ledger


def test_a_command_is_taken_up_once() -> None:
    ledger = Ledger()
    assert ledger.take("a", (0, 5), 1) == NEW
    assert ledger.taken("a")
    assert ledger.take("a", (0, 5), 1) == AGAIN  # the same record, read again


def test_a_copy_is_told_what_became_of_the_first() -> None:
    ledger = Ledger()
    ledger.take("a", (0, 5), 1)
    assert ledger.take("a", (0, 9), 1) == "unknown"
    for status in ("accepted", "succeeded"):
        ledger.settle("a", status)
        assert ledger.take("a", (0, 9), 1) == status
    assert ledger.take("a", (3, 5), 1) == "succeeded"  # in another partition: the topic has grown


def test_a_copy_of_what_another_process_received_is_a_copy_here() -> None:
    ledger = Ledger()
    assert ledger.saw("a", (0, 5), 1)
    assert not ledger.taken("a")
    assert ledger.take("a", (0, 9), 1) == "unknown"
    assert not ledger.saw("a", (0, 9), 1)


def test_seeing_a_command_first_does_not_make_it_a_copy() -> None:
    ledger = Ledger()
    ledger.saw("a", (0, 5), 1)
    assert ledger.take("a", (0, 5), 1) == NEW
    assert ledger.saw("a", (0, 5), 1)


def test_ids_are_forgotten_when_no_copy_can_be_valid_any_more() -> None:
    ledger = Ledger()
    ledger.take("old", (0, 1), 1_000)
    ledger.take("edge", (0, 2), 2_000)
    ledger.take("new", (0, 3), 2_000 + COMMAND_EXPIRY_MAX_MS)
    assert not ledger.taken("old") and ledger.taken("edge")
    assert ledger.newest_us == (2_000 + COMMAND_EXPIRY_MAX_MS) * 1000


def test_a_record_with_an_older_time_forgets_nothing() -> None:
    ledger = Ledger()
    ledger.take("a", (0, 1), 2 * COMMAND_EXPIRY_MAX_MS)
    ledger.take("b", (1, 1), 1)
    ledger.take("c", (1, 2), 1)
    assert ledger.taken("a") and ledger.newest_us == 2 * COMMAND_EXPIRY_MAX_MS * 1000


def test_a_full_ledger_refuses_rather_than_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.ledger.LEDGER_MAX", 2)
    ledger = Ledger()
    ledger.take("a", (0, 1), 1)
    ledger.take("b", (0, 2), 2)
    with pytest.raises(KintsugiError, match="2 commands in 15 minutes"):
        ledger.take("c", (0, 3), 3)
    assert ledger.saw("c", (0, 3), 3)
    assert ledger.take("a", (0, 9), 3) == "unknown"
    assert ledger.take("c", (0, 3), 2 + COMMAND_EXPIRY_MAX_MS) == NEW  # room again, as time passes


def test_what_was_never_seen_cannot_be_settled() -> None:
    ledger = Ledger()
    ledger.settle("a", "succeeded")
    assert ledger.take("a", (0, 1), 1) == NEW
