"""`kintsugi topics create | describe`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ops import kafka_topics
from ops.output import MISMATCH, output_option, show, show_json
from ops.stack import addresses


@click.group()
def topics() -> None:
    """Create and describe the topics."""


@topics.command()
@click.option("--dry-run", is_flag=True, help="Say what would be created, create nothing.")
@click.option("--replication", type=click.IntRange(1, 32), default=1, show_default=True)
@output_option
def create(dry_run: bool, replication: int, output: str) -> None:
    """Create the topics that are missing. One that exists is left as it is."""
    made = kafka_topics.create(addresses().kafka, dry_run=dry_run, replication=replication)
    show(
        [{"topic": s.name, "partitions": s.partitions, "state": word, "purpose": s.purpose} for s, word in made], output
    )


@topics.command()
@output_option
def describe(output: str) -> None:
    """Each topic, and which of its settings are not as they should be. Exit 6 when any differs."""
    states = kafka_topics.describe(addresses().kafka)
    if output == "json":
        show_json([asdict(s) for s in states])
    else:
        rows = [
            {
                "topic": s.name,
                "partitions": s.partitions,
                "state": "missing" if not s.exists else "differs" if s.differences else "ok",
                "differences": "; ".join(s.differences),
                "purpose": s.purpose,
            }
            for s in states
        ]
        show(rows, output)
    if any(s.differences or not s.exists for s in states):
        raise click.exceptions.Exit(MISMATCH)
