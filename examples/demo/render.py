"""The report on paper: tables on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .report import Report

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 140
_MESSAGE_MAX = 90


def render(report: Report) -> None:
    """Print the report."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", str(_WIDTH)))
    console = Console(width=width, highlight=False)
    for table in tables(report):
        console.print(table)
        console.print()
    console.print(
        f"{report.taken_over} workflows were taken over by another process; "
        f"{report.errors_again} more errors joined a repair that was under way. "
        "Ignored: found after the workflow had ended."
    )
    console.print()
    for check in report.checks:
        console.print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}", markup=False)
    console.print()


def tables(report: Report) -> Iterable[Table]:
    """One table for each question."""
    total = sum(report.workflows.values())
    yield _table(f"workflows by outcome ({total})", ("outcome", "workflows"), report.workflows.items())
    yield _table(
        "workflows by planned fault",
        ("fault", "workflows", "completed", "wait for a human", "other"),
        ((f.fault, f.workflows, f.completed, f.waiting_for_human, f.other) for f in report.faults),
    )
    yield _table(
        "errors by type and last strategy",
        ("error type", "strategy", "errors", "recovered", "wait for a human", "ignored", "other", "attempts"),
        (
            (e.error_type, e.strategy, e.errors, e.recovered, e.waiting_for_human, e.ignored, e.other, e.attempts)
            for e in report.errors
        ),
    )
    yield _table(
        "attempts by strategy",
        ("strategy", "attempts", "succeeded", "failed", "unknown", "open"),
        ((a.strategy, a.attempts, a.succeeded, a.failed, a.unknown, a.open) for a in report.attempts),
    )
    yield _table(
        "how long it took, ms",
        ("from ... to", "count", "p50", "p99", "max"),
        ((t.what, t.count, f"{t.p50_ms:.0f}", f"{t.p99_ms:.0f}", f"{t.max_ms:.0f}") for t in report.times),
    )
    yield _table("who waits for a human, and why", ("workflow", "step", "why"), map(_waiting, report.waiting))


def _waiting(row: dict[str, Any]) -> Sequence[str]:
    message = " ".join(str(row["error_message"]).split())[:_MESSAGE_MAX]
    tried = (row["attempts"] or 1) - 1
    return row["workflow_id"], row["step_id"], f"{row['error_code']}: {message}; {tried} repairs tried: {row['reason']}"


def _table(title: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number and name not in ("strategy", "step", "why") else "left")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table
