"""`kintsugi up | status | logs | down`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from ops import stack
from ops.output import CONFLICT, FAILED, NotFoundError, output_option, say, show, show_json


@click.command()
@output_option
def up(output: str) -> None:
    """Start what does not run yet, wait until it answers, and make topics, schemas and tables that are missing.

    A second `up` changes nothing. A stack named by the environment is left as it is; `kintsugi doctor` says what
    it lacks.
    """
    from ops.setup import set_up

    began = time.monotonic()
    addresses = stack.ensure(say=say)
    if not stack.is_given():
        set_up(addresses)
        say("topics, schemas and tables are there")
    say(f"the stack is up ({time.monotonic() - began:.1f} s)")
    if output == "json":
        show_json(asdict(addresses))
    else:
        for name, value in addresses.environment().items():
            click.echo(f"export {name}={value}")


@click.command()
@output_option
def status(output: str) -> None:
    """State of each part; a part that crashed comes with the end of its log. Exit 1 unless all run."""
    parts = stack.status()
    if output == "json":
        show_json([asdict(p) for p in parts])
    else:
        show([asdict(p) for p in parts], output, columns=("name", "state", "pid", "address", "log"))
        for part in parts:
            if part.log_tail:
                click.echo(f"\n{part.name}: the end of its log\n{part.log_tail}")
    if any(p.state != "running" for p in parts):
        if output == "table":
            say("not all parts run; kintsugi up starts them")
        raise click.exceptions.Exit(FAILED)


@click.command()
@click.argument("part")
@click.option("--lines", type=click.IntRange(1, 10_000), default=50, show_default=True)
def logs(part: str, lines: int) -> None:
    """The end of the log of PART: postgres, kafka or registry."""
    try:
        text = stack.logs(part, lines=lines)
    except KeyError:
        raise NotFoundError(f"no part {part!r}; one of postgres, kafka, registry") from None
    if not text:
        raise NotFoundError(f"{part} has logged nothing here; kintsugi up starts it")
    click.echo(text)


@click.command()
@click.option("--purge", is_flag=True, help="Delete all data of the local stack too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def down(purge: bool, yes: bool) -> None:
    """Stop every part. Data is kept unless --purge is given."""
    if purge and not yes and not click.confirm("delete all data of the local stack?", err=True):
        raise click.exceptions.Exit(CONFLICT)
    stack.down(purge=purge, say=say)
    say("the stack is down")
