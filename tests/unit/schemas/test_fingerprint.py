"""Errors are alike when they differ in numbers, ids and quoted names alone, whoever looks at them."""

from __future__ import annotations

from typing import Any

import pytest

from engine.detectors import fingerprint
from schemas.fingerprint import fingerprint_of
from schemas.ids import derive_id
from schemas.records.events import WorkflowErrorOccurred

STACK = 'File "a.py", line 3\n  File "b.py", line 9'
ERROR = ("orders", "charge", "BROKEN", "order 17 of 'ann' at 0x7f00: no such file", STACK)


def changed(**fields: str | None) -> str:
    names = ("workflow_type", "step_id", "code", "message", "stack_trace")
    return fingerprint_of(**{**dict(zip(names, ERROR, strict=True)), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "same",
    [
        {"message": "order 18 of 'bob' at 0x7fff: no such file"},
        {"message": f'order {derive_id("a", "b")} of "bob" at 0x1: no such file'},
        {"stack_trace": 'File "c.py", line 4\n  File "d.py", line 10'},
    ],
)
def test_what_varies_does_not_count(same: dict[str, str]) -> None:
    assert changed(**same) == changed()


@pytest.mark.parametrize(
    "other",
    [{"workflow_type": "x"}, {"step_id": "x"}, {"code": "x"}, {"message": "no such folder"}, {"stack_trace": None}],
)
def test_what_says_something_counts(other: dict[str, str | None]) -> None:
    assert changed(**other) != changed()


def test_texts_of_any_length_and_kind_have_one() -> None:
    assert len(changed(message="\ud800" * 1_000_000, stack_trace="'" * 1_000_000)) == 16


def error(**fields: Any) -> WorkflowErrorOccurred:
    workflow_type, step_id, code, message, stack = ERROR
    return WorkflowErrorOccurred(
        event_id=derive_id("tests", "event"),
        workflow_id=derive_id("tests", "workflow"),
        workflow_type=workflow_type,
        occurred_at=1,
        producer="tests",
        error_id=derive_id("tests", "error"),
        step_id=step_id,
        error_code=code,
        error_message=message,
        stack_trace=stack,
        detected_by="service",
        **fields,
    )


def test_the_engine_takes_the_services_and_else_its_own_which_is_the_same() -> None:
    assert fingerprint(error()) == changed()
    assert fingerprint(error(fingerprint="0123456789abcdef")) == "0123456789abcdef"
