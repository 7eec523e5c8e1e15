"""`kintsugi policy backtest`."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.output import output_option, printable, progress_bar, say, show, show_json, utc

if TYPE_CHECKING:
    from engine.backtest import ErrorRow
    from engine.backtest_report import Figure, Judged
    from ops.backtest import Outcome

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
#: Rows of a table; --output json has them all.
ROWS_SHOWN_MAX = 200
_EVIDENCE = "evidence"
#: Figures whose rows can be asked for.
NAMES = (
    "errors", "set_apart", "alike", "differently", "still_open", "compared",
    "recovered", "people", "gives_up", "cost", "time_ms",
)  # fmt: skip


class _Moment(click.ParamType[int]):
    """A time, or how long ago: milliseconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text, now_ms = str(value), time.time_ns() // 1_000_000
        if text[:-1].isascii() and text[:-1].isdigit() and text[-1:] in _UNITS_S and len(text) <= 10:
            return max(0, now_ms - int(text[:-1]) * _UNITS_S[text[-1]] * 1000)
        try:
            return int(utc(text).timestamp() * 1000)
        except ValueError:
            self.fail(f"{text!r} is no time; one looks like 30d or 2026-11-20T10:00:00Z", param, ctx)


@click.command()
@click.argument("candidate", type=_FILE)
@click.option("--since", type=_Moment(), default="30d", show_default=True, help="How long ago, or a time (UTC).")
@click.option("--until", type=_Moment(), help="Up to then; now, when it is left out.")
@click.option("--workflow-type", help="Only workflows of this type.")
@click.option("--policy", "file", type=_FILE, help="The policy that ran before the first that was applied.")
@click.option("--rows", "rows_of", type=click.Choice([*NAMES, _EVIDENCE]), help="The rows behind a figure.")
@click.option("--accept-gap", is_flag=True, help="Go without what neither archive nor log have any more.")
@output_option
def backtest(
    candidate: Path,
    since: int,
    until: int | None,
    workflow_type: str | None,
    file: Path | None,
    rows_of: str | None,
    accept_gap: bool,
    output: str,
) -> None:
    """What CANDIDATE would have decided in recorded history, beside what happened. Changes nothing.

    Folds archive and log with the engine itself. Errors that the candidate decides differently are exact; what would
    have become of them is estimated from recorded outcomes, with counts, a range, and what is not known.

    \b
      kintsugi policy backtest my-policy.yaml --since 30d
      kintsugi policy backtest my-policy.yaml --since 7d --rows differently
      kintsugi policy backtest my-policy.yaml --rows evidence --output json
    """
    from engine.policy import default_policy, load_policy
    from ops.backtest import Asked
    from ops.backtest import backtest as run
    from ops.policies import read_text
    from ops.stack import addresses

    now_ms = time.time_ns() // 1_000_000
    until_ms = now_ms if until is None else until
    if since >= now_ms:
        raise click.UsageError("--since is in the future: there is no history of it")
    if until_ms <= since:
        raise click.UsageError("--until is not after --since")
    chosen = load_policy(read_text(candidate), str(candidate))
    started_with = default_policy() if file is None else load_policy(read_text(file), str(file))
    asked = Asked(since_ms=since, until_ms=until_ms, workflow_type=workflow_type, accept_gap=accept_gap)
    with progress_bar() as progress:
        outcome = run(addresses(), chosen, started_with, asked, progress)
    if rows_of is not None:
        _show_rows(outcome, rows_of, output)
    elif output == "json":
        show_json(_document(outcome, chosen.version, asked.since_ms, asked.until_ms))
    else:
        _show(outcome, chosen.version)


def _show(outcome: Outcome, version: str) -> None:
    from engine.backtest_report import changes

    report = outcome.report
    say(
        f"candidate {version}; {outcome.events} events; {outcome.reproduced} decisions proven again by their own policy"
    )
    show([_figure(figure) for figure in report.figures()], "table")
    found = changes(report.differently)
    if found:
        click.echo()
        show(found[:ROWS_SHOWN_MAX], "table")
    click.echo()
    click.echo("What this rests on, and what history cannot tell:")
    for line in outcome.account:
        click.echo(printable(f"- {line}"))
    say("the errors behind a figure: --rows NAME; the recorded tries: --rows evidence")


def _figure(figure: Figure) -> dict[str, Any]:
    names = ("meaning", "happened", "candidate", "low", "high", "unknown", "method")
    return {"figure": figure.name, **{name: _rounded(getattr(figure, name)) for name in names}}


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value


def _document(outcome: Outcome, version: str, since_ms: int, until_ms: int) -> dict[str, Any]:
    from engine.backtest_report import changes

    return {
        "version": 1,
        "candidate": version,
        "since": datetime.fromtimestamp(since_ms / 1000, UTC),
        "until": datetime.fromtimestamp(until_ms / 1000, UTC),
        "read_from": datetime.fromtimestamp(max(0, outcome.read_from_ms) / 1000, UTC),
        "events": outcome.events,
        "unreadable": outcome.unreadable,
        "reproduced": outcome.reproduced,
        "figures": [_figure(figure) for figure in outcome.report.figures()],
        "changes": changes(outcome.report.differently),
        "evidence": outcome.report.evidence.rows(),
        "gaps": [asdict(gap) for gap in outcome.gaps],
        "account": outcome.account,
    }


def _show_rows(outcome: Outcome, name: str, output: str) -> None:
    report = outcome.report
    if name == _EVIDENCE:
        rows = report.evidence.rows()
    else:
        judged = {id(j.row): j for j in report.judged}
        (figure,) = (f for f in report.figures() if f.name == name)
        rows = [_row(row, judged.get(id(row))) for row in figure.rows]
    shown = rows if output == "json" else rows[:ROWS_SHOWN_MAX]
    show(shown, output, empty=f"no row is behind {name}")
    if len(shown) < len(rows):
        say(f"the first {len(shown)} of {len(rows)}; --output json has them all")


def _row(row: ErrorRow, judged: Judged | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "error_id": row.error_id,
        "workflow_id": row.workflow_id,
        "error_type": row.error_type,
        "fingerprint": row.fingerprint,
        "outcome": row.outcome if row.outcome != "recovered" else f"recovered by {row.by}",
        "strategies": ", ".join(row.strategies),
        "open_ms": row.open_ms,
        "cost": row.cost,
        "asked": row.asked,
    }
    if row.apart:
        return {**found, "apart": row.apart}
    if row.difference is None:
        return found
    before, after = row.difference.before, row.difference.after
    found |= {
        "attempt": before.number,
        "rule_before": before.rule,
        "strategy_before": before.strategy,
        "rule_now": after.rule,
        "strategy_now": after.strategy,
        "differs_in": ", ".join(row.difference.fields),
        "ladder_now": ", ".join(made.strategy for made in row.difference.course.tries) or "a human at once",
    }
    if judged is not None:
        then = judged.then
        found |= {
            "recovered": None if then.unknown == 1.0 else _rounded(then.recovered),
            "low": _rounded(then.low),
            "high": _rounded(then.high),
            "unknown": _rounded(then.unknown),
            "basis": "; ".join(then.basis),
        }
    return found
