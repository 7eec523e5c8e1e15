"""`kintsugi recover`: one repair for many errors; first a plan, then its execution."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.output import CONFLICT, FAILED, INTERRUPTED, OK, PARTIAL, printable, progress_bar, say, show, show_json

if TYPE_CHECKING:
    from ops.recover import Execution
    from ops.recover_plan import Plan

LIMIT_DEFAULT = 1_000
WAIT_S_DEFAULT = 60.0
_WAIT_S_MAX = 24 * 3_600.0
#: Rows of a table that people read; the file and JSON have all.
_SHOWN_MAX = 20


@click.command()
@click.option("--where", "wanted", help="Which open errors: 'type=timeout and age<1h and not step~deploy*'.")
@click.option("--strategy", help="The repair: retry_step, restart_from_checkpoint, skip_step, ...")
@click.option(
    "--parameter", "parameters", multiple=True, help="NAME=VALUE that the strategy takes, such as to_step=pay."
)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="File of the plan.  [default: a new name]")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=LIMIT_DEFAULT, show_default=True, help="Errors at most."
)
@click.option("--execute", type=click.Path(path_type=Path), help="Carry this plan out.")
@click.option("--reason", help="Why; required. Goes into the log and to the audit log.")
@click.option(
    "--accept-rerun",
    multiple=True,
    help="With --execute: a step that runs again and is not idempotent; once for each.",
)
@click.option("--rate", default="10/s", show_default=True, help="Requests a second at most.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", "wait_s", type=click.FloatRange(0.0, _WAIT_S_MAX), default=WAIT_S_DEFAULT, show_default=True,
              help="Seconds to wait for results after the last request.")  # fmt: skip
@click.option("--output", type=click.Choice(["table", "json", "jsonl"]), default="table", show_default=True)
def recover(
    wanted: str | None,
    strategy: str | None,
    parameters: tuple[str, ...],
    plan_file: Path | None,
    limit: int,
    execute: Path | None,
    reason: str | None,
    accept_rerun: tuple[str, ...],
    rate: str,
    yes: bool,
    wait_s: float,
    output: str,
) -> None:
    """Plan one repair for many open errors, and carry the plan out.

    A plan is a file. It says for each error what would be done, which steps would run again, and which of them are not
    idempotent: each of those has to be accepted by name. Nothing is changed until it is executed; an error that has
    moved on since then is left alone, as stale. Ctrl-C pauses an execution, and running it again goes on where it was.

    \b
      kintsugi recover --where 'type=timeout and age<1h' --strategy retry_step --reason "bank is back" --plan p.json
      kintsugi recover --execute p.json --reason "bank is back" --accept-rerun pay --rate 20/s

    \b
    Fields: type code workflow_type workflow step severity status fingerprint dependency attempts age waiting
    Operators: = != < <= > >= ~ (glob), and, or, not, parentheses

    Exit 0: planned, or all recovered, 1: none recovered, 4: the plan was changed, is too old or for another cluster,
    a step was not accepted, or nobody agreed, 5: some were not recovered, 130: paused.
    """
    from ops.interventions import check_reason

    why = check_reason(reason)
    if execute is not None:
        if wanted or strategy or parameters or plan_file:
            raise click.UsageError("--execute takes its filter and strategy from the plan")
        raise click.exceptions.Exit(_execute(execute, why, accept_rerun, rate, yes, wait_s, output))
    if accept_rerun:
        raise click.UsageError("--accept-rerun goes with --execute: the plan says which steps run again")
    if not wanted or not strategy:
        raise click.UsageError("--where and --strategy make a plan, --execute carries one out")
    _plan(wanted, strategy, _parameters(parameters), plan_file, limit, why, output)


def _parameters(given: tuple[str, ...]) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise click.UsageError(f"--parameter {text!r:.100}: one looks like to_step=pay")
        found[name] = value if name == "to_step" else _number(value)
    return found


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plan(
    wanted: str,
    strategy: str,
    parameters: dict[str, str | int | float],
    plan_file: Path | None,
    limit: int,
    reason: str,
    output: str,
) -> None:
    from ops import recover_plan as planning
    from ops.recover_filter import FilterError
    from ops.stack import addresses

    at = addresses()
    ask = planning.Wanted(filter=wanted, strategy=strategy, parameters=parameters, reason=reason, limit=limit)
    try:
        with progress_bar() as move:
            plan, gaps = planning.make(at, ask, on_progress=lambda done, of: move("partitions read", done, of))
    except FilterError as error:
        raise click.UsageError(str(error)) from None
    path = plan_file or Path(f"recover-{datetime.now(UTC):%Y%m%d-%H%M%S}-{plan.plan_id[:8]}.json")
    planning.write(plan, path)
    if output == "table":
        _show_plan(plan)
    elif output == "json":
        show_json({**plan.model_dump(mode="json"), "file": str(path)})
    else:
        _lines([item.model_dump(mode="json") for item in plan.items])
    if gaps:
        say("parts of the history are gone: the steps listed may not be all")
    say(f"{len(plan.possible)} of {len(plan.items)} errors can be repaired so; nothing was changed. To carry it out:")
    accept = " --accept-rerun STEP" if plan.side_effects() else ""
    say(f"  kintsugi recover --execute {path} --reason ...{accept}")


def _show_plan(plan: Plan) -> None:
    rows = [
        {
            "error_id": item.error_id,
            "workflow_id": item.workflow_id,
            "step": item.step_id or None,
            "attempts": item.attempts,
            "what is done": item.action if item.possible else f"nothing: {item.why_not}",
            "runs again": ", ".join(step.step_id for step in item.runs_again) or None,
        }
        for item in plan.items[:_SHOWN_MAX]
    ]
    show(rows, "table", empty="no open error matches")
    if len(plan.items) > _SHOWN_MAX:
        say(f"and {len(plan.items) - _SHOWN_MAX} more, in the file")
    _show_side_effects(plan)


def _show_side_effects(plan: Plan) -> None:
    counts = plan.side_effects()
    if counts:
        click.echo("\nNot idempotent, and would run again")
        show([{"step": step, "workflows": count} for step, count in sorted(counts.items())], "table")


def _lines(rows: list[dict[str, Any]]) -> None:
    import orjson

    for row in rows:
        click.echo(orjson.dumps(row).decode())


def _execute(
    path: Path, reason: str, accepted: tuple[str, ...], rate_text: str, yes: bool, wait_s: float, output: str
) -> int:
    from ops import recover_plan as planning
    from ops.recover import Execution, check_rate
    from ops.stack import addresses

    rate = check_rate(rate_text)
    plan = planning.read(path, now_us=time.time_ns() // 1000)
    plan.check_accepted(accepted)
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody is there to ask: --yes carries the plan out")
    with Execution(addresses(), plan, path, reason) as run:
        if output == "table":
            _show_side_effects(plan)
        if not yes and not click.confirm(_question(plan, run.left), err=True):
            say("nothing was changed")
            return CONFLICT
        paused = _carry_out(run, reason, rate, wait_s)
        totals = run.totals()
        rows = [result.row() for result in run.results.values()]
    _show_results(rows, totals, output)
    if paused:
        say(f"paused: {totals['not_asked']} were not asked for. Run it again to go on")
        return INTERRUPTED
    if totals["pending"]:
        say(f"{totals['pending']} have not ended yet: run it again to see what became of them")
    if totals["recovered"] == totals["items"]:
        return OK
    return PARTIAL if totals["recovered"] or totals["pending"] else FAILED


def _question(plan: Plan, left: int) -> str:
    risky = ", ".join(sorted(plan.side_effects()))
    what = f"{plan.strategy} for {left} error{'' if left == 1 else 's'}"
    return f"{what}{f'; not idempotent, and run again: {risky}' if risky else ''}. Go on?"


def _carry_out(run: Execution, reason: str, rate: float, wait_s: float) -> bool:
    """Whether it was paused."""
    from ops.audit import audited
    from ops.recover_plan import NAMED_MAX

    plan, paused = run.plan, False
    with audited(run.address.kafka, "recover.execute", subject=plan.plan_id, reason=reason) as told:
        told.update(filter=plan.filter, strategy=plan.strategy, items=len(plan.items))
        told.update(accepted=sorted(plan.side_effects())[:NAMED_MAX])
        try:
            with progress_bar() as move:
                run.ask(rate, lambda done, of: move("asked for", done, of))
                if wait_s:
                    run.wait(wait_s, lambda done, of: move("ended", done, of))
        except KeyboardInterrupt:
            paused = True
        told.update(run.totals(), paused=paused)
    return paused


def _show_results(rows: list[dict[str, Any]], totals: dict[str, int], output: str) -> None:
    if output == "json":
        show_json({"items": rows, "totals": totals})
        return
    if output == "jsonl":
        _lines([*rows, {"totals": totals}])
        return
    bad = [row for row in rows if row["outcome"] != "recovered"]
    if bad:
        show([{**row, "detail": printable(row["detail"])} for row in bad[:_SHOWN_MAX]], "table")
    if len(bad) > _SHOWN_MAX:
        say(f"and {len(bad) - _SHOWN_MAX} more, in the journal beside the plan")
    click.echo("  ".join(f"{name.replace('_', ' ')} {count}" for name, count in totals.items() if count))
