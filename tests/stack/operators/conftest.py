"""What tests of an operator's commands share: ann at her terminal, and an engine that asks a human at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.stack import Addresses

from ..cli import Cli
from ..kit import Role

#: Asks a human at once.
PATIENT = Path(__file__).parents[1] / "ask_at_once.yaml"


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    """Of ann, and of the roles that a test starts."""
    return {**os.environ, **own.environment(), "KINTSUGI_ACTOR": "ann"}


@pytest.fixture
def cli(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Cli:
    """Runs commands as ann."""
    return Cli({**environment, "KINTSUGI_OBJECTS": (tmp_path / "objects").as_uri()}, monkeypatch, capfd)


@pytest.fixture
def roles(start: Callable[..., Role]) -> None:
    """An engine that asks a human at once, and the tables."""
    start("recovery", "--policy", str(PATIENT)).wait_log("started")
    start("projector").wait_log("started")
