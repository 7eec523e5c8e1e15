"""`kintsugi resources list`."""

from __future__ import annotations

import click

from ops.output import ID, output_option, say, show

_COLUMNS = (
    "resource_id",
    "status",
    "workflow_id",
    "step_id",
    "amount",
    "priority",
    "seconds",
    "requested_at",
    "reason",
)


@click.group()
def resources() -> None:
    """Show the resources that workflows share: who holds what, and who waits."""


@resources.command("list")
@click.option("--resource", "resource_id", help="Only of this resource.")
@click.option("--workflow", "workflow_id", type=ID, help="Only of this workflow.")
@click.option("--waiting", is_flag=True, help="Only those who wait.")
@click.option("--all", "every", is_flag=True, help="Also leases that have ended.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(
    resource_id: str | None, workflow_id: str | None, waiting: bool, every: bool, limit: int, output: str
) -> None:
    """Leases and wishes by resource, holders first, each for how many seconds so far (or in all, when it has ended)."""
    from ops import reads
    from ops.stack import addresses

    rows = reads.leases(
        addresses().postgres,
        resource_id=resource_id,
        workflow_id=workflow_id,
        waiting=waiting,
        every=every,
        limit=limit,
    )
    show(rows, output, columns=_COLUMNS, empty="nothing is held or waited for")
    if len(rows) == limit:
        say(f"the first {limit}; --limit shows more")
