"""The commands of a replay are held against those that were sent, by their ids; what cannot be compared says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ops.replay_commands import Window
from ops.replay_export import difference_rows
from ops.replay_range import Range
from schemas.ids import derive_id
from schemas.records import Command
from schemas.records.events import RecoveryDecided

from .replay_kit import LATER, recorded, repaired, replayed

WORLD = repaired(3)
LOG = recorded(WORLD)
SENT = WORLD.commands
DECIDED = [n for n, e in enumerate(WORLD.log) if isinstance(e.record, RecoveryDecided)]


def compared(commands: Sequence[Command], window: Window = LATER, range_: Range | None = None) -> dict[str, Any]:
    return replayed(LOG, range_, commands=commands, window=window)


def test_commands_are_found_by_their_ids_wherever_they_were_written() -> None:
    for commands in (SENT, SENT[::-1], [*SENT, SENT[0]]):
        document = compared(commands)
        assert document["commands_compared"] == {"same": 3} and document["agrees"]
        assert document["command_differences"] == []


def test_a_command_that_says_something_else_is_shown_with_both_sides() -> None:
    other = replace(SENT[1], expires_at=SENT[1].expires_at + 1)
    document = compared([SENT[0], other, SENT[2]])
    assert document["commands_compared"] == {"differs": 1, "same": 2} and not document["agrees"]
    [found] = document["command_differences"]
    assert (found["record"], found["event_id"]) == ("RetryStep", other.event_id)
    assert found["fields"] == {"expires_at": {"recorded": other.expires_at, "now": SENT[1].expires_at}}


def test_on_a_terminal_a_difference_is_a_row_for_each_field() -> None:
    changed = replace(SENT[0], expires_at=1, actor="x" * 1_000)
    [first, second] = difference_rows(compared([changed, *SENT[1:]])["command_differences"])
    assert (first["field"], second["field"], second["recorded"]) == ("actor", "expires_at", "1")
    assert len(first["recorded"]) < 250 and first["now"] == '"engine"'
    [missing, *_] = difference_rows(compared(SENT[1:])["command_differences"])
    assert missing["verdict"] == "not_recorded" and missing["field"] is None


def test_other_words_are_no_other_command() -> None:
    document = compared([replace(SENT[0], reason="said in another way"), *SENT[1:]])
    assert document["commands_compared"] == {"reworded": 1, "same": 2} and document["agrees"]


def test_a_command_that_was_never_sent_and_one_that_nothing_asks_for_are_found() -> None:
    strange = replace(SENT[0], event_id=derive_id(SENT[0].event_id, "strange"))
    document = compared([strange, *SENT[:2]])
    assert document["commands_compared"] == {"not_asked": 1, "not_recorded": 1, "same": 2}
    by_verdict = {found["verdict"]: found["event_id"] for found in document["command_differences"]}
    assert by_verdict == {"not_asked": strange.event_id, "not_recorded": SENT[2].event_id}
    assert not document["agrees"]


def test_commands_of_records_outside_of_the_range_are_nobodys_business() -> None:
    range_ = Range(partition=0, first=0, start=DECIDED[1], end=DECIDED[2])
    assert compared(SENT, range_=range_)["commands_compared"] == {"same": 1}
    assert compared([SENT[0], SENT[2]], range_=range_)["commands_compared"] == {"not_recorded": 1}


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (replace(LATER, whole_from_us=2**59), "retention"),
        (replace(LATER, cut=True), "unread"),
        (replace(LATER, now_us=WORLD.log[DECIDED[0]].timestamp_us), "open"),
    ],
)
def test_what_cannot_be_compared_is_counted_with_the_reason_and_no_disagreement(window: Window, reason: str) -> None:
    document = compared([], window)
    assert document["commands_compared"] == {reason: 3} and document["agrees"]


def test_workflows_whose_beginning_is_gone_prove_nothing() -> None:
    range_ = Range(partition=0, first=0, start=0, end=len(LOG), gap_end=len(LOG))
    assert set(compared([], range_=range_)["commands_compared"]) == {"unproven"}
