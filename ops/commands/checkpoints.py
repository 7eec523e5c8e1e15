"""`kintsugi checkpoints list | show | verify | diff | export | collect`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ops.commands.collect import collect
from ops.output import (
    FAILED,
    ID,
    MISMATCH,
    OK,
    PARTIAL,
    NotFoundError,
    output_option,
    printable,
    progress_bar,
    say,
    show,
    show_json,
    show_record,
)

if TYPE_CHECKING:
    from ops.checkpoint_proof import Report

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


checkpoints.add_command(collect)


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
    """Checkpoints, newest first. The verdict is that of the engine when they arrived, and of every check since."""
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
    columns = ["id", "epoch", "sequence", "step_id", "checkpoint_type", "size_bytes", "protection", "verdict"]
    if workflow_id is None:
        columns.insert(1, "workflow_id")
    if any(row["rejection"] for row in rows):
        columns.append("rejection")
    columns.append("created_at")
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
    from ops.reveal import Revealer, check_reason, check_size, policy_of
    from ops.stack import addresses
    from schemas.errors import StateError

    why = check_reason(reveal, reason)
    chosen = policy_of(policy)
    at = addresses()
    row = reads.known_checkpoint(at.postgres, checkpoint_id)
    with checkpoint_log(at) as log:
        where = log.where(row["log_partition"], row["log_offset"])
        row["lies_in"] = f"{where}, its state in object storage" if row["claim_uri"] else where
        if not chosen.state_inspection.enabled:
            row["state_data"] = None
            say("the policy does not let states be shown (debugging.state_inspection.enabled)")
        else:
            try:
                check_size(row, chosen.state_inspection)
                if reveal:
                    row["state_data"] = Revealer(at, log, why).state(row)
            except StateError as error:
                if reveal:
                    raise
                row["state_data"] = None
                say(str(error))
    row["revealed"] = reveal
    if output == "json":
        show_json(row)
        return
    _show_checkpoint(row)


def _show_checkpoint(row: dict[str, Any]) -> None:
    from ops.reveal import why_hidden

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
    why = why_hidden(row)
    click.echo(f"\nState {why}" if why else "\nState")
    if why is None:
        text = printable(_text(row["state_data"]))
        click.echo(text[:STATE_SHOWN_CHARS_MAX])
        if len(text) > STATE_SHOWN_CHARS_MAX:
            say(f"the first {STATE_SHOWN_CHARS_MAX} characters; kintsugi checkpoints export {row['id']} writes all")


def _text(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)


@checkpoints.command()
@click.argument("checkpoint_id", type=ID, required=False)
@click.option("--workflow", "workflow_id", type=ID, help="All checkpoints of this workflow.")
@click.option("--all", "every", is_flag=True, help="Every checkpoint there is.")
@output_option
def verify(checkpoint_id: str | None, workflow_id: str | None, every: bool, output: str) -> None:
    """Prove checkpoints from their real bytes: one, those of a workflow, or all.

    Digest, seal, structure and schema of the bytes in log, archive or object storage; the chain of each workflow,
    judged as the engine does; and the row in the tables, column by column, less what it hides.

    Exit 6: a checkpoint fails, each with its reason; 5: none fails, but some could not be looked into (no key, or gone
    from log and archive). States whose keys were erased on purpose count as neither.
    """
    from dataclasses import asdict

    from ops import checkpoint_proof
    from ops.checkpoints import known_checkpoint
    from ops.stack import addresses

    if sum((checkpoint_id is not None, workflow_id is not None, every)) != 1:
        raise click.UsageError("one of CHECKPOINT_ID, --workflow and --all says which")
    at = addresses()
    if checkpoint_id is not None:
        workflow_id = str(known_checkpoint(at.postgres, checkpoint_id)["workflow_id"])
    with progress_bar() as progress:
        report = checkpoint_proof.verify(
            at,
            progress,
            workflow_id=workflow_id,
            checkpoint_id=checkpoint_id,
        )
    if output == "json":
        show_json({**asdict(report), "sound": report.sound, "complete": report.complete})
    elif report.failures:
        show([asdict(failure) for failure in report.failures], output)
    _sum_up(report)
    if not report.sound:
        raise click.exceptions.Exit(MISMATCH)
    if not report.complete:
        raise click.exceptions.Exit(PARTIAL)


def _sum_up(report: Report) -> None:
    rate = report.checkpoints / report.seconds if report.seconds else 0.0
    megabytes = report.bytes / 1_000_000
    say(
        f"{report.checkpoints} checkpoints in {report.seconds:.1f} s ({rate:,.0f}/s): {report.proven} proven"
        f" ({megabytes:,.1f} MB of state), {report.failed} failed"
    )
    others = {"evidence of errors": report.evidence, "of replaced runs": report.stale, **report.unreadable}
    for what, count in others.items():
        if count:
            say(f"  {what}: {count}, not proven")
    for reason, count in sorted(report.counts.items()):
        say(f"  {reason}: {count}")
    if report.found > len(report.failures):
        say(f"the first {len(report.failures)} of {report.found} findings are shown")
    for gap in report.gaps:
        say(f"  offsets {gap.first} to {gap.next - 1} of partition {gap.partition} are gone: {gap.reason}")


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
    from ops.reveal import check_reason, check_size, policy_of, require_inspection, revealer
    from ops.stack import addresses

    why = check_reason(reveal, reason)
    chosen = policy_of(policy)
    allowed = require_inspection(chosen)
    at = addresses()
    rows = [reads.known_checkpoint(at.postgres, checkpoint_id) for checkpoint_id in (before, after)]
    with revealer(at, reveal, why) as opened:
        for row in rows:
            check_size(row, allowed)
            if opened is not None:
                row["state_data"] = opened.state(row)
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


@checkpoints.command()
@click.argument("checkpoint_id", type=ID, required=False)
@click.option("--workflow", "workflow_id", type=ID, help="All checkpoints of this workflow.")
@click.option("--format", "form", type=click.Choice(["json", "yaml"]), default="json", show_default=True)
@click.option("--to", default="-", show_default=True, metavar="DIR|-", help="A file for each there, or stdout.")
@reveal_options
@policy_option
def export(
    checkpoint_id: str | None,
    workflow_id: str | None,
    form: str,
    to: str,
    reveal: bool,
    reason: str | None,
    policy: Path | None,
) -> None:
    """Write checkpoints with their states: as JSON or YAML, to DIR or to stdout.

    Redacted fields stay so. A sealed state is written with --reveal alone. Several on stdout: one document a line in
    JSON, one behind the other in YAML. No file is ever written over (exit 4). Exit 5: some states were left out.
    """
    from ops import export as exporting
    from ops.reveal import DeniedError, check_reason, policy_of, require_inspection, revealer
    from ops.stack import addresses
    from schemas.errors import StateError

    if (checkpoint_id is None) == (workflow_id is None):
        raise click.UsageError("one of CHECKPOINT_ID and --workflow says which")
    why = check_reason(reveal, reason)
    chosen = policy_of(policy)
    allowed = require_inspection(chosen)
    if form not in allowed.export_formats:
        raise DeniedError(f"debugging.state_inspection.export_formats of the policy has no {form}")
    at = addresses()
    ids = _exported(at.postgres, checkpoint_id, workflow_id)
    count, left_out = 0, 0
    with progress_bar() as progress, revealer(at, reveal, why) as opened:
        for number, row in enumerate(exporting.rows(at.postgres, ids)):
            progress("checkpoints", number, len(ids))
            try:
                content = exporting.document(row, allowed, opened)
            except StateError as error:
                if checkpoint_id is not None:
                    raise
                left_out += 1
                say(str(error))
                continue
            data = exporting.written(content, form, one_line=checkpoint_id is None)
            if to == "-":
                sys.stdout.buffer.write(data)
            else:
                exporting.put(Path(to), exporting.file_name(row, form), data)
            count += 1
        progress("checkpoints", len(ids), len(ids))
    say(f"{count} written{'' if to == '-' else f' to {to}'}, {left_out} left out")
    if left_out:
        raise click.exceptions.Exit(PARTIAL)


def _exported(postgres: str, checkpoint_id: str | None, workflow_id: str | None) -> list[str]:
    from ops import checkpoints as reads

    if checkpoint_id is not None:
        reads.known_checkpoint(postgres, checkpoint_id)
        return [checkpoint_id]
    assert workflow_id is not None
    ids = reads.checkpoints_of(postgres, workflow_id)
    if not ids:
        raise NotFoundError(
            f"no checkpoint of workflow {workflow_id}; kintsugi workflows list shows those that are there"
        )
    return ids
