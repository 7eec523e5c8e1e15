"""Nothing that a workflow carries gets into a line, however carelessly it is logged."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consumers.loggable import FIELDS, MEMBERS_MAX, NOT_LOGGED, PLACES_MAX, TEXT_CHARS_MAX, only_loggable, places, said
from schemas.errors import AdmissionError, FencedError, RetriableError, StateError

ROOT = Path(__file__).parents[3]
CANARY = "canary-4711"


def line(**fields: Any) -> dict[str, Any]:
    return dict(only_loggable(None, "warning", {"event": "x", **fields}))


class Careless:
    """Shows what it holds."""

    def __repr__(self) -> str:
        return CANARY


@pytest.mark.parametrize(
    "fields",
    [
        {"state": CANARY},
        {"message": CANARY},
        {"exc_info": (ValueError, ValueError(CANARY), None)},
        {"stack_info": CANARY},
        {"context": {"a": CANARY}},
        {"partitions": {0: {"state": CANARY}}},
        {"partitions": [Careless()]},
        {"reason": Careless()},
        {"place": CANARY.encode()},
        {"error": ValueError(CANARY)},
        {"error": KeyError(CANARY)},
        {"error": StateError("schema", f"$.data: {CANARY} is not a number")},
        {"error": AdmissionError("too_long", f"{CANARY} is too long")},
    ],
)
def test_what_a_workflow_carries_is_left_out(fields: dict[str, Any]) -> None:
    shown = line(**fields)
    assert CANARY not in json.dumps(shown)
    assert set(shown) >= {"event", *fields}, "that something was there may be seen"


def test_our_own_errors_say_what_happened() -> None:
    assert line(error=RetriableError("Kafka is away"))["error"] == "RetriableError: Kafka is away"
    assert line(error=FencedError("partition 3"))["error"] == "FencedError: partition 3"
    assert said(StateError("digest", "whatever")) == "StateError: digest"


def test_other_errors_say_where_they_came_from() -> None:
    def deep(levels: int) -> None:
        if not levels:
            raise ValueError(CANARY)
        deep(levels - 1)

    with pytest.raises(ValueError, match=CANARY) as caught:
        deep(10)
    shown = line(error=caught.value)
    assert shown["error"] == "ValueError"
    assert len(shown["at"]) == PLACES_MAX
    assert all(place.startswith(f"{__name__}:") for place in shown["at"])
    assert places(None) == []


def test_lines_are_bounded() -> None:
    shown = line(reason="x" * 10_000, partitions=dict.fromkeys(range(10_000), "y" * 10_000))
    assert len(shown["reason"]) == TEXT_CHARS_MAX
    assert len(shown["partitions"]) == MEMBERS_MAX
    assert len(json.dumps(shown)) < (MEMBERS_MAX + 2) * (TEXT_CHARS_MAX + 20)


def test_every_field_that_a_role_logs_is_named() -> None:
    """And every name is used: a list that only grows protects less and less."""
    logged = {"event", "level", "timestamp", "role"}
    for source in (ROOT / "consumers").rglob("*.py"):
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            a_logger = ast.unparse(call.func.value) in ("log", "log()", "telemetry.log()", "self._log")
            if a_logger and call.func.attr in ("debug", "info", "warning", "error"):
                assert all(isinstance(a, ast.Constant) for a in call.args), f"{source}: {ast.unparse(call)}"
                logged |= {str(keyword.arg) for keyword in call.keywords}
    assert logged == FIELDS


SCRIPT = f"""
import logging, sys, threading, warnings
from consumers.telemetry import log, setup_logs
setup_logs("recovery", level="debug")
logging.getLogger("some.library").warning("%s", {CANARY!r})
logging.getLogger("other").error("no", exc_info=ValueError({CANARY!r}))
warnings.warn({CANARY!r})
def fail():
    raise ValueError({CANARY!r})
thread = threading.Thread(target=fail)
thread.start()
thread.join()
class Dying:
    def __del__(self):
        fail()
del_me = Dying()
del del_me
log().debug("still here", reason="as told", state={CANARY!r})
fail()
"""


def test_what_libraries_and_uncaught_errors_say_is_not_repeated() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [json.loads(text) for text in done.stderr.splitlines()]
    assert CANARY not in done.stderr
    assert [(found["event"], found["level"]) for found in lines] == [
        ("library", "warning"),
        ("library", "warning"),
        ("library", "warning"),
        ("defect", "error"),
        ("defect", "error"),
        ("still here", "debug"),
        ("defect", "error"),
    ]
    assert [found["logger"] for found in lines[:3]] == ["some.library", "other", "py.warnings"]
    assert lines[-1]["error"] == "ValueError"
    assert lines[-1]["at"][-1].startswith("__main__:")
    assert lines[-2]["state"] == NOT_LOGGED
    assert {found["role"] for found in lines} == {"recovery"}
