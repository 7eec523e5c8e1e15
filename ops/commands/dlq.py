"""`kintsugi dlq list | show | retry | discard | export`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.commands.checkpoints import policy_option
from ops.output import (
    FAILED,
    ID,
    PARTIAL,
    NotFoundError,
    output_option,
    progress_bar,
    say,
    show,
    show_json,
    show_record,
)

if TYPE_CHECKING:
    from engine.policy import Policy
    from projections.release import Released

SOURCES = ("parked", "table", "topic")
_REASON = click.option("--reason", required=True, help="Why; it goes to the audit topic with your name.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Try it in Postgres and undo it; nothing is audited.")


@click.group()
def dlq() -> None:
    """Records that could not be read or applied, and the workflows that are parked for one."""


@dlq.command("list")
@click.option(
    "--source",
    type=click.Choice(SOURCES),
    default="parked",
    show_default=True,
    help="Parked workflows; the table dead_letters; or what recovery and coordinator set aside.",
)
@click.option("--workflow", "workflow_id", type=ID, help="Only of this workflow.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(source: str, workflow_id: str | None, limit: int, output: str) -> None:
    """Parked workflows, or single records that were set aside; the newest first."""
    from ops import dlq as reads
    from ops.stack import addresses

    at = addresses()
    if source == "parked":
        rows = reads.parked(at.postgres, workflow_id=workflow_id, limit=limit)
        columns = ["workflow_id", "log_partition", "first_offset", "reason", "events", "bytes", "retries", "parked_at"]
    else:
        rows = (
            reads.letters(at.postgres, workflow_id=workflow_id, limit=limit)
            if source == "table"
            else reads.topic_letters(at.kafka, workflow_id=workflow_id, limit=limit)
        )
        columns = ["key", "log_partition", "log_offset", "stage", "reason", "bytes"]
    show(rows, output, columns=columns, empty="nothing was set aside")
    if len(rows) == limit:
        say(f"the first {limit}; --limit shows more")


@dlq.command("show")
@click.argument("workflow_id", type=ID)
@click.option(
    "--contents", type=click.IntRange(0, 100), default=1, show_default=True, help="Records to show, in order."
)
@policy_option
@output_option
def show_(workflow_id: str, contents: int, policy: Path | None, output: str) -> None:
    """One parked workflow: what failed, why, what would let it go, and what waits behind it.

    What records say is shown as in the timeline: fields that tables or policy hide stay hidden, sealed texts and states
    stay sealed. Exit 3 when it is not parked.
    """
    from ops import dlq as reads
    from ops.dlq_content import way_out
    from ops.reveal import policy_of
    from ops.stack import addresses

    chosen = policy_of(policy)
    at = addresses()
    rows = reads.parked(at.postgres, workflow_id=workflow_id, limit=1_000)
    if not rows:
        raise NotFoundError(f"workflow {workflow_id} is not parked; kintsugi dlq list shows those that are")
    rows = [{**row, "goes_on_with": way_out(row["reason"])} for row in rows]
    waiting = reads.queue(at.postgres, workflow_id)
    said = reads.contents(at, workflow_id, chosen, contents)
    if output == "json":
        show_json({"parked": rows, "waiting": waiting, "contents": said})
        return
    for row in rows:
        show_record(row)
    click.echo("\nWaiting, in order")
    show(waiting, output)
    for found in said:
        place = f"{found.pop('log_partition')}:{found.pop('log_offset')}"
        click.echo(f"\n{place}  {found.pop('record') or 'cannot be read'}")
        show_json(found)
    say(f'once that is there: kintsugi dlq retry {workflow_id} --reason "fixed by ..."')
    say(f'without the record that failed: kintsugi dlq discard {workflow_id} --reason "..."')


@dlq.command()
@click.argument("workflow_id", type=ID)
@_REASON
@_DRY_RUN
@output_option
def retry(workflow_id: str, reason: str, dry_run: bool, output: str) -> None:
    """Apply what waits of a parked workflow, in order, in one transaction.

    Exit 1: the first record still fails; 5: another one behind it does; 3: the workflow is not parked.
    """
    _release(workflow_id, reason, 0, dry_run, output)


@dlq.command()
@click.argument("workflow_id", type=ID)
@click.option("--all", "every", is_flag=True, help="All that waits of it, not only the record that failed.")
@_REASON
@_DRY_RUN
@output_option
def discard(workflow_id: str, every: bool, reason: str, dry_run: bool, output: str) -> None:
    """Pass for good over the record for which a workflow is parked, and apply what waits behind it.

    What is discarded stays in the table dead_letters. The rows of the workflow are then those without it. Exit codes
    as of retry.
    """
    _release(workflow_id, reason, None if every else 1, dry_run, output)


@dlq.command()
@click.option("--source", type=click.Choice(["all", *SOURCES]), default="all", show_default=True, help="As of list.")
@click.option("--workflow", "workflow_id", type=ID, help="Only of this workflow.")
@click.option("--file", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write here, not to stdout.")
@click.option("--redacted", is_flag=True, help="Without the records' bytes, which hold what tables and policy hide.")
@click.option("--reason", help="Why bytes are taken out; it goes to the audit topic with your name.")
@policy_option
@output_option
def export(
    source: str,
    workflow_id: str | None,
    path: Path | None,
    redacted: bool,
    reason: str | None,
    policy: Path | None,
    output: str,
) -> None:
    """Write all that was set aside, one JSON document a line: place, time, reason, what it says, and its bytes.

    The bytes are those of the log, so --reason is required and is audited before the first is read; --redacted leaves
    them out. A file is there whole or not at all, for you alone, and none is written over (exit 4). --output is of the
    summary that is printed when there is a file.
    """
    from ops.dlq import checked_reason
    from ops.reveal import policy_of, require_inspection

    if redacted and reason is not None:
        raise click.UsageError("--reason goes with the records' bytes, which --redacted leaves out")
    if not redacted and reason is None:
        raise click.UsageError("--reason is required: the bytes hold what tables hide; --redacted leaves them out")
    why = None if reason is None else checked_reason(reason)
    chosen = policy_of(policy)
    if not redacted:
        require_inspection(chosen)
    counts = _export(SOURCES if source == "all" else (source,), workflow_id, path, why, chosen)
    if path is None:
        say(", ".join(f"{name} {count}" for name, count in counts.items()))
        return
    summary = {"file": str(path), **counts, "size_bytes": path.stat().st_size}
    if output == "json":
        show_json(summary)
    else:
        show_record(summary)


def _export(
    sources: tuple[str, ...], workflow_id: str | None, path: Path | None, why: str | None, policy: Policy
) -> dict[str, int]:
    from ops.audit import audited
    from ops.dlq_export import export as lines
    from ops.export import putting
    from ops.stack import addresses

    at = addresses()
    with ExitStack() as stack:
        put = sys.stdout.buffer.write if path is None else stack.enter_context(putting(path))
        detail: dict[str, Any] = {}
        if why is not None:
            subject = workflow_id or "everything set aside"
            detail = stack.enter_context(audited(at.kafka, "dlq.export", subject=subject, reason=why))
        moved = stack.enter_context(progress_bar())
        counts = lines(at, sources, put, policy=policy, raw=why is not None, workflow_id=workflow_id, moved=moved)
        detail.update(records=counts, file=None if path is None else path.name)
    return counts


def _release(workflow_id: str, reason: str, discard: int | None, dry_run: bool, output: str) -> None:
    from ops import dlq as acting
    from ops.stack import addresses
    from schemas.registry import Registry

    why = acting.checked_reason(reason)
    at = addresses()
    with Registry(at.registry) as registry:
        desk = acting.Desk(at, registry)
        try:
            found = desk.release(workflow_id, why, discard=discard, dry_run=dry_run)
        finally:
            desk.close()
    if output == "json":
        show_json([{**asdict(released), "dry_run": dry_run} for released in found])
    else:
        for released in found:
            show_record(asdict(released))
    if dry_run:
        say("nothing was changed")
    _end(found)


def _end(found: list[Released]) -> None:
    if any(released.waiting for released in found):
        moved = any(released.applied or released.discarded for released in found)
        say("it stays parked at the record named above")
        raise click.exceptions.Exit(PARTIAL if moved else FAILED)
