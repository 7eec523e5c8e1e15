"""Checkpoints and versions of states as the tables have them: redacted fields stay so, sealed states stay sealed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from projections.reader import snapshot
from projections.sql import blocks
from schemas.errors import StateError

from .diff import Change, diff
from .output import CONFLICT, NotFoundError

Row = dict[str, Any]

#: The key under which a table says why it does not show a state.
MARKER = "$kintsugi"
LATEST = "latest"

_QUERIES = blocks("ops", "checkpoints.sql")


class AmbiguousError(click.ClickException):
    """One name for two things."""

    exit_code = CONFLICT


def checkpoints(
    postgres: str,
    *,
    workflow_id: str | None,
    step_id: str | None,
    checkpoint_type: str | None,
    rejected: bool,
    limit: int,
) -> list[Row]:
    """Checkpoints, newest first."""
    parameters = {
        "workflow_id": workflow_id,
        "step_id": step_id,
        "checkpoint_type": checkpoint_type,
        "rejected": rejected,
        "limit": limit,
    }
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["checkpoints"], parameters)


def checkpoint(postgres: str, checkpoint_id: str) -> Row | None:
    """One checkpoint with its state and its neighbours (`before`, `after`); None when the tables do not know it."""
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["checkpoint"], {"id": checkpoint_id})
        if not found:
            return None
        row = {**found[0], "rejections": tables.query(_QUERIES["rejections"], {"id": checkpoint_id})}
        row["verified"] = row["verified"] and not row["rejections"]
        place = {"workflow_id": row["workflow_id"], "log_offset": row["log_offset"]}
        for name in ("before", "after"):
            neighbours = tables.query(_QUERIES[name], place)
            row[name] = neighbours[0] if neighbours else None
        return row


def known_checkpoint(postgres: str, checkpoint_id: str) -> Row:
    """As `checkpoint`; NotFoundError when there is none."""
    found = checkpoint(postgres, checkpoint_id)
    if found is None:
        raise NotFoundError(
            f"no checkpoint {checkpoint_id}; kintsugi checkpoints list shows those that are there. "
            "One that retention removed is not"
        )
    return found


def checkpoints_of(postgres: str, workflow_id: str) -> list[str]:
    """Ids of a workflow's checkpoints in the order of the log."""
    with snapshot(postgres) as tables:
        rows = tables.query(_QUERIES["workflow_checkpoint_ids"], {"workflow_id": workflow_id})
    return [str(row["id"]) for row in rows]


def history(postgres: str, workflow_id: str, *, limit: int) -> list[Row]:
    """Versions of a workflow's state, newest first."""
    with snapshot(postgres) as tables:
        return tables.query(_QUERIES["history"], {"workflow_id": workflow_id, "limit": limit})


def version(postgres: str, workflow_id: str, name: str) -> Row:
    """One version by its label, its id, or "latest". NotFoundError; AmbiguousError for a label that is there twice."""
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["version"], {"workflow_id": workflow_id, "version": name})
    if not found:
        raise NotFoundError(
            f"workflow {workflow_id} has no version {name!r} of its state; kintsugi state history {workflow_id}"
        )
    if len(found) > 1 and name != LATEST:
        ids = " and ".join(str(row["id"]) for row in found)
        raise AmbiguousError(f"version {name!r} is there more than once, for example {ids}: name it by its id")
    return found[0]


def marker_of(state: Any) -> str | None:
    """What a table shows instead of a state: sealed, claim, unreadable, repr; None for a state."""
    if isinstance(state, dict) and MARKER in state:
        return str(state[MARKER])
    return None


@dataclass(frozen=True, slots=True)
class Differences:
    """All changes are counted, the first of them kept."""

    count: int
    shown: tuple[Change, ...]


def differences(before: Row, after: Row, *, limit: int) -> Differences:
    """What changed between two states of the tables. StateError when one of them is not shown there."""
    for row in (before, after):
        marker = marker_of(row["state_data"])
        if marker is not None and marker != "repr":
            raise StateError(
                marker,
                f"the state of {row['id']} is not in the tables ({marker})",
                hint="kintsugi checkpoints show ID says why; with keys, --reveal --reason WHY reads it from the log",
            )
    return bounded(diff(before["state_data"], after["state_data"]), limit)


def bounded(changes: Iterator[Change], limit: int) -> Differences:
    """Count all, keep the first."""
    kept: list[Change] = []
    count = 0
    for change in changes:
        count += 1
        if len(kept) < limit:
            kept.append(change)
    return Differences(count, tuple(kept))
