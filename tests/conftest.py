"""The real stack for tests: Kafka, registry and Postgres, started once per process of tests in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ops import stack
from ops.setup import set_up
from ops.stack import Addresses

#: `pytest -n 2` runs files side by side, each process with a stack of its own.
HOME = Path(__file__).parents[1] / ".kintsugi" / f"test-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"

#: The same examples each time, and no time limits: a run says something of the change, not of chance or of the machine.
#: `pytest --hypothesis-profile random` looks for others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

#: Set by pytest-xdist; what commands print is as wide as it would be for any other program that reads it.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def addresses() -> Iterator[Addresses]:
    """A stack with topics, schemas and tables. One given by the environment is used as it is, and left running."""
    given = stack.is_given()
    if not given:
        stack.down(HOME, purge=True)  # what a killed run left behind
    at = stack.ensure(HOME)
    set_up(at)
    yield at
    if not given:
        stack.down(HOME, purge=True)


@pytest.fixture(scope="session")
def environment(addresses: Addresses) -> dict[str, str]:
    """Environment for child processes that talk to the test stack."""
    return {**os.environ, **addresses.environment()}
