"""Whatever no code explains is an unknown error: kept, repaired like any other, and grouped with those like it."""

from __future__ import annotations

import pytest

from engine.testing import Service, World
from schemas.records.events import ErrorClassified, StepSpec, WorkflowErrorOccurred

from .kit import started

STACK = (
    'Traceback (most recent call last):\n  File "{file}", line {line}, in main\n  File "{file}", line {line}, in {name}'
)

ALIKE = {
    "numbers": ("no row 17 after 3.5 s", "no row 99 after 0.25 s"),
    "ids": ("lost 0d5b4a2e-7c1c-4c39-9a53-5a3c2b1f0e9d", "lost 11111111-2222-4333-8444-555555555555"),
    "addresses": ("bad object at 0x7f00aa", "bad object at 0x1"),
    "quoted names": ("no user 'ann' in \"north\"", "no user 'bob' in \"south\""),
}
DIFFERENT = {
    "words": ("no row", "no column"),
    "an empty message": ("", "no row"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_errors_that_differ_in_what_varies_are_one_group(name: str) -> None:
    assert len(groups(*ALIKE[name])) == 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_errors_that_say_something_else_are_another_group(name: str) -> None:
    assert len(groups(*DIFFERENT[name])) == 2


def test_where_it_was_raised_tells_them_apart_and_the_line_does_not() -> None:
    world = started()[0]
    for stack in (
        STACK.format(file="a.py", line=3, name="charge"),
        STACK.format(file="b.py", line=4, name="charge"),
        STACK.format(file="a.py", line=3, name="refund"),
    ):
        fail(world, "broken", stack_trace=stack)
    first, moved, other = [e.fingerprint for e in world.records(ErrorClassified)]
    assert first == moved != other


def test_the_service_knows_better_what_it_sealed() -> None:
    world = started()[0]
    fail(world, "sealed", fingerprint="00112233445566ff")
    assert [e.fingerprint for e in world.records(ErrorClassified)] == ["00112233445566ff"]


@pytest.mark.parametrize("code", ["", "ValueError", "timeout", "INFINITE LOOP", "ü" * 1_000])
def test_no_code_is_too_strange_to_be_classified(code: str) -> None:
    world = started()[0]
    fail(world, "broken", error_code=code)
    (classified,) = world.records(ErrorClassified)
    assert (classified.error_type, classified.disposition) == ("unknown_error", "opened")
    assert classified.fingerprint


def groups(*messages: str) -> set[str]:
    """Fingerprints of errors with these messages, each of a workflow of its own."""
    world = started()[0]
    for message in messages:
        fail(world, message)
    return {e.fingerprint for e in world.records(ErrorClassified)}


def fail(world: World, message: str, **fields: object) -> None:
    service = Service(world, (StepSpec(step_id="a"),))
    service.start("a")
    said = {"error_code": "Broken", "error_message": message, "detected_by": "service", "step_id": "a", **fields}
    service.emit(WorkflowErrorOccurred, error_id=world.new_id(), **said)
