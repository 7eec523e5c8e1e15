"""Questions to the tables, each answered from one moment."""

from __future__ import annotations

from typing import Any

from projections.reader import snapshot
from projections.sql import blocks

Row = dict[str, Any]
#: Checkpoints shown with a workflow; `kintsugi workflows show` is no dump.
CHECKPOINTS_SHOWN_MAX = 20

_QUERIES = blocks("ops", "reads.sql")


def workflows(postgres: str, *, status: str | None, workflow_type: str | None, limit: int) -> list[Row]:
    """Workflows, the ones that changed last first."""
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["workflows"], {"status": status, "workflow_type": workflow_type, "limit": limit})


def workflow(postgres: str, workflow_id: str) -> Row | None:
    """One workflow with its errors and newest checkpoints; None when the tables do not know it."""
    parameters = {"id": workflow_id, "limit": CHECKPOINTS_SHOWN_MAX}
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["workflow"], parameters)
        if not found:
            return None
        return {
            **found[0],
            "error_list": tables.query(_QUERIES["workflow_errors"], parameters),
            "checkpoint_list": tables.query(_QUERIES["workflow_checkpoints"], parameters),
        }


def errors(
    postgres: str,
    *,
    status: str | None,
    error_type: str | None,
    step_id: str | None,
    workflow_id: str | None,
    every: bool,
    limit: int,
) -> list[Row]:
    """Errors, newest first. Those that joined the repair of another are left out unless `every`."""
    parameters = {
        "status": status,
        "error_type": error_type,
        "step_id": step_id,
        "workflow_id": workflow_id,
        "all": every or status == "joined",
        "limit": limit,
    }
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["errors"], parameters)


def leases(
    postgres: str, *, resource_id: str | None, workflow_id: str | None, waiting: bool, every: bool, limit: int
) -> list[Row]:
    """Leases of shared resources, and wishes for them: by resource, those who hold before those who wait."""
    parameters = {
        "resource_id": resource_id,
        "workflow_id": workflow_id,
        "waiting": waiting,
        "all": every,
        "limit": limit,
    }
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["leases"], parameters)


def error(postgres: str, error_id: str) -> Row | None:
    """One error, its attempts with why each was decided, and what humans were asked; None when there is none."""
    parameters = {"id": error_id}
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["error"], parameters)
        if not found:
            return None
        return {
            **found[0],
            "attempts": tables.query(_QUERIES["attempts"], parameters),
            "interventions": tables.query(_QUERIES["interventions"], parameters),
        }


def notifications(
    postgres: str, *, incident_id: str | None, channel: str | None, given_up: bool, limit: int
) -> list[Row]:
    """Whom was told what, newest first."""
    parameters = {"incident_id": incident_id, "channel": channel, "given_up": given_up, "limit": limit}
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["notifications"], parameters)
