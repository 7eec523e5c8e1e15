"""`kintsugi state ...`: the versions of workflows' states."""

from __future__ import annotations

from pathlib import Path

import click

from ops.commands.migrate import migrate
from ops.output import ID, NotFoundError, output_option, say, show

CHANGES_SHOWN = 200


@click.group()
def state() -> None:
    """Versions of states: what changed between two, and whether migrations fit."""


state.add_command(migrate)


@state.command()
@click.argument("workflow_id", type=ID)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def history(workflow_id: str, limit: int, output: str) -> None:
    """Every version of a workflow's state, newest first: checkpointed, persisted, restored. Exit 3 for none."""
    from ops import checkpoints as reads
    from ops.stack import addresses

    rows = reads.history(addresses().postgres, workflow_id, limit=limit)
    if not rows:
        raise NotFoundError(f"no version of a state of workflow {workflow_id}; kintsugi workflows show {workflow_id}")
    show(rows, output)
    if len(rows) == limit:
        say(f"the newest {limit}; --limit shows more")


@state.command("diff")
@click.argument("workflow_id", type=ID)
@click.argument("before")
@click.argument("after")
@click.option("--policy", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="As for checkpoints.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=CHANGES_SHOWN, show_default=True)
@output_option
def diff_(workflow_id: str, before: str, after: str, policy: Path | None, limit: int, output: str) -> None:
    """What changed from one version of a workflow's state to another. Exit 0: nothing, 1: something.

    A version is named as `kintsugi state history` does: by its version, by its id, or "latest".
    """
    from ops import checkpoints as reads
    from ops.commands.checkpoints import show_differences
    from ops.reveal import check_size, policy_of, require_inspection
    from ops.stack import addresses

    allowed = require_inspection(policy_of(policy))
    postgres = addresses().postgres
    first, second = (reads.version(postgres, workflow_id, name) for name in (before, after))
    for row in (first, second):
        check_size(row, allowed)
    show_differences(reads.differences(first, second, limit=limit), str(first["id"]), str(second["id"]), output)
