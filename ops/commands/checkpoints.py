"""`kintsugi checkpoints list | show | verify | diff | export`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click

from ops.output import FAILED, ID, OK, output_option, printable, say, show, show_json, show_record

TYPES = ("step_start", "step_complete", "critical_point", "error_recovery", "manual")
#: A terminal is no place for a megabyte; `export` writes all of it.
STATE_SHOWN_CHARS_MAX = 20_000
CHANGES_SHOWN = 200
_VALUE_SHOWN_CHARS_MAX = 120

F = TypeVar("F", bound=Callable[..., Any])


def policy_option(command: F) -> F:
    """`--policy FILE`."""
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("--policy", type=kind, help="The policy that says what may be looked into.")(command)


def reveal_options(command: F) -> F:
    """`--reveal --reason WHY`."""
    command = click.option("--reason", help="Why; goes to the audit log with your name.")(command)
    return click.option(
        "--reveal", is_flag=True, help="Read the state itself from log, archive or object storage, with the keys."
    )(command)


@click.group()
def checkpoints() -> None:
    """List checkpoints, look into one, prove them, compare and export their states."""


@checkpoints.command("list")
@click.option("--workflow", "workflow_id", type=ID, help="Only of this workflow.")
@click.option("--step", "step_id", help="Only of this step.")
@click.option("--type", "checkpoint_type", type=click.Choice(TYPES), help="Only of this type.")
@click.option("--rejected", is_flag=True, help="Only those that did not verify.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(
    workflow_id: str | None, step_id: str | None, checkpoint_type: str | None, rejected: bool, limit: int, output: str
) -> None:
    """Checkpoints, newest first. `verified`: nothing was found against it when it arrived."""
    from ops import checkpoints as reads
    from ops.stack import addresses

    rows = reads.checkpoints(
        addresses().postgres,
        workflow_id=workflow_id,
        step_id=step_id,
        checkpoint_type=checkpoint_type,
        rejected=rejected,
        limit=limit,
    )
    columns = ("id", "workflow_id", "epoch", "sequence", "step_id", "checkpoint_type", "size_bytes", "protection",
               "verified", "rejection", "created_at")  # fmt: skip
    show(rows, output, columns=columns, empty="no checkpoint")
    if len(rows) == limit:
        say(f"the newest {limit}; --limit shows more")


@checkpoints.command("show")
@click.argument("checkpoint_id", type=ID)
@reveal_options
@policy_option
@output_option
def show_(checkpoint_id: str, reveal: bool, reason: str | None, policy: Path | None, output: str) -> None:
    """One checkpoint: what is known of it, where it lies, what stands before and after it, and its state.

    Fields that are redacted stay so, a sealed state is shown sealed. With --reveal and keys the state itself is read
    and proven, and that you did so is written to the audit log. Exit 3 when there is no such checkpoint.
    """
    from ops import checkpoints as reads
    from ops.checkpoint_log import checkpoint_log
    from ops.reveal import check_reason, inspection_of, oversized, revealed
    from ops.stack import addresses

    why = check_reason(reveal, reason)
    allowed = inspection_of(policy)
    at = addresses()
    row = reads.known_checkpoint(at.postgres, checkpoint_id)
    with checkpoint_log(at) as log:
        where = log.where(row["log_partition"], row["log_offset"])
        row["lies_in"] = f"{where}, its state in object storage" if row["claim_uri"] else where
        if not allowed.enabled or (too_large := oversized(row, allowed)) is not None:
            row["state_data"] = None
            say("the policy does not let states be shown" if not allowed.enabled else str(too_large))
        elif reveal:
            with _audited(at.kafka, checkpoint_id, why):
                row["state_data"] = revealed(log, row)
            row["revealed"] = True
    if output == "json":
        show_json(row)
        return
    _show_checkpoint(row)


def _audited(kafka: str, subject: str, reason: str, action: str = "checkpoints.reveal") -> Any:
    from ops.audit import audited

    return audited(kafka, action, subject=subject, reason=reason)


def _show_checkpoint(row: dict[str, Any]) -> None:
    from ops.reveal import told

    neighbours = {"before": row["before"], "after": row["after"]}
    hidden = ("state_data", "metadata", "before", "after", "rejections")
    place = f"{row['log_partition']}@{row['log_offset']}"
    record = {k: v for k, v in row.items() if k not in (*hidden, "log_partition", "log_offset")}
    for name, found in neighbours.items():
        record[name] = None if found is None else f"{found['id']} ({found['checkpoint_type']} {found['sequence']})"
    show_record({**record, "place": place})
    if row.get("rejections"):
        click.echo("\nRejected")
        show(row["rejections"], "table")
    if row["metadata"]:
        click.echo(f"\nMetadata\n{printable(_text(row['metadata']))}")
    if row["state_data"] is None:
        return
    why = told(row)
    click.echo(f"\nState {why}" if why else "\nState")
    if why is None:
        text = printable(_text(row["state_data"]))
        click.echo(text[:STATE_SHOWN_CHARS_MAX])
        if len(text) > STATE_SHOWN_CHARS_MAX:
            say(f"the first {STATE_SHOWN_CHARS_MAX} characters; kintsugi checkpoints export {row['id']} writes all")


def _text(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)


@checkpoints.command("diff")
@click.argument("before", type=ID)
@click.argument("after", type=ID)
@reveal_options
@policy_option
@click.option("--limit", type=click.IntRange(1, 100_000), default=CHANGES_SHOWN, show_default=True)
@output_option
def diff_(
    before: str, after: str, reveal: bool, reason: str | None, policy: Path | None, limit: int, output: str
) -> None:
    """What changed from the state of checkpoint BEFORE to that of AFTER. Exit 0: nothing, 1: something."""
    from ops import checkpoints as reads
    from ops.checkpoint_log import checkpoint_log
    from ops.reveal import check_reason, oversized, require_inspection, revealed
    from ops.stack import addresses

    why = check_reason(reveal, reason)
    allowed = require_inspection(policy)
    at = addresses()
    rows = [reads.known_checkpoint(at.postgres, checkpoint_id) for checkpoint_id in (before, after)]
    for row in rows:
        if (too_large := oversized(row, allowed)) is not None:
            raise too_large
    with checkpoint_log(at) if reveal else nullcontext() as log:
        for row in rows:
            if log is not None:
                with _audited(at.kafka, str(row["id"]), why):
                    row["state_data"] = revealed(log, row)
    show_differences(reads.differences(*rows, limit=limit), before, after, output)


def show_differences(found: Any, before: str, after: str, output: str) -> None:
    """Print changes, and exit as diff does."""
    from ops.diff import path_text

    changes = [{"change": c.kind, "path": path_text(c.path), "before": c.before, "after": c.after} for c in found.shown]
    if output == "json":
        show_json({"before": before, "after": after, "changes": changes, "count": found.count})
    else:
        shown = [
            {
                **change,
                "before": "" if change["change"] == "added" else _short(change["before"]),
                "after": "" if change["change"] == "removed" else _short(change["after"]),
            }
            for change in changes
        ]
        show(shown, output, empty="no difference")
    if found.count > len(changes):
        say(f"the first {len(changes)} of {found.count} changes; --limit shows more")
    raise click.exceptions.Exit(FAILED if found.count else OK)


def _short(value: Any) -> str:
    import json

    text = json.dumps(value, ensure_ascii=False)
    return (
        text if len(text) <= _VALUE_SHOWN_CHARS_MAX else f"{text[:_VALUE_SHOWN_CHARS_MAX]}... ({len(text)} characters)"
    )
