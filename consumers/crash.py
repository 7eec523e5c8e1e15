"""Named points where a process can be told to die, for tests of what a crash leaves behind.

`KINTSUGI_CRASH_AT=name` or `name:n` ends the process with SIGKILL when the point is reached the first or n-th time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from schemas.errors import ConfigError

#: Between reading a batch, folding it, handing its effects to the producer, their acknowledgement, and the commit.
ROLE_POINTS = ("after_poll", "after_fold", "after_append", "after_flush", "after_write", "after_commit")
#: Steps of a rebuild and of a promotion; `rebuild_swapped` lies before the commit.
REBUILD_POINTS = (
    "rebuild_begun",
    "rebuild_part",
    "rebuild_filled",
    "rebuild_indexed",
    "rebuild_applied",
    "rebuild_caught_up",
    "rebuild_swapped",
)
POINTS = (*ROLE_POINTS, *REBUILD_POINTS)


def _nothing(name: str) -> None:
    """No crash is asked for."""


def armed(setting: str) -> Callable[[str], None]:
    wanted, _, count = setting.partition(":")
    if wanted not in POINTS or not (count or "1").isdigit():
        raise ConfigError(f"KINTSUGI_CRASH_AT: {setting!r}: a name and perhaps :n, one of {', '.join(POINTS)}")
    left = int(count or 1)

    def reached(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return reached


#: Call with one of POINTS.
crash_point: Callable[[str], None] = (
    armed(os.environ["KINTSUGI_CRASH_AT"]) if "KINTSUGI_CRASH_AT" in os.environ else _nothing
)
