"""What tests of the schemas share: arbitrary records, and a registry in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import strategies as st

from schemas.catalog import Schema, shipped
from schemas.ids import derive_id
from schemas.records import RECORD_TYPES, Record
from schemas.records.events import StepSpec, StepStarted

NAMES = sorted(RECORD_TYPES)
WORKFLOW = derive_id("tests", "workflow")


def step_started(**changed: Any) -> StepStarted:
    """A record with nothing special about it."""
    fields: dict[str, Any] = {
        "event_id": derive_id("tests", "event"),
        "workflow_id": WORKFLOW,
        "workflow_type": "development",
        "occurred_at": 1_764_000_000_000_000,
        "producer": "tests",
        "step_id": "build",
        "step_run_id": derive_id("tests", "run"),
    }
    return StepStarted(**{**fields, **changed})


@cache
def records(name: str) -> st.SearchStrategy[Record]:
    """Any record of this type that its schema can write."""
    fields = json.loads(shipped()[name].text)["fields"]
    return st.builds(RECORD_TYPES[name], **{f["name"]: _values(f["type"]) for f in fields})


def _values(avro: Any) -> st.SearchStrategy[Any]:
    if isinstance(avro, list):
        return st.none() | _values(avro[-1])
    if isinstance(avro, dict) and avro["type"] == "array":
        return st.lists(_values(avro["items"]), max_size=3).map(tuple)
    if isinstance(avro, dict):
        return st.builds(StepSpec, **{f["name"]: _values(f["type"]) for f in avro["fields"]})
    primitive: dict[str, st.SearchStrategy[Any]] = {
        "string": st.text(),
        "bytes": st.binary(),
        "boolean": st.booleans(),
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": st.integers(-(2**63), 2**63 - 1),
        "double": st.floats(allow_nan=False),
    }
    return primitive[avro]


class Ids:
    """A registry in memory: knows the shipped schemas and those that `add` gave it, and counts what it is asked."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.asked = 0
        for schema in shipped().values():
            self.add(schema.text)

    def add(self, schema: str | dict[str, Any]) -> int:
        """Id of a new schema."""
        schema_id = len(self.texts) + 1
        self.texts[schema_id] = schema if isinstance(schema, str) else json.dumps(schema)
        return schema_id

    def id_of(self, schema: Schema) -> int:
        """As `SchemaIds`."""
        return next(schema_id for schema_id, text in self.texts.items() if text == schema.text)

    def text_of(self, schema_id: int) -> str | None:
        """As `SchemaIds`."""
        self.asked += 1
        return self.texts.get(schema_id)


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A shipped schema, altered."""
    raw: dict[str, Any] = copy.deepcopy(json.loads(shipped()[name].text))
    change(raw)
    return raw


def field_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """One field of a schema."""
    found: dict[str, Any] = next(f for f in schema["fields"] if f["name"] == name)
    return found
