"""One repair for many errors, as a plan: a file that people read, keep and hand over before anything is done.

A plan says of each error what would be done and which steps would run again, as the log was when it was made. Its
digest tells whether somebody changed it since; its cluster, whether it is for this log.
"""

from __future__ import annotations

import os
import shlex
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import click
import orjson
from psycopg import sql
from pydantic import BaseModel, ConfigDict, ValidationError

from consumers.log_reader import LogReader
from engine.by_hand import CHOICES
from engine.strategies import Unavailable
from projections.reader import snapshot
from projections.sql import blocks
from schemas.archive_format import Gap
from schemas.canonical import canonical_bytes, digest_of
from schemas.errors import ConfigError

from .audit import actor
from .output import CONFLICT, printable
from .recover_filter import compiled, parse
from .recover_look import Place, Row, look
from .reveal import policy_of
from .stack import Addresses

#: Errors of one plan. What is not repaired by so many needs another remedy.
ITEMS_MAX = 10_000
#: Steps that a refusal names; the plan has all.
NAMED_MAX = 50
#: The world of a plan changes; what is older has to be made anew.
AGE_HOURS_MAX = 24
#: Largest plan that is read: ITEMS_MAX items with their steps.
FILE_BYTES_MAX = 256 * 1024 * 1024
_VERSION: Literal[1] = 1
_QUERIES = blocks("ops", "recover.sql")


class RefusedError(click.ClickException):
    """This plan is not carried out."""

    exit_code = CONFLICT


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Step(_Model):
    """A step that would run again."""

    step_id: str
    completed: int
    idempotent: bool
    compensation: str | None


class Item(_Model):
    """One error: what it was like when the plan was made, and what would be done."""

    error_id: str
    workflow_id: str
    workflow_type: str
    external_id: str | None
    partition: int
    step_id: str
    error_type: str
    status: str
    attempts: int
    possible: bool
    why_not: str | None = None
    action: str | None = None
    command: str | None = None
    runs_again: tuple[Step, ...] = ()


class Plan(_Model):
    """A plan as its file has it. `digest` is of all the rest."""

    version: Literal[1] = _VERSION
    plan_id: str
    cluster: str
    created_at: str
    created_us: int
    actor: str
    reason: str
    filter: str
    strategy: str
    parameters: dict[str, str | int | float]
    items: tuple[Item, ...]
    digest: str

    def expected_digest(self) -> str:
        """The digest that the rest of it has."""
        return digest_of(canonical_bytes(self.model_dump(mode="json", exclude={"digest"})))

    @property
    def possible(self) -> tuple[Item, ...]:
        """Items that can be carried out."""
        return tuple(item for item in self.items if item.possible)

    def side_effects(self) -> dict[str, int]:
        """Steps that would run again and are not idempotent, with the number of workflows in which they would."""
        counts: dict[str, int] = {}
        for item in self.possible:
            for step in item.runs_again:
                if not step.idempotent:
                    counts[step.step_id] = counts.get(step.step_id, 0) + 1
        return counts

    def check_accepted(self, steps: Collection[str]) -> None:
        """RefusedError unless each step that would run again and is not idempotent is among these. What people choose
        is carried out without asking the service first, so those that could be reconciled are no exception."""
        counts = self.side_effects()
        missing = sorted(step for step in counts if step not in steps)
        if not missing:
            return
        named = [f"--accept-rerun {shlex.quote(printable(step))}" for step in missing[:NAMED_MAX]]
        more = f" and {len(missing) - NAMED_MAX} more" if len(missing) > NAMED_MAX else ""
        raise RefusedError(f"not idempotent, and would run again: say that you accept it: {' '.join(named)}{more}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an operator asked for."""

    filter: str
    strategy: str
    parameters: Mapping[str, str | int | float]
    reason: str
    limit: int


def make(at: Addresses, wanted: Wanted, *, on_progress: Callable[[int, int], None]) -> tuple[Plan, list[Gap]]:
    """Select the errors and look at each in the log. FilterError, ConfigError, RefusedError when they are too many."""
    if wanted.strategy not in CHOICES:
        raise ConfigError(f"there is no strategy {wanted.strategy!r}; one of {', '.join(CHOICES)}")
    rows = _selected(at.postgres, wanted)
    missing: list[Gap] = []
    with LogReader(at.kafka) as log:
        cluster = log.cluster_id()
        places = {
            str(r["workflow_id"]): Place(str(r["workflow_id"]), r["log_partition"], r["first_offset"]) for r in rows
        }
        seen = look(at, log, places.values(), policy_of(None), on_gap=missing.append, on_progress=on_progress)
    items = tuple(_item(row, seen[str(row["workflow_id"])], wanted) for row in rows)
    fields: dict[str, Any] = {
        "plan_id": str(uuid.uuid4()),
        "cluster": cluster,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "created_us": time.time_ns() // 1000,
        "actor": actor(),
        "reason": wanted.reason,
        "filter": wanted.filter,
        "strategy": wanted.strategy,
        "parameters": dict(wanted.parameters),
        "items": items,
    }
    plan = Plan(**fields, digest="")
    return plan.model_copy(update={"digest": plan.expected_digest()}), missing


def _selected(postgres: str, wanted: Wanted) -> list[Row]:
    condition, values = compiled(parse(wanted.filter))
    statement = sql.SQL(_QUERIES["selected"]).format(condition=condition)
    with snapshot(postgres) as tables:
        rows = tables.query(statement, {**values, "limit": wanted.limit + 1})
    if len(rows) > wanted.limit:
        raise RefusedError(
            f"more than {wanted.limit} errors match: narrow the filter, or raise --limit (up to {ITEMS_MAX})"
        )
    return rows


def _item(row: Row, seen: Any, wanted: Wanted) -> Item:
    error_id = str(row["id"])
    known: dict[str, Any] = {
        "error_id": error_id,
        "workflow_id": str(row["workflow_id"]),
        "workflow_type": row["workflow_type"],
        "external_id": row["external_id"],
        "partition": row["log_partition"],
        "step_id": row["step_id"],
        "error_type": row["error_type"],
        "status": row["status"],
        "attempts": row["attempts"],
    }
    case = seen.case(error_id)
    if case is None:
        return Item(**known, possible=False, why_not="the log has it closed already")
    plan = seen.plan(case, wanted.strategy, wanted.parameters)
    if isinstance(plan, Unavailable):
        return Item(**known, possible=False, why_not=plan.reason)
    again = tuple(
        Step(step_id=s.step_id, completed=s.completed, idempotent=s.idempotent, compensation=s.compensation)
        for s in seen.again(case, plan)
    )
    return Item(**known, possible=True, action=plan.action, command=plan.command_type, runs_again=again)


def write(plan: Plan, path: Path) -> None:
    """Write a new file. ConfigError when there is one already."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(orjson.dumps(plan.model_dump(mode="json"), option=orjson.OPT_INDENT_2) + b"\n")
    except FileExistsError:
        raise ConfigError(f"{path} is there already; --plan names another file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def read(path: Path, *, now_us: int) -> Plan:
    """A plan from its file. RefusedError when it was changed, is too old, or is none."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise RefusedError(f"{path} is larger than {FILE_BYTES_MAX} bytes: it is no plan")
        plan = Plan.model_validate_json(path.read_bytes())
        sound = plan.digest == plan.expected_digest()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValidationError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0][:200]
        raise RefusedError(f"{path} is no plan of this version: {first}") from None
    if not sound:
        raise RefusedError(f"{path} was changed after it was made: its digest is another. Make it anew")
    age_us = now_us - plan.created_us
    if not -3_600_000_000 <= age_us <= AGE_HOURS_MAX * 3_600_000_000:
        raise RefusedError(f"{path} was made at {plan.created_at}, more than {AGE_HOURS_MAX} hours ago: make it anew")
    return plan
