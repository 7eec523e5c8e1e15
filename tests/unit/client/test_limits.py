"""Local limits: real ones, that a program meets and that scaling raises."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from kintsugi_client import ConfigError, KintsugiError, LocalLimits

ALLOCATE = [sys.executable, "-I", "-S", "-c", "bytes(300 * 1024 * 1024)"]


@pytest.fixture
def workflow_id() -> str:
    return str(uuid.uuid4())


def limits(**options: Any) -> LocalLimits:
    return LocalLimits({"memory": 200}, most={"memory": 1_000}, **options)


def test_a_program_meets_the_limit_until_it_is_raised(workflow_id: str) -> None:
    found = limits()
    before = found.run(workflow_id, ALLOCATE, timeout_s=20)
    assert before.returncode == 1 and "MemoryError" in before.stderr
    assert found.scale(workflow_id, "build", "memory", 3.0) == "600 MB"
    assert found.run(workflow_id, ALLOCATE, timeout_s=20).returncode == 0
    other = found.run(str(uuid.uuid4()), ALLOCATE, timeout_s=20)
    assert "MemoryError" in other.stderr


def test_asked_twice_the_size_is_the_same(workflow_id: str) -> None:
    found = limits()
    assert [found.scale(workflow_id, None, "memory", 1.5) for _ in range(2)] == ["300 MB", "300 MB"]
    assert found.size(workflow_id, "memory") == 300


@pytest.mark.parametrize(
    ("resource", "factor", "message"),
    [
        ("memory", 5.01, "1002 MB of memory are more than the 1000"),
        ("cpu", 2.0, "no cpu is limited here"),
        ("api_calls", 2.0, "no api_calls is limited here"),
        ("memory", 0.0, "is no size"),
        ("memory", float("nan"), "is no size"),
    ],
)
def test_what_this_machine_does_not_give_is_refused(
    workflow_id: str, resource: str, factor: float, message: str
) -> None:
    found = limits()
    with pytest.raises(KintsugiError, match=message):
        found.scale(workflow_id, None, resource, factor)
    assert found.size(workflow_id, "memory") == 200


def test_sizes_in_a_folder_outlive_the_process(workflow_id: str, tmp_path: Path) -> None:
    limits(folder=tmp_path / "limits").scale(workflow_id, None, "memory", 2.0)
    assert limits(folder=tmp_path / "limits").size(workflow_id, "memory") == 400
    assert limits(folder=tmp_path / "limits").size(str(uuid.uuid4()), "memory") == 200


def test_a_spoiled_file_is_named_and_one_of_other_limits_counts_for_what_is_known(
    workflow_id: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{workflow_id}.json"
    path.write_text("{")
    with pytest.raises(KintsugiError, match="cannot be read"):
        limits(folder=tmp_path).size(workflow_id, "memory")
    path.write_text('{"memory": 99999, "cpu": 3, "disk": "x"}')
    assert limits(folder=tmp_path).size(workflow_id, "memory") == 200


def test_a_name_of_a_file_is_only_ever_an_id(tmp_path: Path) -> None:
    with pytest.raises(KintsugiError, match="workflow_id"):
        limits(folder=tmp_path).scale("../elsewhere", None, "memory", 2.0)


@pytest.mark.parametrize(
    ("base", "most", "message"),
    [
        ({"gpu": 1}, {"gpu": 2}, "gpu: 1 is no size"),
        ({"memory": 0}, {"memory": 2}, "memory: 0 is no size"),
        ({"memory": 3}, {"memory": 2}, "a most, not below its base"),
        ({"memory": 3}, {}, "a most, not below its base"),
    ],
)
def test_limits_that_say_nothing_are_refused(base: dict[str, int], most: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalLimits(base, most=most)
