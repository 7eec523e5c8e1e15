"""What an operator may do with an incident, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest

from ops.incidents import NOTE_CHARS_MAX, OWNER_CHARS_MAX, Note, RefusedError, breaker_of
from ops.stack import Addresses
from schemas.errors import ConfigError
from schemas.ids import derive_id

NOWHERE = Addresses(kafka="", registry="", postgres="", objects="")


def row(**fields: Any) -> dict[str, Any]:
    base = {"id": derive_id("incident", "test"), "state": "open", "kind": "dependency", "log_partition": 3}
    return {**base, "resolved_at": None, **fields}


def test_an_action_names_the_incident_the_reason_and_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINTSUGI_ACTOR", "ada")
    record = Note(NOWHERE, row(), "own", "on call", owner="grace").record
    assert record.workflow_id == record.incident_id == row()["id"]
    assert (record.action, record.owner, record.reason, record.actor) == ("own", "grace", "on call", "ada")


def test_each_action_is_another_record() -> None:
    one, two = (Note(NOWHERE, row(), "acknowledge", "seen").record for _ in range(2))
    assert one.event_id != two.event_id


def test_nothing_is_done_with_a_resolved_incident() -> None:
    with pytest.raises(RefusedError, match="resolved since") as refused:
        Note(NOWHERE, row(state="resolved", resolved_at="yesterday"), "own", "late")
    assert refused.value.exit_code == 4


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("", {}),
        ("  ", {}),
        ("x" * 1_001, {}),
        ("why", {"owner": " "}),
        ("why", {"owner": "x" * (OWNER_CHARS_MAX + 1)}),
        ("why", {"note": "x" * (NOTE_CHARS_MAX + 1)}),
    ],
)
def test_texts_are_neither_blank_nor_endless(reason: str, fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Note(NOWHERE, row(), "note", reason, **fields)


@pytest.mark.parametrize(
    ("state", "kind", "says"),
    [
        ("open", "dependency", "held"),
        ("recovering", "fingerprint", "waves"),
        ("resolved", "dependency", "as always"),
        ("open", "intervention", "wait for people"),
    ],
)
def test_what_becomes_of_repairs_is_said_in_words(state: str, kind: str, says: str) -> None:
    assert says in breaker_of(row(state=state, kind=kind))
