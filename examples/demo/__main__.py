"""`python -m examples.demo`, which `make demo` runs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from ops.output import FAILED, guarded, say, show_json

#: The main job's size.
WORKFLOWS = 240


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workflows", type=click.IntRange(1, 5_000), default=WORKFLOWS, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the fault plan.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--keep-scratch", is_flag=True, help="Keep the folder with sources, artefacts, ledger and logs.")
def demo(workflows: int, seed: int, as_json: bool, keep_scratch: bool) -> None:
    """Run workflows with planned faults on the real stack, kill processes, and show that everything is repaired.

    Exit codes: 0 all as it must be, 1 something is not, 75 a dependency is down, 130 interrupted.
    """
    from .conduct import conduct
    from .plan import Settings
    from .screen import Screen

    signal.signal(signal.SIGTERM, _interrupt)
    scratch = Path(tempfile.mkdtemp(prefix="kintsugi-demo-"))
    sound = False
    try:
        with Screen() as screen:
            report = conduct(Settings(workflows=workflows, seed=seed, scratch=scratch), screen)
        sound = report.ok
        if as_json:
            show_json(report.document())
        else:
            from .render import render

            render(report)
        _say_what_next(report.waiting[0]["workflow_id"] if report.waiting else None)
    finally:
        _leave(scratch, keep=keep_scratch or not sound)
    if not sound:
        raise click.exceptions.Exit(FAILED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_what_next(waiting: str | None) -> None:
    command = "kintsugi" if shutil.which("kintsugi") else os.path.relpath(Path(sys.executable).parent / "kintsugi")
    say("The stack is still up, with these tables. Try:")
    for arguments, what in (
        ("workflows list", "where each workflow stands"),
        ("errors list", "what broke, and what was tried"),
        ("incidents list", "what fails together, each told once"),
        ("interventions list", "what waits for a human, and what can be answered"),
        (f"workflows timeline {waiting or 'ID'}", "everything that happened to one workflow"),
        ("down", "stop the stack; its data is kept"),
    ):
        say(f"  {command} {arguments:57} {what}")


def _leave(scratch: Path, *, keep: bool) -> None:
    if keep:
        say(f"sources, artefacts, ledger and logs: {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    guarded(demo)
