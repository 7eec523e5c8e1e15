"""`kintsugi dlq list | show | retry | discard`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ops.output import FAILED, ID, PARTIAL, NotFoundError, output_option, say, show, show_json, show_record

if TYPE_CHECKING:
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
@output_option
def show_(workflow_id: str, output: str) -> None:
    """One parked workflow: what failed, and what waits behind it. Exit 3 when it is not parked."""
    from ops import dlq as reads
    from ops.stack import addresses

    postgres = addresses().postgres
    rows = reads.parked(postgres, workflow_id=workflow_id, limit=1_000)
    if not rows:
        raise NotFoundError(f"workflow {workflow_id} is not parked; kintsugi dlq list shows those that are")
    waiting = reads.queue(postgres, workflow_id)
    if output == "json":
        show_json({"parked": rows, "waiting": waiting})
        return
    for row in rows:
        show_record(row)
    click.echo("\nWaiting, in order")
    show(waiting, output)
    say(f'after a fix: kintsugi dlq retry {workflow_id} --reason "fixed by ..."')


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
