"""`kintsugi errors list | show`."""

from __future__ import annotations

import json

import click

from ops.output import ID, NotFoundError, output_option, printable, say, show, show_json, show_record

STATUSES = ("open", "recovering", "waiting_for_human", "recovered", "failed", "joined", "ignored")


@click.group()
def errors() -> None:
    """List errors, or show one with every repair that was tried and why."""


@errors.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only these.")
@click.option("--type", "error_type", help="Only of this error type, such as timeout.")
@click.option("--step", "step_id", help="Only of this step.")
@click.option("--workflow", "workflow_id", type=ID, help="Only of this workflow.")
@click.option("--all", "every", is_flag=True, help="Also errors that joined the repair of an earlier one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(
    status: str | None,
    error_type: str | None,
    step_id: str | None,
    workflow_id: str | None,
    every: bool,
    limit: int,
    output: str,
) -> None:
    """Errors, newest first."""
    from ops import reads
    from ops.stack import addresses

    rows = reads.errors(
        addresses().postgres,
        status=status,
        error_type=error_type,
        step_id=step_id,
        workflow_id=workflow_id,
        every=every,
        limit=limit,
    )
    columns = ("id", "workflow_id", "step_id", "error_type", "error_code", "status", "recovery_strategy",
               "recovery_attempts", "created_at")  # fmt: skip
    show(rows, output, columns=columns, empty="no error")
    if len(rows) == limit:
        say(f"the newest {limit}; --limit shows more")


@errors.command("show")
@click.argument("error_id", type=ID)
@output_option
def show_(error_id: str, output: str) -> None:
    """One error, every attempt to repair it with the rule behind it, and what humans were asked. Exit 3 for none."""
    from ops import reads
    from ops.stack import addresses

    found = reads.error(addresses().postgres, error_id)
    if found is None:
        raise NotFoundError(f"no error {error_id}; kintsugi errors list shows those that are there")
    if output == "json":
        show_json(found)
        return
    show_record(
        {k: v for k, v in found.items() if not isinstance(v, list) and k not in ("stack_trace", "context", "sealed")}
    )
    if found["context"]:
        click.echo(f"\nContext\n{printable(json.dumps(found['context'], indent=2))}")
    if found["stack_trace"]:
        click.echo(f"\nStack trace\n{printable(found['stack_trace'])}")
    if found["sealed"]:
        say(
            f"its texts are sealed: kintsugi workflows timeline {found['workflow_id']} --reveal --reason WHY opens them"
        )
    if found["attempts"]:
        click.echo("\nAttempts")
        columns = ("attempt_number", "strategy", "status", "action_taken", "rule", "duration_ms", "error_message",
                   "alternatives")  # fmt: skip
        show(found["attempts"], output, columns=columns)
    if found["interventions"]:
        click.echo("\nAsked of humans")
        show(found["interventions"], output)
