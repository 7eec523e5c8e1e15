"""`kintsugi state ...`: the versions of workflows' states."""

from __future__ import annotations

import click

from ops.commands.migrate import migrate


@click.group()
def state() -> None:
    """Versions of states: what changed between two, and whether migrations fit."""


state.add_command(migrate)
