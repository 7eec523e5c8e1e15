"""`kintsugi projections verify|diff`: tables against the log, and generations against each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ops.commands.verify import say_outcome
from ops.output import ID, MISMATCH, output_option, progress_bar, say, show, show_json


class _Generation(click.ParamType[str]):
    name = "generation"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name, _, number = str(value).partition("_g")
        if name != "kintsugi" or (number and not (number.isascii() and number.isdigit())) or str(value).endswith("_g"):
            self.fail(f"{value!r} is no generation; kintsugi is the live one, kintsugi_g2 another", param, ctx)
        return str(value)


_GENERATION = _Generation()


@click.command()
@click.option("--workflow", "workflow_id", type=ID, help="Only the rows of this workflow.")
@click.option("--sample", type=click.IntRange(1), help="Only so many workflows, the same for one seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the sample.")
@click.option("--generation", type=_GENERATION, default="kintsugi", show_default=True, help="Which tables.")
@click.option("--memory-mb", type=click.IntRange(1), help="For the rows of one pass; otherwise 512.")
@click.option("--without-archive", is_flag=True, help="Begin where Kafka's log begins.")
@output_option
def verify(
    workflow_id: str | None,
    sample: int | None,
    seed: int,
    generation: str,
    memory_mb: int | None,
    without_archive: bool,
    output: str,
) -> None:
    """Prove that every row is what the log says.

    Folds the log up to where the tables stand at one moment, and compares each row with it by a digest, while
    projectors go on writing. What is parked or discarded is left out of both. What finds no room in memory is compared
    in further passes over the log.
    Exit 6 when anything differs; each difference is listed by row and column.
    """
    from ops.stack import addresses
    from ops.tables_proof import MEMORY_MB, SAMPLE_MAX, prove

    if workflow_id is not None and sample is not None:
        raise click.UsageError("--workflow and --sample exclude each other")
    if sample is not None and sample > SAMPLE_MAX:
        raise click.UsageError(f"a sample has at most {SAMPLE_MAX} workflows; without --sample all are proven")
    with progress_bar() as progress:
        report = prove(
            addresses(),
            progress,
            workflow_id=workflow_id,
            sample=sample,
            seed=seed,
            generation=generation,
            archived=not without_archive,
            memory_mb=memory_mb or MEMORY_MB,
        )
    if output == "json":
        show_json({**asdict(report), "sound": report.sound})
    else:
        show([{"table": name, "rows": count} for name, count in report.rows.items()], output)
        if report.drifts:
            show([asdict(drift) for drift in report.drifts], output)
    say(f"{report.events} events in {report.passes} passes, {report.unreadable} records set aside")
    say_outcome(report)
    say("log and tables agree")


@click.command()
@click.argument("first", type=_GENERATION)
@click.argument("second", type=_GENERATION)
@output_option
def diff(first: str, second: str, output: str) -> None:
    """Compare two generations of the tables, while both are written.

    Workflows that changed between the places of the log where both stand are left out; run it again to compare them.
    Exit 6 when rows differ; each difference is listed by row and column.
    """
    from ops.stack import addresses
    from ops.tables_diff import diff as compare

    with progress_bar() as progress:
        report = compare(addresses(), first, second, progress)
    found = report.differences
    if output == "json":
        show_json({**asdict(report), "equal": found.equal})
    elif found.shown:
        columns = {"expected": first, "found": second}
        show([{columns.get(k, k): v for k, v in asdict(drift).items()} for drift in found.shown], output)
    if report.left_out:
        say(f"{report.left_out} workflows were not compared: they changed between {first} and {second}, or are parked")
    for table, count in found.references.items():
        say(f"  {table}: {count} rows differ in a reference that is empty in one; kintsugi projections verify tells")
    if not found.equal:
        for table, count in found.rows.items():
            say(f"  {table}: {count} rows differ")
        raise click.exceptions.Exit(MISMATCH)
    say(f"{first} and {second} are equal")
