"""The process that replays: `python -m ops.replaying`, started by `kintsugi replay` with a plan, and by nobody else.

It writes a document to stdout or a new file. Nothing here can append to a topic or write to the tables: the import
contract "a replay can produce nothing" holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import orjson

from engine.policy import Policy, default_policy, load_policy
from projections.reader import snapshot
from schemas.archive_format import Gap

from .hidden import Hidden
from .output import guarded, progress_bar
from .replay import Plan, replay
from .replay_commands import Window
from .replay_export import written
from .replay_inject import parse_all
from .replay_range import Range
from .replay_shown import Shown
from .stack import addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A plan, and how its outcome is given. `step`: event by event. `interactive`: a person is asked to go on.
    `commands`: where those that were sent are; a later look finds more, so they are no part of the plan."""

    plan: Plan
    commands: Window | None = None
    form: str
    step: bool
    interactive: bool

    def dumped(self) -> str:
        """As one argument."""
        return orjson.dumps(self).decode()

    @classmethod
    def loaded(cls, text: str) -> Request:
        """Inverse of `dumped`."""
        value = orjson.loads(text)
        plan = value.pop("plan")
        plan["ranges"] = tuple(Range(**found) for found in plan["ranges"])
        plan["missing"] = tuple(Gap(**found) for found in plan["missing"])
        for name in ("injections", "redact"):
            plan[name] = tuple(plan[name])
        commands = value.pop("commands")
        if commands is not None:
            commands["ranges"] = tuple(tuple(found) for found in commands["ranges"])
            value["commands"] = Window(**commands)
        return cls(plan=Plan(**plan), **value)


def policy_from(path: str | None) -> Policy | None:
    """A policy file's policy."""
    return None if path is None else load_policy(Path(path).read_text(encoding="utf-8"), path)


def run(request: Request) -> None:
    """Replay, and write what came of it to stdout."""
    plan, at = request.plan, addresses()
    policy, ran_with = policy_from(plan.policy), policy_from(plan.ran_with) or default_policy()
    with snapshot(at.postgres) as tables:
        hidden = Hidden(tables.redactions())
    paths = tuple(dict.fromkeys((*plan.redact, *ran_with.redact, *(policy.redact if policy else ()))))
    shown = Shown(hidden, paths, plan.state_size_bytes_max, states=plan.states)
    steps: list[dict[str, Any]] = []
    look: Callable[[dict[str, Any]], None] | None = None
    if request.step and request.interactive:
        look = Stepper().look
    elif request.step and request.form == "jsonl":
        look = _line
    elif request.step:
        look = steps.append
    with progress_bar() as progress:
        document = replay(
            at,
            plan,
            parse_all(plan.injections),
            ran_with=ran_with,
            policy=policy,
            shown=shown,
            progress=(lambda *_: None) if request.interactive else progress,
            look=look,
            commands=request.commands,
        )
    if request.form == "jsonl":
        _line({"summary": document})
    else:
        sys.stdout.buffer.write(written({**document, **({"steps": steps} if request.step else {})}, request.form))
    sys.stdout.flush()


def _line(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))


class Stepper:
    """Shows one event at a time on the terminal."""

    def __init__(self) -> None:
        self._left = 0

    def look(self, step: dict[str, Any]) -> None:
        """Show a step; ask how to go on unless several were asked for."""
        from .replay_export import step_lines

        for line in step_lines(step):
            click.echo(line, err=True)
        if self._left:
            self._left -= 1
            return
        answer = click.prompt(
            "enter: next, NUMBER: so many, q: no more stops", default="", show_default=False, err=True
        )
        if answer.strip() == "q":
            self._left = sys.maxsize
        elif answer.strip().isdecimal():
            self._left = max(0, int(answer) - 1)


@click.command()
@click.argument("request_text")
def main(request_text: str) -> None:
    """Carry out one request."""
    run(Request.loaded(request_text))


if __name__ == "__main__":
    guarded(main)
