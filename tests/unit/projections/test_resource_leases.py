"""Rows of `resource_leases`."""

from __future__ import annotations

from typing import Any

import pytest

from engine.policy import default_policy
from engine.testing import Service, World
from projections.catalog import TABLES
from projections.fold import Rows, fold, touched
from schemas.records.events import ResourceGranted, ResourceReleased, ResourceRequested, StepSpec

_TABLE = next(table for table in TABLES if table.name == "resource_leases")
_PLAN = touched([_TABLE])
LEASE = {"resource_id": "printer", "lease_id": "lease"}


@pytest.fixture
def world() -> World:
    return World(default_policy())


@pytest.fixture
def service(world: World) -> Service:
    return Service(world, (StepSpec(step_id="print"),))


def rows(world: World) -> list[Any]:
    """All rows, in the order in which they were made."""
    found: Rows = {}
    fold(found, world.log, _PLAN)
    return list(found.get(_TABLE.name, {}).values())


def test_a_lease_is_waited_for_held_and_returned(world: World, service: Service) -> None:
    service.emit(ResourceRequested, step_id="print", amount=2, priority=1, **LEASE)
    (row,) = rows(world)
    requested_at = world.now_us
    assert (row.status, row.step_id, row.amount, row.priority) == ("waiting", "print", 2, 1)
    assert (row.workflow_type, row.lease_id, row.resource_id) == ("development", "lease", "printer")

    world.now_us += 1_000_000
    service.emit(ResourceGranted, amount=2, **LEASE)
    (row,) = rows(world)
    assert (row.status, row.requested_at, row.granted_at) == ("granted", requested_at, requested_at + 1_000_000)

    world.now_us += 1_000_000
    service.emit(ResourceReleased, reason="done", **LEASE)
    (row,) = rows(world)
    assert (row.status, row.released_at, row.reason) == ("released", requested_at + 2_000_000, "done")


def test_asked_and_granted_twice_is_once(world: World, service: Service) -> None:
    service.emit(ResourceRequested, step_id="print", **LEASE)
    service.emit(ResourceGranted, **LEASE)
    (before,) = rows(world)
    world.now_us += 1_000_000
    service.emit(ResourceRequested, step_id="print", **LEASE)
    service.emit(ResourceGranted, **LEASE)

    assert rows(world) == [before]


def test_a_grant_that_comes_after_the_end_of_the_wish_changes_nothing(world: World, service: Service) -> None:
    service.emit(ResourceRequested, step_id="print", **LEASE)
    service.emit(ResourceReleased, reason="gave up", **LEASE)
    service.emit(ResourceGranted, **LEASE)
    world.now_us += 1_000_000
    service.emit(ResourceReleased, reason="again", **LEASE)

    (row,) = rows(world)
    assert (row.status, row.granted_at, row.reason) == ("released", None, "gave up")


def test_a_lease_id_that_is_used_again_is_a_new_wish(world: World, service: Service) -> None:
    service.emit(ResourceRequested, step_id="print", **LEASE)
    service.emit(ResourceReleased, **LEASE)
    service.emit(ResourceRequested, step_id="print", amount=3, **LEASE)

    (row,) = rows(world)
    assert (row.status, row.amount, row.released_at) == ("waiting", 3, None)


def test_two_workflows_may_choose_the_same_lease_id(world: World, service: Service) -> None:
    other = Service(world, (StepSpec(step_id="print"),))
    service.emit(ResourceRequested, step_id="print", **LEASE)
    other.emit(ResourceRequested, step_id="print", **LEASE)
    other.emit(ResourceReleased, **LEASE)

    assert [row.status for row in rows(world)] == ["waiting", "released"]


def test_what_was_never_asked_for_makes_no_row(world: World, service: Service) -> None:
    service.emit(ResourceGranted, **LEASE)
    service.emit(ResourceReleased, **LEASE)

    assert rows(world) == []
