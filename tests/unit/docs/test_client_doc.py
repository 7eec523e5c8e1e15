"""docs/client.md names every limit, error and command as the client has them; its code is run on the real stack."""

from __future__ import annotations

from importlib import import_module

import kintsugi_client
import pytest
from kintsugi_client import Client, KintsugiError, StepContext
from kintsugi_client._schemas.errors import PoisonError
from kintsugi_client.outbox import _SHARES

from .pages import ROOT, bare, blocks, rows, sections, text_of

PAGE = text_of(ROOT / "docs" / "client.md")
SECTIONS = sections(PAGE)
QUICKSTART_LINES_MAX = 15


@pytest.mark.parametrize("row", list(rows(SECTIONS["Limits"])), ids=lambda row: bare(row[2]))
def test_a_limit_is_what_the_code_says(row: list[str]) -> None:
    module, _, name = bare(row[2]).rpartition(".")
    assert getattr(import_module(module), name) == int(row[1])


def test_every_error_is_named() -> None:
    exported = {
        name
        for name in kintsugi_client.__all__
        if isinstance(value := getattr(kintsugi_client, name), type) and issubclass(value, Exception)
    }
    assert {bare(row[0]) for row in rows(SECTIONS["Errors"])} == exported
    assert all(issubclass(getattr(kintsugi_client, name), KintsugiError) for name in exported)
    assert not issubclass(kintsugi_client.StateError, PoisonError)


def test_the_quickstart_is_short() -> None:
    quickstart = blocks(PAGE)[0]
    assert quickstart.language == "python"
    assert len([line for line in quickstart.body.splitlines() if line.strip()]) <= QUICKSTART_LINES_MAX


def test_the_calls_in_the_tables_exist() -> None:
    for name in ("heartbeat", "report_usage", "checkpoint", "persist", "check", "checkpoint_async", "cancelled"):
        assert f"ctx.{name}" in PAGE or f"{name}" in PAGE
        assert hasattr(StepContext, name)
    for name in ("connect", "workflow_type", "listen", "restore", "close"):
        assert hasattr(Client, name) and name in PAGE


def test_the_order_in_which_the_buffer_refuses_is_the_codes() -> None:
    told = [(float(row[0].split()[0]) / 100, row[1]) for row in rows(SECTIONS["Kafka is away"])]
    assert [share for share, _ in told] == [0.8, 0.9, 0.9, 1.0]
    by_share = {share: {name for name, s in _SHARES.items() if s == share} for share in (0.8, 0.9)}
    assert by_share[0.8] == {"StepProgressed", "ResourceUsageReported"}
    assert by_share[0.9] == {"CheckpointCreated", "StatePersisted", "StateRestored", "WorkflowStarted"}


def test_the_code_on_the_page_compiles() -> None:
    code = [block.body for block in blocks(PAGE) if block.language == "python"]
    assert len(code) == 11
    for body in code:
        compile(body, "docs/client.md", "exec")
