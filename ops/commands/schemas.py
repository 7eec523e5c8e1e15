"""`kintsugi schemas register | check | lint`."""

from __future__ import annotations

import json

import click

from ops.output import MISMATCH, output_option, say, show
from schemas.catalog import shipped


@click.group()
def schemas() -> None:
    """Register, check and lint the Avro schemas."""


@schemas.command()
@click.option("--dry-run", is_flag=True, help="Say what is missing, register nothing.")
@output_option
def register(dry_run: bool, output: str) -> None:
    """Register every schema that ships, at deploy time. Running it again changes nothing."""
    from ops.stack import addresses
    from schemas.registry import Registry

    with Registry(addresses().registry) as registry:
        done = registry.register(shipped().values(), dry_run=dry_run)
    show([{"subject": r.subject, "id": r.schema_id, "state": r.state} for r in done], output)


@schemas.command()
@click.option("--offline", is_flag=True, help="Only against released versions, without the registry.")
@output_option
def check(offline: bool, output: str) -> None:
    """Compare with every released version (FULL_TRANSITIVE) and with the registry. Exit 6 when anything differs."""
    from schemas.compat import problems

    rows = [{"schema": p.record, "against": p.version, "problem": p.message} for p in problems()]
    if not offline:
        from ops.stack import addresses
        from schemas.registry import Registry

        with Registry(addresses().registry) as registry:
            differing = [f for f in registry.compare() if f.state != "registered"]
        rows += [{"schema": f.subject, "against": "registry", "problem": f.state} for f in differing]
    show(
        rows, output, empty="every schema is compatible and registered" if not offline else "every schema is compatible"
    )
    if rows:
        raise click.exceptions.Exit(MISMATCH)


@schemas.command()
@output_option
def lint(output: str) -> None:
    """House rules, and shapes that no decoder survives. Exit 6 when a schema breaks one."""
    from schemas.lint import rule_problems

    rows = [
        {"schema": schema.name, "problem": problem}
        for schema in shipped().values()
        for problem in rule_problems(json.loads(schema.text))
    ]
    show(rows, output, empty=f"{len(shipped())} schemas, no problem")
    if rows:
        say("see docs/schemas.md")
        raise click.exceptions.Exit(MISMATCH)
