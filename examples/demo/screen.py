"""What is seen while the demo runs: a moving bar on a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Where nobody sees a bar move, a line so often is enough.
LINE_INTERVAL_S = 5.0
ENDED = ("completed", "failed", "cancelled", "waiting_for_human")


class Screen:
    """Use as a context manager: a bar is taken off the screen at the end."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._began_s = time.monotonic()
        self._next_line_s = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Screen:
        if self._terminal:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """One line that stays."""
        line = f"{time.monotonic() - self._began_s:6.1f} s  {message}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def progress(self, total: int, by_status: Mapping[str, int]) -> None:
        """How far the workflows are."""
        ended = sum(by_status.get(status, 0) for status in ENDED)
        counts = describe(by_status)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("workflows", total=total, counts=counts)
            self._bar.update(self._task, completed=ended, counts=counts)
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LINE_INTERVAL_S
            self.say(f"{ended} of {total} workflows have ended: {counts}")


def describe(by_status: Mapping[str, int]) -> str:
    """'12 running, 3 recovering, 40 completed'."""
    shown = [f"{count} {status.replace('_', ' ')}" for status, count in sorted(by_status.items(), reverse=True)]
    return ", ".join(shown) or "none started yet"
