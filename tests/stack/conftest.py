"""Fixtures of the tests that run roles on the real stack."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops.commands.run import ROLES
from ops.stack import Addresses

from .kit import Role, Topics, stand_at_end


@pytest.fixture
def topics(addresses: Addresses) -> Iterator[Topics]:
    """Topics of the stack."""
    found = Topics(addresses)
    yield found
    found.registry.close()


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Role]]:
    """Starts roles, each kind in a group and an object store of this test's own; what still runs at the end is killed.

    The groups stand at the end of the log, so that a test meets only its own records.
    """
    roles: list[Role] = []
    group = f"test-{uuid.uuid4()}"
    for role in ROLES:
        stand_at_end(environment["KINTSUGI_KAFKA"], f"{group}-{role}")
    own = {**environment, "KINTSUGI_OBJECTS": (tmp_path / "objects").as_uri()}

    def start_role(role: str = "recovery", *arguments: str, crash_at: str = "") -> Role:
        log = tmp_path / f"{role}-{len(roles)}.log"
        roles.append(Role(role, own, log, "--group", f"{group}-{role}", *arguments, crash_at=crash_at))
        return roles[-1]

    yield start_role
    for started in roles:
        started.kill()
