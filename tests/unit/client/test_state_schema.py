"""A type's JSON Schema: refused where it is saved, with the path, and told to the log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kintsugi_client import ConfigError, StateError
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    StatePersisted,
    StepCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from pydantic import BaseModel, Field

from .kit import Service


class Item(BaseModel):
    name: str
    price: float = Field(ge=0)


class Order(BaseModel):
    items: list[Item] = []


SCHEMA = Order.model_json_schema()
GOOD = {"items": [{"name": "a", "price": 1.5}]}
BAD = {"items": [*GOOD["items"], {"name": "b", "price": -1}]}


def test_the_schema_travels_with_the_start(service: Service) -> None:
    service.client.workflow_type("t", version="7", state_schema=SCHEMA).begin(GOOD)
    (started,) = service.of(WorkflowStarted)
    assert started.state_version == "7"
    assert json.loads(started.state_schema or "") == SCHEMA


def test_without_a_schema_the_version_alone_travels(service: Service) -> None:
    service.client.workflow_type("t", version="7").begin()
    assert [(s.state_version, s.state_schema) for s in service.of(WorkflowStarted)] == [("7", None)]


def test_a_state_that_breaks_it_is_refused_to_the_caller(service: Service) -> None:
    workflow = service.client.workflow_type("t", state_schema=SCHEMA, checkpoint_types=()).begin(GOOD)
    step = workflow.step("one").__enter__()
    step.checkpoint()
    before = workflow.chain
    step.state.update(BAD)
    for save in (step.checkpoint, step.persist, workflow.checkpoint):
        with pytest.raises(StateError) as refused:
            save()
        assert (refused.value.reason, refused.value.path) == ("schema", "$.data.items[1].price")
    assert workflow.chain == before
    step.state.update(GOOD)
    step.checkpoint()
    step.persist()
    assert [c.sequence for c in service.of(CheckpointCreated)] == [1, 2]
    assert [p.version for p in service.of(StatePersisted)] == ["1"]


def test_a_step_that_leaves_such_a_state_has_failed_and_its_state_is_the_evidence(service: Service) -> None:
    workflow = service.client.workflow_type("t", state_schema=SCHEMA).begin(GOOD)
    with pytest.raises(StateError), workflow.step("one") as step:
        step.state.update(BAD)
    assert service.of(StepCompleted) == []
    (error,) = service.of(WorkflowErrorOccurred)
    assert error.error_message.startswith("$.data.items[1].price: ")
    evidence = service.of(CheckpointCreated)[-1]
    assert evidence.evidence and b'"price":-1' in (evidence.state or b"")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "bogus"}, "state_schema: the schema cannot be used"),
        ({"$ref": "https://example.org/x"}, "nothing is loaded"),
        ({"description": "x" * 70_000}, "characters"),
        ({"minimum": float("nan")}, "nan is not a JSON number"),
        ("text", "state_schema is a mapping, not str"),
        (Order, "state_schema is a mapping, not ModelMetaclass"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_when_the_type_is_declared(
    service: Service, schema: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        service.client.workflow_type("t", state_schema=schema)
