"""What FULL_TRANSITIVE finds between two versions of a record, and what it lets pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.catalog import RELEASED, shipped
from schemas.compat import compare, problems
from schemas.errors import ConfigError

from .kit import changed, field_of

Change = Callable[[dict[str, Any]], None]
NEW_READER, OLD_READER = "new reader, old data", "old reader, new data"


def found(change: Change, name: str = "StepStarted") -> list[str]:
    """Directions that break when the shipped schema is changed so."""
    incompatible = compare(name, "0.1.0", shipped()[name].text, json.dumps(changed(name, change)))
    assert all(p.record == name and p.version == "0.1.0" for p in incompatible)
    return [p.message for p in incompatible]


def retype(field: str, avro: Any) -> Change:
    return lambda schema: field_of(schema, field).update(type=avro)


def add(**field: Any) -> Change:
    return lambda schema: schema["fields"].append(field)


@pytest.mark.parametrize(
    ("change", "directions"),
    [
        (lambda s: s["fields"].remove(field_of(s, "step_id")), [OLD_READER]),
        (add(name="colour", type="string", doc="No default."), [NEW_READER]),
        (lambda s: field_of(s, "step_id").update(name="step"), [NEW_READER, OLD_READER]),
        (retype("step_id", "int"), [NEW_READER, OLD_READER]),
        (retype("step_id", ["null", "string"]), [OLD_READER]),
        (retype("timeout_ms", "long"), [NEW_READER]),
        (retype("occurred_at", "int"), [NEW_READER]),
        (lambda s: s.update(name="StepBegan"), ["kintsugi.StepStarted became kintsugi.StepBegan"]),
        (lambda s: s.update(namespace="other"), ["kintsugi.StepStarted became other.StepStarted"]),
    ],
)
def test_incompatible_change_is_found_in_each_direction_that_breaks(change: Change, directions: list[str]) -> None:
    assert [message.split(":")[0] for message in found(change)] == directions


def test_message_names_the_field_and_the_place() -> None:
    (message,) = found(add(name="colour", type="string", doc="No default."))
    assert "colour" in message
    assert "/fields/" in message


def test_nested_record_is_compared_too() -> None:
    def remove(schema: dict[str, Any]) -> None:
        step = field_of(schema, "steps")["type"]["items"]
        step["fields"] = [f for f in step["fields"] if f["name"] != "step_id"]

    assert [m.split(":")[0] for m in found(remove, "WorkflowStarted")] == [OLD_READER]


@pytest.mark.parametrize(
    "change",
    [
        add(name="colour", type=["null", "string"], default=None, doc="New."),
        add(name="colour", type="string", default="", doc="New."),
        lambda s: s["fields"].remove(field_of(s, "input_digest")),
        lambda s: s["fields"].reverse(),
        lambda s: s.update(doc="Said better."),
    ],
)
def test_compatible_change_passes(change: Change) -> None:
    assert found(change) == []


def test_shipped_schemas_are_compatible_with_every_release() -> None:
    assert problems() == []


def test_record_that_is_gone_is_found(tmp_path: Path) -> None:
    shutil.copytree(RELEASED / "0.1.0", tmp_path / "0.1.0")
    gone = changed("StepStarted", lambda s: s.update(name="StepDreamed"))
    (tmp_path / "0.1.0" / "avsc" / "step_dreamed.avsc").write_text(json.dumps(gone), encoding="utf-8")
    (only,) = problems(tmp_path)
    assert (only.record, only.version, only.message) == ("StepDreamed", "0.1.0", "the record is gone")


def test_every_release_counts_not_the_newest_alone(tmp_path: Path) -> None:
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        shutil.copytree(RELEASED / "0.1.0" / "avsc", tmp_path / version / "avsc")
    older = changed("StepStarted", lambda s: field_of(s, "step_id").update(name="step"))
    (tmp_path / "0.1.0" / "avsc" / "step_started.avsc").write_text(json.dumps(older), encoding="utf-8")
    assert {(p.record, p.version) for p in problems(tmp_path)} == {("StepStarted", "0.1.0")}


def test_nothing_to_compare_with_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no released version"):
        problems(tmp_path)
