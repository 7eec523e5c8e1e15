"""What all commands share: tables or JSON on stdout, talk on stderr, errors with a hint, exit codes with names."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from schemas.ids import uuid_bytes

OK, FAILED, USAGE, NOT_FOUND, CONFLICT, PARTIAL, MISMATCH, DENIED, TIMED_OUT = range(9)
TEMPORARY = 75
INTERRUPTED = 130

_ID_LENGTH = 36
#: Columns for a reader that is no terminal: a line of a table is one line of text.
_WIDE = 1000
#: All but tab and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

F = TypeVar("F", bound=Callable[..., Any])


def output_option(command: F) -> F:
    """`--output table|json`; the function gets `output`."""
    return click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)(command)


def say(message: str) -> None:
    """Talk to the person: stderr."""
    click.echo(message, err=True)


def show(rows: Sequence[dict[str, Any]], output: str, *, columns: Sequence[str] | None = None, empty: str = "") -> None:
    """Print rows on stdout, as a table or as JSON."""
    if output == "json":
        show_json(list(rows))
        return
    if not rows:
        say(empty or "nothing to show")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = list(columns or rows[0])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    for name, values in zip(names, zip(*cells, strict=True), strict=True):
        # An id, which people copy, stays in one piece; the others share what room is left.
        width = _ID_LENGTH if all(len(v) == _ID_LENGTH for v in values) else None
        table.add_column(name.replace("_", " "), overflow="fold", min_width=width)
    for row_cells in cells:
        table.add_row(*map(Text, row_cells))
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", _WIDE))
    Console(width=width, no_color=True if os.environ.get("NO_COLOR") else None, highlight=False).print(table)


def show_record(record: dict[str, Any]) -> None:
    """Print one thing on stdout, a line for each of its fields that has a value."""
    width = max(len(name) for name in record)
    for name, value in record.items():
        if value is not None:
            click.echo(f"{name.replace('_', ' '):{width}}  {_text(value)}")


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, moved by calls with (what, done, total). Silent when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield move


def show_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    import orjson

    option = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
    click.echo(orjson.dumps(value, default=str, option=option).decode())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    if hasattr(value, "isoformat"):
        return str(value.isoformat(sep=" ", timespec="milliseconds")).replace("+00:00", "Z")
    return printable(str(value))


def printable(text: str) -> str:
    """Text of a service's making without control characters, which could rewrite what the terminal shows."""
    return _CONTROL.sub("\ufffd", text)


def utc(text: str) -> datetime:
    """A time as people give it: without a zone it is UTC, as everything that is printed. ValueError when it is none."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class _Id(click.ParamType[str]):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).lower()
        try:
            uuid_bytes(text)
        except ValueError:
            self.fail(f"{value!r} is no id; one looks like 6b696e74-7375-4769-8000-676f6c646a6f", param, ctx)
        return text


#: The id of a workflow, an error, a checkpoint.
ID = _Id()


class NotFoundError(click.ClickException):
    """Nothing with that id."""

    exit_code = NOT_FOUND


def guarded(command: click.Command) -> None:
    """Run the command line. Our own errors become one message, a hint and an exit code; others keep their trace."""
    from schemas.errors import KintsugiError

    try:
        code = command.main(standalone_mode=False)
        if isinstance(code, int):  # what a command's Exit carried
            sys.exit(code)
    except click.exceptions.Abort:
        say("interrupted")
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KintsugiError as error:
        say(f"error: {error}")
        if error.hint:
            say(f"  try: {error.hint}")
        sys.exit(TEMPORARY if error.retriable else FAILED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(FAILED)
