"""`kintsugi db migrate | status`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ops.output import CONFLICT, output_option, show


@click.group()
def db() -> None:
    """Migrate the database."""


@db.command()
@click.option("--dry-run", is_flag=True, help="Say what would be applied, change nothing.")
@output_option
def migrate(dry_run: bool, output: str) -> None:
    """Create the tables that are missing. Running it again changes nothing."""
    from ops.stack import addresses
    from projections.migrate import migrate as apply

    show([asdict(s) for s in apply(addresses().postgres, dry_run=dry_run)], output, columns=("name", "state"))


@db.command()
@output_option
def status(output: str) -> None:
    """Which migrations are applied. Exit 4 when any is pending."""
    from ops.stack import addresses
    from projections.migrate import migrate as apply

    steps = apply(addresses().postgres, dry_run=True)
    show([asdict(s) for s in steps], output, columns=("name", "state"))
    if any(s.state != "applied" for s in steps):
        raise click.exceptions.Exit(CONFLICT)
