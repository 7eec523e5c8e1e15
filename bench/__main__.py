"""`python -m bench [NAME ...]`: run benchmarks, print their figures, keep them under bench/results/."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ops import stack
from ops.output import FAILED, guarded, output_option, say, show, show_json
from ops.setup import set_up
from ops.stack import Addresses
from schemas.errors import KintsugiError

from .figures import Benchmark, Setup, document_of
from .losses import PAGE, stored, with_losses
from .machine import facts

RESULTS = Path(__file__).parent / "results"
#: One module each. The log only grows: those that start a role, which reads it first, come before the big writers.
NAMES = (
    "engine",
    "replay",
    "timer",
    "deadlock",
    "failover",
    "latency",
    "storm",
    "arrival",
    "checkpoint",
    "restore",
    "projection",
    "rebuild",
    "peers",
    "scrub",
)
_HOME = Path(__file__).parents[1] / ".kintsugi" / "bench"


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, type=click.Choice(NAMES))
@click.option("--quick", is_flag=True, help="Fewer samples, to see that it works; stored only where --results says.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results; default: bench/results.",
)
@output_option
def bench(names: Sequence[str], quick: bool, results: Path | None, output: str) -> None:
    """Measure Kintsugi on the real stack: all benchmarks, or those named.

    Uses the stack whose addresses are in the environment, else one of its own, deleted afterwards.
    """
    chosen: list[Benchmark] = [import_module(f"bench.{name}").BENCHMARK for name in names or NAMES]
    folder = results if results is not None else None if quick else RESULTS
    began_s = time.monotonic()
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with _stack(needed=any(b.needs_stack for b in chosen)) as (addresses, own):
        machine = facts(addresses, own_stack=own)
        for benchmark in chosen:
            try:
                document = _run(benchmark, addresses, machine, quick=quick)
            except (RuntimeError, KintsugiError) as error:  # the others are measured all the same
                say(f"  {benchmark.name} failed: {error}")
                failed.append(benchmark.name)
                continue
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps(document, indent=2) + "\n"
                (folder / f"{benchmark.name}.json").write_text(text, encoding="utf-8")
                if folder == RESULTS:
                    PAGE.write_text(with_losses(PAGE.read_text("utf-8"), stored(RESULTS)), encoding="utf-8")
            rows += [{"benchmark": benchmark.name, **figure} for figure in document["figures"]]
    say(f"measured in {time.monotonic() - began_s:.0f} s" + (f", stored in {folder.name}/" if folder else ""))
    if output == "json":
        show_json({"machine": machine, "figures": rows})
    else:
        show([_shown(row) for row in rows], output)
    if failed:
        say(f"not measured: {', '.join(failed)}")
        raise click.exceptions.Exit(FAILED)


def _run(benchmark: Benchmark, addresses: Addresses | None, machine: dict[str, Any], *, quick: bool) -> Any:
    say(f"{benchmark.name}: {benchmark.measures}")
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kintsugi-bench-") as scratch:
        setup = Setup(quick=quick, folder=Path(scratch), addresses=addresses, say=lambda message: say(f"  {message}"))
        figures = benchmark.run(setup)
    say(f"  took {time.monotonic() - began_s:.0f} s")
    return document_of(benchmark, figures, machine, quick=quick)


@contextmanager
def _stack(*, needed: bool) -> Iterator[tuple[Addresses | None, bool]]:
    """The stack with topics, schemas and tables, and whether it is our own."""
    if not needed:
        yield None, False
        return
    own = not stack.is_given()
    try:
        at = stack.ensure(_HOME, say=say) if own else stack.ensure(say=say)
        set_up(at)
        yield at, own
    finally:
        if own:
            stack.down(_HOME, purge=True)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    met = {True: "yes", False: "NO", None: ""}[row["met"]]
    return {
        "benchmark": row["benchmark"],
        "figure": row["figure"],
        "goal": row["goal"] or "",
        "measured": f"{row['measured']:,.{2 if abs(row['measured']) < 1000 else 0}f} {row['unit']}",
        "met": met,
        "note": row["note"] or "",
    }


if __name__ == "__main__":
    guarded(bench)
