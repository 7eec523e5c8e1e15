"""`kintsugi workflows list | show | timeline | restore`."""

from __future__ import annotations

import click

from ops.commands.restore import restore
from ops.output import ID, NotFoundError, output_option, say, show, show_json, show_record

STATUSES = ("running", "recovering", "waiting_for_human", "paused", "completed", "failed", "cancelled")


@click.group()
def workflows() -> None:
    """List workflows, show one, tell all that happened to it, or let it go on from an earlier checkpoint."""


workflows.add_command(restore)


@workflows.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only these.")
@click.option("--type", "workflow_type", help="Only of this workflow type.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(status: str | None, workflow_type: str | None, limit: int, output: str) -> None:
    """Workflows, those that changed last first."""
    from ops import reads
    from ops.stack import addresses

    rows = reads.workflows(addresses().postgres, status=status, workflow_type=workflow_type, limit=limit)
    columns = ("id", "workflow_type", "status", "current_step", "steps_completed", "steps", "errors", "updated_at")
    show(rows, output, columns=columns, empty="no workflow")
    if len(rows) == limit:
        say(f"the newest {limit}; --limit shows more")


@workflows.command("show")
@click.argument("workflow_id", type=ID)
@output_option
def show_(workflow_id: str, output: str) -> None:
    """One workflow, its errors and its newest checkpoints. Exit 3 when there is none."""
    from ops import reads
    from ops.stack import addresses

    found = reads.workflow(addresses().postgres, workflow_id)
    if found is None:
        raise NotFoundError(f"no workflow {workflow_id}; kintsugi workflows list shows those that are there")
    if output == "json":
        show_json(found)
        return
    show_record({k: v for k, v in found.items() if not isinstance(v, list)})
    if found["error_list"]:
        click.echo("\nErrors")
        show(found["error_list"], output)
    if found["checkpoint_list"]:
        click.echo("\nNewest checkpoints")
        show(found["checkpoint_list"], output)
    say(f"kintsugi workflows timeline {workflow_id} tells all that happened")


@workflows.command()
@click.argument("workflow_id", type=ID)
@click.option("--heartbeats", is_flag=True, help="Show progress reports too.")
@click.option("--reveal", is_flag=True, help="Open sealed texts: error messages, progress, answers. Needs --reason.")
@click.option("--reason", help="Why they are opened; goes into the audit log.")
@output_option
def timeline(workflow_id: str, heartbeats: bool, reveal: bool, reason: str | None, output: str) -> None:
    """Everything that happened to one workflow, steps, errors, decisions and why, answers; from archive and log."""
    from contextlib import ExitStack

    from consumers.log_reader import LogReader
    from ops import reads
    from ops.archive import history_of
    from ops.audit import audited
    from ops.reveal import check_reason, keystore_of, policy_of, require_inspection
    from ops.stack import addresses
    from ops.timeline import timeline as read
    from schemas.codec import Codec
    from schemas.registry import Registry

    why = check_reason(reveal, reason)
    at = addresses()
    found = reads.workflow(at.postgres, workflow_id)
    if found is None:
        raise NotFoundError(f"no workflow {workflow_id}; kintsugi workflows list shows those that are there")
    ended = found["ended_at"]
    with LogReader(at.kafka) as log, Registry(at.registry) as registry, ExitStack() as opened:
        keystore = None
        if reveal:
            require_inspection(policy_of(None))
            keystore = keystore_of(at)
            opened.enter_context(audited(at.kafka, "workflows.reveal", subject=workflow_id, reason=why))
        rows = list(
            read(
                history_of(at, log),
                Codec(registry),
                str(found["id"]),
                partition=found["log_partition"],
                first_offset=found["first_offset"],
                ended_ms=None if ended is None else int(ended.timestamp() * 1000),
                keystore=keystore,
            )
        )
    shown = [row for row in rows if heartbeats or row["event"] != "StepProgressed"]
    if not shown or shown[0]["offset"] != found["first_offset"] or shown[0]["at"] is None:
        say("neither log nor archive hold the beginning of this workflow")
    show(shown, output, columns=("after_ms", "event", "step", "detail", "producer"))
