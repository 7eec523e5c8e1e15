"""Rebuilds and promotions in processes of their own, which may die by `kill -9` at a named point.

One process has everything imported and is forked for each: that spares each of them a start.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import signal
from multiprocessing.context import ForkServerProcess

from consumers import crash
from ops import catching_up, promotion, rebuild
from ops.stack import Addresses

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def prepare() -> None:
    """Let the process that is forked be there when it is needed."""
    multiprocessing.forkserver.ensure_running()


def running_rebuild(at: Addresses, processes: int) -> ForkServerProcess:
    """A rebuild of all tables that nobody kills."""
    process = _context.Process(target=_rebuild, args=(at, None, processes))
    process.start()
    return process


def killed_rebuild(point: str, at: Addresses, tables: tuple[str, ...] | None = None) -> None:
    """A rebuild that dies at a point."""
    _killed(point, "rebuild", at, tables)


def killed_promotion(point: str, at: Addresses, name: str) -> None:
    """A promotion that dies at a point."""
    _killed(point, "promote", at, name)


def _killed(point: str, what: str, at: Addresses, which: object) -> None:
    process = _context.Process(target=_work, args=(point, what, at, which))
    process.start()
    process.join(300)
    try:
        assert process.exitcode == -signal.SIGKILL, (point, process.exitcode)
    finally:
        process.kill()
        process.join()


def _work(point: str, what: str, at: Addresses, which: object) -> None:
    for module in (rebuild, promotion, catching_up):
        module.crash_point = crash.armed(point)  # type: ignore[attr-defined]
    if what == "rebuild":
        assert which is None or isinstance(which, tuple)
        _rebuild(at, which, 1)
    else:
        promotion.promote(at, str(which), _nobody, actor="a test", reason="a test", accept=True)


def _rebuild(at: Addresses, tables: tuple[str, ...] | None, processes: int) -> None:
    rebuild.rebuild(at, _nobody, processes=processes, actor="a test", reason="a test", tables=tables)


def _nobody(what: str, done: int, total: int) -> None:
    """Nobody looks at the progress."""
