"""`kintsugi verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.output import MISMATCH, output_option, progress_bar, say, show, show_json

if TYPE_CHECKING:
    from ops.tables_proof import TablesReport


@click.command()
@click.option("--policy", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The policy that ran.")
@click.option("--only", type=click.Choice(["log", "tables"]), help="Half of the work.")
@click.option("--without-archive", is_flag=True, help="Begin where Kafka's log begins.")
@output_option
def verify(policy: Path | None, only: str | None, without_archive: bool, output: str) -> None:
    """Prove that log, commands and tables agree.

    Folds the whole log, from the archive on, again with the same engine: every decision and command that follows from
    it is there and says what follows, none that does not, nothing was done twice for one command, nothing waits that is
    overdue, and every table row equals the fold up to the tables' position. Exit 6 when anything differs; each
    difference is listed.
    """
    from engine.policy import default_policy, load_policy
    from ops.stack import addresses
    from ops.verify import verify as check

    chosen = default_policy() if policy is None else load_policy(policy.read_text(encoding="utf-8"), str(policy))
    with progress_bar() as progress:
        report = check(addresses(), chosen, progress, only=only, archived=not without_archive)
    if output == "json":
        show_json({**asdict(report), "sound": report.sound})
    else:
        if report.rows:
            show([{"table": name, "rows": count} for name, count in report.rows.items()], output)
        if report.findings:
            show([asdict(f) for f in report.findings], output)
        if report.drifts:
            show([asdict(d) for d in report.drifts], output)
    say(f"{report.events} events, {report.commands} commands, {report.unreadable} records set aside")
    say_outcome(report)
    say(
        {"log": "log and commands agree", "tables": "log and tables agree"}.get(
            only or "", "log, commands and tables agree"
        )
    )


def say_outcome(report: TablesReport) -> None:
    """What a proof of the tables left out, and in what it found them wrong: then the process ends with 6."""
    if report.behind:
        say(f"the tables are {report.behind} records behind the log; what they hold was compared up to there")
    if report.unproven:
        say(f"{report.unproven} rows were not compared: neither log nor archive hold the beginning of their workflows")
    if not report.sound:
        for what, count in sorted(report.counts.items()):
            say(f"  {what}: {count}")
        say("log and tables do not agree")
        raise click.exceptions.Exit(MISMATCH)
