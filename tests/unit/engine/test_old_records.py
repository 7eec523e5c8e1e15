"""A log that an engine before 0.3.0 wrote: what was spent is spent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.fold import evolve
from engine.policy import default_policy
from engine.state import WorkflowState
from engine.testing import Service, World
from schemas.codec import Unknown
from schemas.records.events import RecoveryDecided, StepSpec

from ..schemas.test_upcasters import READER, written_by


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_budgets_count_the_attempts_of_an_old_engine(version: str) -> None:
    world = World(default_policy())
    service = Service(world, (StepSpec(step_id="build"),))
    service.start("build")
    service.fail("build", "TIMEOUT")
    state: WorkflowState | None = None
    for event in world.log:
        record = READER.decode(written_by(version, event.record))
        assert not isinstance(record, Unknown)
        state = evolve(state, replace(event, record=record))
    now = world.states[service.workflow_id]
    assert state is not None and now.cost == len(world.records(RecoveryDecided)) == 1
    assert (state.cost, state.attempts) == (now.cost, now.attempts)
    assert [case.cost for case in (state.cases or {}).values()] == [1.0]
