"""Which checkpoints are made, and under which type: by the policy's block, never by the caller's guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kintsugi_client import CheckpointPolicy, ConfigError
from kintsugi_client._schemas.records.events import CheckpointCreated, WorkflowErrorOccurred
from kintsugi_client.policy import _BLOCK, AUTOMATIC

from engine.policy.file import Checkpoints

from .kit import Service

STORY = Path(__file__).parents[2] / "fixtures" / "workflow-error-handling-config.yaml"


def made(service: Service, **options: Any) -> list[tuple[str, str]]:
    """(step, type) of what a workflow with a critical step, a plain one, a failing one and manual ones makes."""
    workflow = service.client.workflow_type("t", **options).begin()
    with workflow.step("build"):
        pass
    with workflow.step("plain") as step:
        step.checkpoint()
    workflow.checkpoint()
    with pytest.raises(RuntimeError), workflow.step("bad"):
        raise RuntimeError
    (error,) = service.of(WorkflowErrorOccurred)
    found = service.of(CheckpointCreated)
    evidence = [c.checkpoint_id for c in found if c.evidence]
    assert evidence == ([] if error.checkpoint_id is None else [error.checkpoint_id])
    return [(c.step_id, c.checkpoint_type) for c in found]


MANUAL = [("plain", "manual"), ("plain", "manual")]


def test_by_default_all_are_made(service: Service) -> None:
    assert made(service) == [
        ("build", "step_start"),
        ("build", "critical_point"),
        ("plain", "step_start"),
        ("plain", "manual"),
        ("plain", "step_complete"),
        ("plain", "manual"),
        ("bad", "step_start"),
        ("bad", "error_recovery"),
    ]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([], MANUAL),
        (["manual"], MANUAL),
        (["step_start"], [("build", "step_start"), ("plain", "step_start"), *MANUAL, ("bad", "step_start")]),
        (["critical_point"], [("build", "critical_point"), *MANUAL]),
        (["step_complete"], [("build", "step_complete"), ("plain", "manual"), ("plain", "step_complete"), MANUAL[0]]),
        (["error_recovery"], [*MANUAL, ("bad", "error_recovery")]),
    ],
    ids=lambda value: "+".join(value) if all(isinstance(v, str) for v in value) else "",
)
@pytest.mark.parametrize("as_block", [True, False])
def test_what_is_listed_is_made(
    service: Service, types: list[str], expected: list[tuple[str, str]], as_block: bool
) -> None:
    block = {"types": types, "critical_steps": ["build"]}
    assert made(service, **({"checkpoints": block} if as_block else {"checkpoint_types": types})) == expected


def test_without_auto_create_only_manual_ones_are_made(service: Service) -> None:
    assert made(service, checkpoints={"auto_create": False}) == MANUAL


def test_a_declared_critical_step_is_one_whatever_the_list_says(service: Service) -> None:
    kind = service.client.workflow_type("t", checkpoints={"types": ["critical_point"], "critical_steps": []})
    kind.step("declared", critical=True)(lambda ctx: None)
    with kind.begin().step("declared"):
        pass
    assert [c.checkpoint_type for c in service.of(CheckpointCreated)] == ["critical_point"]


def test_before_the_first_step_a_manual_checkpoint_belongs_to_none(service: Service) -> None:
    workflow = service.client.workflow_type("t").begin({"n": 1})
    workflow.checkpoint()
    workflow.persist()
    assert [(c.step_id, c.sequence) for c in service.of(CheckpointCreated)] == [("", 1)]


def test_the_storys_file_is_taken_as_it_stands() -> None:
    block = yaml.safe_load(STORY.read_text())["workflow_error_handling"]["checkpoints"]
    assert CheckpointPolicy.from_block(block) == CheckpointPolicy()


def test_an_empty_block_means_what_it_means_to_the_engine() -> None:
    ours, engines = CheckpointPolicy.from_block({}), Checkpoints()
    assert (ours.auto_create, set(ours.types)) == (engines.auto_create, set(engines.types))
    assert set(ours.critical_steps) == set(engines.critical_steps)
    assert (ours.codec, ours.compress_from_bytes) == (engines.compression.algorithm, engines.compression.min_size)


def test_compression_is_as_the_block_says(service: Service) -> None:
    data = {"text": "a" * 3000}
    for number, (compression, codec) in enumerate(
        [
            ({}, "gzip"),
            ({"algorithm": "zstd"}, "zstd"),
            ({"enabled": False}, "identity"),
            ({"min_size": 10_000}, "identity"),
            ({"min_size": 0}, "gzip"),
        ]
    ):
        kind = service.client.workflow_type(f"t{number}", checkpoints={"compression": compression})
        kind.begin(data).checkpoint()
        assert service.of(CheckpointCreated)[-1].codec == codec


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoints": {"typo": 1}}, "checkpoints: 'typo' is none of auto_create"),
        ({"checkpoints": {"types": "step_start"}}, "checkpoints.types: a list of texts"),
        ({"checkpoints": {"types": ["sometimes"]}}, "'sometimes' is none of"),
        ({"checkpoints": {"types": [["step_start"]]}}, "checkpoints.types: a list of texts"),
        ({"checkpoints": {"critical_steps": [1]}}, "checkpoints.critical_steps: a list of texts"),
        ({"checkpoints": {"auto_create": "yes"}}, "checkpoints.auto_create"),
        ({"checkpoints": {"compression": {"level": 9}}}, "checkpoints.compression: 'level'"),
        ({"checkpoints": {"compression": {"algorithm": "lz4"}}}, "checkpoints.compression.algorithm"),
        ({"checkpoints": {"compression": {"algorithm": "identity"}}}, "checkpoints.compression.algorithm"),
        ({"checkpoints": {"compression": {"enabled": 1}}}, "checkpoints.compression.enabled"),
        ({"checkpoints": {"compression": {"min_size": -1}}}, "checkpoints.compression.min_size"),
        ({"checkpoints": {"compression": {"min_size": True}}}, "checkpoints.compression.min_size"),
        ({"checkpoints": []}, "checkpoints: a block of keys"),
        ({"checkpoints": {}, "codec": "zstd"}, "give the one or the others"),
        ({"codec": "lz4"}, "codec 'lz4' is none of"),
    ],
)
def test_a_wrong_block_names_its_key(service: Service, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        service.client.workflow_type("t", **options)


def test_every_key_of_the_block_is_known() -> None:
    assert set(_BLOCK) == set(Checkpoints.model_fields)


def test_what_the_client_makes_by_itself_is_what_the_engine_knows() -> None:
    assert set(AUTOMATIC) == set(Checkpoints().types)
