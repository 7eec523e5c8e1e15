"""A workflow's JSON Schema is in its snapshot, once for all workflows that share it."""

from __future__ import annotations

from engine.policy import default_policy
from engine.snapshot import dump, load
from engine.testing import Service, World
from schemas.records.events import StepSpec
from schemas.state_schema import schema_text

LARGE = schema_text({"type": "object", "description": "0123456789" * 1_000, "required": ["n"]})


def test_a_schema_is_there_again() -> None:
    world = World(default_policy())
    for text in (None, LARGE, LARGE, "no schema"):
        Service(world, (StepSpec(step_id="build"),), state_version="1", state_schema=text)
    states = list(world.states.values())
    data = dump(states)
    again = load(data)
    assert [s.schema and s.schema.text for s in again] == [None, LARGE, LARGE, None]
    assert [s.schema_version for s in again] == ["1"] * 4
    assert dump(again) == data
    assert len(dump(states * 50)) < len(data) + 20_000
