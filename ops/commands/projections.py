"""`kintsugi projections ...`: generations of the tables."""

from __future__ import annotations

from dataclasses import asdict

import click

from ops.commands import projections_proof
from ops.output import CONFLICT, MISMATCH, output_option, progress_bar, say, show, show_json, show_record

_REASON = "Why; it is kept in the audit topic and beside the generation."


def _tables(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    from projections.catalog import chosen

    try:
        return tuple(table.name for table in chosen(value)) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _which(live: list[str], tables: list[str]) -> str:
    """Which of a generation's tables are live, in few words."""
    gone = [table for table in tables if table not in live]
    if not live or not gone:
        return "yes" if live else ""
    return f"but {', '.join(gone)}" if len(gone) < len(live) else ", ".join(live)


@click.group()
def projections() -> None:
    """Rebuild the tables from the log beside the live ones, compare, and change over."""


projections.add_command(projections_proof.verify)
projections.add_command(projections_proof.diff)


@projections.command("list")
@output_option
def list_generations(output: str) -> None:
    """All generations there were, where each stands, and which of its tables are the live ones."""
    from ops.rebuild import listed
    from ops.stack import addresses

    rows = listed(addresses())
    if output != "json":
        for row in rows:
            row["live"] = _which(row["live"], row["tables"])
            row["tables"] = "all" if row["whole"] else ", ".join(row["tables"])
    show(
        rows,
        output,
        columns=(
            "name",
            "state",
            "live",
            "tables",
            "lag_records",
            "differing",
            "built_by",
            "actor",
            "reason",
            "created_at",
        ),
        empty="no generation but the live one",
    )


@projections.command()
@click.argument("name", required=False)
@output_option
def status(name: str | None, output: str) -> None:
    """How far generations are that are being built, or wait to be promoted: phase, rate, time left.

    It is read from the database: the rebuild may run anywhere. Not running and still loading: it was cut short, and the
    same rebuild command goes on with it.
    """
    from ops.generation_status import status as found
    from ops.stack import addresses

    with _conflicts():
        rows = found(addresses(), name)
    if output == "json":
        show_json(rows)
        return
    if not rows:
        say("no generation is being built, and none waits to be promoted")
    for row in rows:
        show_record(row)


@projections.command()
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Partitions at once.")
@click.option("--reason", required=True, help=_REASON)
@click.option("--table", "tables", multiple=True, callback=_tables, help="Of this table alone; may be repeated.")
@click.option("--accept-gap", is_flag=True, help="Go on where neither log nor archive hold the beginning.")
@click.option("--dry-run", is_flag=True, help="Say what would be read, change nothing.")
@output_option
def rebuild(
    processes: int, reason: str, tables: tuple[str, ...] | None, accept_gap: bool, dry_run: bool, output: str
) -> None:
    """Fill a new generation from archive and log while the live tables serve and are written.

    Of all tables, or of those named by --table: the others stay as they are when it is promoted.

    It ends caught up and compared with the live tables, row by row; promote changes over. Cut short, the same command
    goes on where it was. Exit 4 while another is at work, 6 when rows differ.
    """
    from ops.audit import actor, audited
    from ops.rebuild import plan
    from ops.rebuild import rebuild as build
    from ops.stack import addresses

    at = addresses()
    if dry_run:
        show(plan(at), output)
        return
    with (
        progress_bar() as progress,
        _conflicts(),
        audited(at.kafka, "projections.rebuild", subject="kintsugi", reason=reason) as detail,
    ):
        report = build(
            at,
            progress,
            processes=processes,
            actor=actor(),
            reason=reason,
            accept_gap=accept_gap,
            tables=tables,
            tell=say,
        )
        detail.update(generation=report.name, rows=report.rows, differing=report.differing)
        if tables:
            detail.update(tables=", ".join(tables))
    _tell(asdict(report), output)
    if report.differing:
        say(f"{report.differing} rows differ from the live tables; kintsugi projections promote says how to go on")
        raise click.exceptions.Exit(MISMATCH)
    say(f"to change over: kintsugi projections promote {report.name} --reason ...")


@projections.command()
@click.argument("name")
@click.option("--reason", required=True, help=_REASON)
@click.option("--accept-differences", is_flag=True, help="Change over although rows differ: they were looked at.")
@output_option
def promote(name: str, reason: str, accept_differences: bool, output: str) -> None:
    """Make a generation the live tables, in one transaction. What was live stays for a rollback.

    It is brought up to date and compared with the live tables first. Exit 4 when it is too far behind, 6 when rows
    differ; in both nothing is changed.
    """
    from ops.audit import actor, audited
    from ops.comparing import DiffersError
    from ops.promotion import promote as change_over
    from ops.stack import addresses

    at = addresses()
    with (
        progress_bar() as progress,
        _conflicts(),
        audited(at.kafka, "projections.promote", subject=name, reason=reason) as detail,
    ):
        try:
            retired = change_over(at, name, progress, actor=actor(), reason=reason, accept=accept_differences, tell=say)
        except DiffersError as error:
            show([asdict(drift) for drift in error.shown], output)
            raise
        detail.update(retired=retired)
    _tell({"promoted": name, "retired": retired}, output)
    say(f"back again: kintsugi projections rollback {retired} --reason ...")


@projections.command()
@click.argument("name")
@click.option("--reason", required=True, help=_REASON)
@output_option
def rollback(name: str, reason: str, output: str) -> None:
    """Make a retired generation the live tables again, after it has caught up with them."""
    from ops.audit import actor, audited
    from ops.promotion import rollback as change_back
    from ops.stack import addresses

    at = addresses()
    with (
        progress_bar() as progress,
        _conflicts(),
        audited(at.kafka, "projections.rollback", subject=name, reason=reason) as detail,
    ):
        retired = change_back(at, name, progress, actor=actor(), reason=reason, tell=say)
        detail.update(retired=retired)
    _tell({"promoted": name, "retired": retired}, output)


@projections.command()
@click.argument("name")
@click.option("--reason", required=True, help=_REASON)
def drop(name: str, reason: str) -> None:
    """Delete a generation that is not live, with all its rows."""
    from ops.audit import audited
    from ops.promotion import drop as delete
    from ops.stack import addresses

    at = addresses()
    with _conflicts(), audited(at.kafka, "projections.drop", subject=name, reason=reason):
        delete(at, name, tell=say)
    say(f"{name} is dropped")


class _conflicts:  # noqa: N801 - reads like the context managers beside it
    """A generation that does not stand as a command needs it is a conflict: exit 4; one that differs: exit 6."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from ops.comparing import DiffersError
        from projections.generations import GenerationError

        if isinstance(error, GenerationError):
            say(f"error: {error}")
            if error.hint:
                say(f"  try: {error.hint}")
            raise click.exceptions.Exit(MISMATCH if isinstance(error, DiffersError) else CONFLICT) from None


def _tell(record: dict[str, object], output: str) -> None:
    if output == "json":
        show_json(record)
        return
    for name, value in record.items():
        click.echo(f"{name.replace('_', ' ')}: {value}")
