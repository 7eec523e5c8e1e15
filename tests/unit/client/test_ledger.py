"""The memory of command ids: first copies, later copies, and how long they are remembered."""

from __future__ import annotations

import pytest
from kintsugi_client import KintsugiError
from kintsugi_client.ledger import AGAIN, COMMAND_EXPIRY_MAX_MS, NEW, Ledger

#: No command of these tests has expired.
FAR_US = 2**60


def test_a_command_is_taken_up_once() -> None:
    ledger = Ledger()
    assert ledger.take("a", (0, 5), 1, FAR_US) == NEW
    assert ledger.taken("a")
    assert ledger.take("a", (0, 5), 1, FAR_US) == AGAIN  # the same record, read again


def test_a_copy_is_told_what_became_of_the_first() -> None:
    ledger = Ledger()
    ledger.take("a", (0, 5), 1, FAR_US)
    assert ledger.take("a", (0, 9), 1, FAR_US) == "unknown"
    for status in ("accepted", "succeeded"):
        ledger.settle("a", status)
        assert ledger.take("a", (0, 9), 1, FAR_US) == status
    assert ledger.take("a", (3, 5), 1, FAR_US) == "succeeded"  # in another partition: the topic has grown


def test_a_copy_of_what_another_process_received_is_a_copy_here() -> None:
    ledger = Ledger()
    assert ledger.saw("a", (0, 5), 1, FAR_US)
    assert not ledger.taken("a")
    assert ledger.take("a", (0, 9), 1, FAR_US) == "unknown"
    assert not ledger.saw("a", (0, 9), 1, FAR_US)


def test_seeing_a_command_first_does_not_make_it_a_copy() -> None:
    ledger = Ledger()
    ledger.saw("a", (0, 5), 1, FAR_US)
    assert ledger.take("a", (0, 5), 1, FAR_US) == NEW
    assert ledger.saw("a", (0, 5), 1, FAR_US)


def test_ids_are_forgotten_when_no_copy_can_be_valid_any_more() -> None:
    ledger = Ledger()
    ledger.take("old", (0, 1), 1_000, FAR_US)
    ledger.take("edge", (0, 2), 2_000, FAR_US)
    ledger.take("new", (0, 3), 2_000 + COMMAND_EXPIRY_MAX_MS, FAR_US)
    assert not ledger.taken("old") and ledger.taken("edge")
    assert ledger.newest_us == (2_000 + COMMAND_EXPIRY_MAX_MS) * 1000


def test_a_record_with_an_older_time_forgets_nothing() -> None:
    ledger = Ledger()
    ledger.take("a", (0, 1), 2 * COMMAND_EXPIRY_MAX_MS, FAR_US)
    ledger.take("b", (1, 1), 1, FAR_US)
    ledger.take("c", (1, 2), 1, FAR_US)
    assert ledger.taken("a") and ledger.newest_us == 2 * COMMAND_EXPIRY_MAX_MS * 1000


def test_a_full_ledger_refuses_rather_than_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.ledger.LEDGER_MAX", 2)
    ledger = Ledger()
    ledger.take("a", (0, 1), 1, FAR_US)
    ledger.take("b", (0, 2), 2, FAR_US)
    with pytest.raises(KintsugiError, match="2 commands are valid at once"):
        ledger.take("c", (0, 3), 3, FAR_US)
    assert ledger.saw("c", (0, 3), 3, FAR_US)
    assert ledger.take("a", (0, 9), 3, FAR_US) == "unknown"
    assert ledger.take("c", (0, 3), 2 + COMMAND_EXPIRY_MAX_MS, FAR_US) == NEW  # room again, as time passes


def test_what_was_never_seen_cannot_be_settled() -> None:
    ledger = Ledger()
    ledger.settle("a", "succeeded")
    assert ledger.take("a", (0, 1), 1, FAR_US) == NEW


def test_a_full_ledger_forgets_what_has_expired_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.ledger.LEDGER_MAX", 2)
    ledger = Ledger()
    ledger.take("expired", (0, 1), 1, 5_000)
    ledger.take("valid", (0, 2), 2, FAR_US)
    assert ledger.taken("expired")
    assert ledger.take("new", (0, 3), 6, FAR_US) == NEW
    assert not ledger.taken("expired") and ledger.taken("valid")
    with pytest.raises(KintsugiError):
        ledger.take("one more", (0, 4), 7, FAR_US)
