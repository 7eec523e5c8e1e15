"""Fixtures of the tests that run roles on the real stack."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.policy import default_policy
from engine.testing import Service, World
from ops.stack import Addresses
from schemas.records.events import StepSpec, WorkflowCompleted
from schemas.topics import COORDINATION, EVENTS

from ..unit.engine.test_ladders import saved
from .client_kit import Child, Desk, Here, close_all, environment_of, fresh_name
from .database import own_database, stand_at_the_logs_end
from .kit import Role, Topics, ends_of, know_nothing, stand_at
from .stacks import own_stack


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a stack of this test's own lies."""
    return tmp_path / "stack"


@pytest.fixture
def breakable(home: Path) -> Iterator[Addresses]:
    """A stack of this test's own, whose parts it may kill."""
    with own_stack(home) as at:
        yield at


@pytest.fixture
def own(addresses: Addresses, database: str) -> Addresses:
    """The stack, with a database of this test's own."""
    return replace(addresses, postgres=database)


@pytest.fixture
def own_records(own: Addresses) -> None:
    """The tables begin where the log ends now, and not with what other tests left in it."""
    stand_at_the_logs_end(own)


@pytest.fixture
def database(addresses: Addresses) -> Iterator[str]:
    """A migrated database of this test's own, by its URL."""
    with own_database(addresses.postgres) as url:
        yield url


@pytest.fixture
def world() -> World:
    """Six workflows that ended, every second one after a repair; their log and what followed from it."""
    world = World(default_policy())
    for number in range(6):
        service = Service(world, (StepSpec(step_id="build"), StepSpec(step_id="test")))
        service.start("build")
        service.checkpoint("build", saved)
        if number % 2:
            service.fail("build", "TIMEOUT")
            service.acknowledge(world.commands[-1])
            service.start("build", world.commands[-1])
        service.complete("build")
        service.emit(WorkflowCompleted)
    return world


@pytest.fixture
def topics(addresses: Addresses) -> Iterator[Topics]:
    """Topics of the stack."""
    found = Topics(addresses)
    yield found
    found.registry.close()


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Role]]:
    """Starts roles, each kind in a group and an object store of this test's own; what still runs at the end is killed.

    The groups stand where the log ends now, and there recovery has a snapshot: a test meets only its own records.
    """
    roles: list[Role] = []
    groups: dict[str, str] = {}
    servers, objects = environment["KINTSUGI_KAFKA"], (tmp_path / "objects").as_uri()
    ends = {topic: ends_of(servers, topic) for topic in (EVENTS, COORDINATION)}
    own = {**environment, "KINTSUGI_OBJECTS": objects}

    def group_of(role: str) -> str:
        if role not in groups:
            groups[role] = f"test-{uuid.uuid4()}-{role}"
            stand_at(servers, groups[role], ends[COORDINATION if role == "coordinator" else EVENTS])
            if role == "recovery":
                know_nothing(servers, objects, groups[role], ends[EVENTS])
        return groups[role]

    def start_role(role: str = "recovery", *arguments: str, crash_at: str = "") -> Role:
        log = tmp_path / f"{role}-{len(roles)}.log"
        roles.append(Role(role, own, log, "--group", group_of(role), *arguments, crash_at=crash_at))
        return roles[-1]

    yield start_role
    for started in roles:
        started.kill()


@pytest.fixture
def desk(topics: Topics) -> Desk:
    """Writes commands to services."""
    return Desk(topics)


@pytest.fixture
def service_name() -> str:
    """Name of a service and its workflow type, of this test's own."""
    return fresh_name()


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path, service_name: str) -> Iterator[Callable[..., Here]]:
    """Makes services in this process; they are closed at the end."""
    made: list[Here | Child] = []

    def make(**options: Any) -> Here:
        here = Here(environment, tmp_path, options.pop("name", service_name), **options)
        made.append(here)
        return here

    yield make
    close_all(made)


@pytest.fixture
def spawn(environment: dict[str, str], tmp_path: Path, service_name: str) -> Iterator[Callable[..., Child]]:
    """Starts services as processes of their own; what still runs at the end is killed."""
    made: list[Here | Child] = []

    def make(*arguments: str) -> Child:
        child = Child(environment_of(environment), tmp_path, service_name, *arguments)
        made.append(child)
        return child

    yield make
    close_all(made)
