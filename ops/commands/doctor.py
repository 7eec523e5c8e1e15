"""`kintsugi doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ops.output import FAILED, output_option, show


@click.command()
@output_option
def doctor(output: str) -> None:
    """Check everything Kintsugi needs. Each line is ok, warn or fail, with the fix; exit 1 when any fails."""
    from ops.doctor import FAIL, examine

    findings = examine()
    show([asdict(f) for f in findings], output)
    if any(f.state == FAIL for f in findings):
        raise click.exceptions.Exit(FAILED)
