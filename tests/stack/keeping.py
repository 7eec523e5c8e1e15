"""What the tests of the keeper share: workflows with checkpoints, in the log or as claims, and a policy."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import yaml

from ops.stack import Addresses
from schemas import claims
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.objects import Objects
from schemas.records import Record
from schemas.records.events import CheckpointCreated, StepSpec, StepStarted, WorkflowStarted

from .kit import Role, Topics, build, wait_for

Start = Callable[..., Role]


def policy_of(folder: Path, **changed: dict[str, Any]) -> Path:
    """The shipped policy with other values in `state_corruption` or `retention`; scrubbing twice a second."""
    document = yaml.safe_load((files("engine.policy") / "default.yaml").read_text(encoding="utf-8"))
    part = document["workflow_error_handling"]
    part["error_detection"]["state_corruption"]["validation_interval"] = 500
    part["error_detection"]["state_corruption"].update(changed.get("state_corruption", {}))
    part["checkpoints"]["retention"].update(changed.get("retention", {}))
    target = folder / "policy.yaml"
    target.write_text(yaml.safe_dump(document), encoding="utf-8")
    return target


def checkpoints(
    workflow_id: str, count: int, objects: Objects | None = None, size: int = 10
) -> list[CheckpointCreated]:
    """A chain of checkpoints; with `objects` each lies there as a claim."""
    made: list[CheckpointCreated] = []
    for number in range(1, count + 1):
        data = canonical_bytes(
            {
                "workflow_id": workflow_id,
                "step_id": "build",
                "status": "running",
                "data": {"n": number, "x": "x" * size},
            }
        )
        before, digest = (made[-1] if made else None), digest_of(data)
        fields: dict[str, Any] = {"state": data} if objects is None else {"claim_uri": claims.put(objects, data)}
        made.append(
            build(
                CheckpointCreated,
                workflow_id,
                checkpoint_id=str(uuid.uuid4()),
                step_id="build",
                checkpoint_type="manual",
                sequence=number,
                state_version="1",
                codec="identity",
                size_bytes=len(data),
                digest=digest,
                parent_digest=None if before is None else before.digest,
                chain_digest=chain_digest_of(None if before is None else before.chain_digest, digest),
                status="running",
                **fields,
            )
        )
    return made


def beginning(workflow_id: str) -> list[Record]:
    """A workflow that runs its one step, with a day to do it in."""
    return [
        build(WorkflowStarted, workflow_id, workflow_version="1", steps=(StepSpec(step_id="build"),)),
        build(StepStarted, workflow_id, step_id="build", step_run_id=str(uuid.uuid4()), timeout_ms=86_400_000),
    ]


def query(own: Addresses, text: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Rows of the tables."""
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        return connection.execute(text.encode(), parameters).fetchall()


def rows_of(own: Addresses, workflow_id: str) -> set[str]:
    """Ids of the checkpoints that have a row."""
    return {str(i) for (i,) in query(own, "SELECT id FROM workflow_checkpoints WHERE workflow_id = %s", workflow_id)}


def applied(own: Addresses, topics: Topics, *workflow_ids: str, checkpoints: int) -> None:
    """Wait until the tables have so many checkpoints of each workflow."""
    for workflow_id in workflow_ids:
        wait_for("checkpoints in the tables", lambda i=workflow_id: len(rows_of(own, i)) == checkpoints)
