"""States in clear, for people: who may, how it is asked for, and that it is written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import StateError

from .checkpoints import MARKER, Row, marker_of
from .output import DENIED

if TYPE_CHECKING:
    from engine.policy.model import StateInspection

    from .checkpoint_log import CheckpointLog


class DeniedError(click.ClickException):
    """The policy does not allow it."""

    exit_code = DENIED


def inspection_of(policy: Path | None) -> StateInspection:
    """The `state_inspection` of a policy file, or of the policy that ships."""
    from engine.policy import default_policy, load_policy

    chosen = default_policy() if policy is None else load_policy(policy.read_text(encoding="utf-8"), str(policy))
    return chosen.state_inspection


def require_inspection(policy: Path | None) -> StateInspection:
    """As `inspection_of`; DeniedError where the policy switches it off."""
    allowed = inspection_of(policy)
    if not allowed.enabled:
        raise DeniedError("debugging.state_inspection.enabled is false in the policy: states are not shown")
    return allowed


def check_reason(reveal: bool, reason: str | None) -> str:
    """A reason goes with every reveal, and with nothing else."""
    if reveal and not (reason or "").strip():
        raise click.UsageError("--reveal needs --reason: it is written to the audit log")
    if reason is not None and not reveal:
        raise click.UsageError("--reason goes with --reveal")
    return (reason or "").strip()


def revealed(log: CheckpointLog, row: Row) -> dict[str, Any]:
    """The proven state of a checkpoint from its real bytes. StateError says why it cannot be had."""
    written = log.written(str(row["id"]), row["log_partition"], row["log_offset"])
    return log.state(written.record)


def oversized(row: Row, allowed: StateInspection) -> StateError | None:
    """The error for a state that is larger than the policy lets people look at."""
    if row["size_bytes"] <= allowed.state_size_bytes_max:
        return None
    return StateError(
        "limit",
        f"the state of {row['id']} has {row['size_bytes']} bytes, "
        f"debugging.state_inspection.max_state_size allows {allowed.state_size_bytes_max}",
        hint="raise it in the policy, and give that with --policy",
    )


def told(row: Row) -> str | None:
    """Why a table does not show a state, in words; None when it does."""
    state = row["state_data"]
    marker = marker_of(state)
    if marker == "sealed":
        return f"sealed ({state.get('protection', row.get('protection'))}); --reveal --reason WHY opens it"
    if marker == "claim":
        return "in object storage; --reveal --reason WHY reads it"
    if marker == "unreadable":
        return f"not shown: {state.get('reason', '')}"
    return None


__all__ = [
    "MARKER",
    "DeniedError",
    "check_reason",
    "inspection_of",
    "oversized",
    "require_inspection",
    "revealed",
    "told",
]
