"""docs/operations.md knows every metric, log event, reason and setting that the code has, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import pytest
from prometheus_client import REGISTRY

from consumers import telemetry  # its import registers the metrics
from ops import output
from schemas.topics import EVENTS, TOPICS

from .pages import ROOT, bare, code_spans, rows, sections, text_of

PAGE = text_of(ROOT / "docs" / "operations.md")
SECTIONS = sections(PAGE)
SUFFIXES = {"counter": "_total", "info": "_info"}
POISON = {"DecodeError", "AdmissionError"}
#: Reasons given where a record is set aside, rather than by an error.
GIVEN_LATER = {"not_applicable", "refused_by_postgres"}


def metrics() -> dict[str, tuple[str, ...]]:
    """Every metric of ours as it is asked for, and its labels."""
    found = {}
    for name in vars(telemetry).values():
        if hasattr(name, "_labelnames") and hasattr(name, "describe"):
            (family,) = name.describe()
            labels = ("version",) if family.type == "info" else tuple(name._labelnames)
            found[family.name + SUFFIXES.get(family.type, "")] = labels
    return found


@cache
def calls(*folders: str) -> list[ast.Call]:
    """Every call in the sources of some folders."""
    return [
        node
        for folder in folders
        for source in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def first_text(call: ast.Call) -> str | None:
    """The call's first argument, if it is a text."""
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def log_events() -> Iterator[tuple[str, str]]:
    """(event, level) of every line a role writes."""
    for call in calls("consumers"):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("info", "warning", "error"):
            event = first_text(call)
            if event is not None:
                yield event, call.func.attr


def reasons() -> set[str]:
    """Why a record may be set aside: the first argument of the error, or what the plan of the checks gives it."""
    raised = {
        first_text(call)
        for call in calls("schemas", "engine", "consumers")
        if isinstance(call.func, ast.Name) and call.func.id in POISON
    }
    checks = ast.parse((ROOT / "schemas" / "admission.py").read_text(encoding="utf-8"))
    planned = {
        node.value.elts[-1].value
        for node in ast.walk(checks)
        if isinstance(node, ast.Return)
        and isinstance(node.value, ast.Tuple)
        and isinstance(node.value.elts[-1], ast.Constant)
    }
    assert "bad_number" in planned
    return {str(reason) for reason in raised | planned if reason} | GIVEN_LATER


def test_every_metric_is_described_with_its_labels() -> None:
    described = {bare(name): tuple(w for w in labels.split(", ") if w) for name, labels, _ in rows(SECTIONS["Metrics"])}
    assert len(described) >= 20
    assert described == metrics()


def test_every_metric_named_on_the_page_exists() -> None:
    named = set(re.findall(r"\bkintsugi_(?!client)\w+", PAGE))
    assert named <= set(metrics())
    assert {family.name for family in REGISTRY.collect()} >= {"kintsugi_events_processed"}


def test_every_log_event_is_described_with_its_level() -> None:
    described = {(bare(event), level) for event, level, _ in rows(SECTIONS["Log events"])}
    assert described == set(log_events())


def test_every_reason_of_a_dead_letter_is_described() -> None:
    described = {name for cell, _ in rows(SECTIONS["Dead letters"]) for name in re.findall(r"`(\w+)`", cell)}
    assert described == reasons()
    sources = [
        path.read_text(encoding="utf-8") for f in ("consumers", "projections") for path in (ROOT / f).rglob("*.py")
    ]
    assert all(any(f'"{reason}"' in source for source in sources) for reason in GIVEN_LATER)


def test_every_variable_is_described() -> None:
    used = {
        name
        for folder in ("ops", "consumers", "client/kintsugi_client")
        for source in (ROOT / folder).glob("**/*.py")
        for name in re.findall(r'"(KINTSUGI_[A-Z_]+)"', source.read_text(encoding="utf-8"))
        if not name.endswith("_PORT")  # chosen by `kintsugi up` for Docker compose
    }
    assert {bare(row[0]) for row in rows(SECTIONS["Start"])} == used


def test_exit_codes_are_those_of_the_command_line() -> None:
    described = {bare(name): int(code) for code, name, _ in rows(SECTIONS["Exit codes"])}
    assert described == {name: getattr(output, name) for name in described}
    assert {"OK", "FAILED", "USAGE", "TEMPORARY"} <= set(described)


@pytest.mark.parametrize("row", list(rows(SECTIONS["Bounds"])), ids=lambda row: bare(row[0]))
def test_bound_has_the_value_shown(row: list[str]) -> None:
    module, _, name = bare(row[0]).rpartition(".")
    assert str(getattr(import_module(module), name)) == row[1]


def test_partitions_are_as_many_as_the_page_says() -> None:
    (events,) = (topic for topic in TOPICS if topic.name == EVENTS)
    assert f"the {events.partitions} partitions of `workflow.events`" in PAGE
    assert "workflow.events.dlq" in code_spans(PAGE)
