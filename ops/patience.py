"""Work that waits for a server that is away, and begins again where it was when the server is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from projections.generations import BusyError, SwapTimeoutError
from schemas.errors import RetriableError

#: How long in all a server may be away before who waits for it ends, to be begun again: longer than a restart with
#: recovery takes, and than the ten minutes in which somebody who is called puts it right.
WAIT_S_MAX = 900.0
_PAUSE_S_MIN, _PAUSE_S_MAX = 1.0, 15.0
#: Who worked for so long since the last wait was not in vain: the next wait begins anew.
_WORKED_S = 60.0

Tell = Callable[[str], None]
Done = TypeVar("Done")


def silent(message: str) -> None:
    """Tells nobody."""


def patiently(
    work: Callable[[], Done],
    tell: Tell,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Done:
    """What `work` comes to, which is done again while a server is away; `tell` is told of each wait.

    The work must go on where it was, or begin again. RetriableError when the server is away for too long.
    """
    waited_s, pause_s = 0.0, _PAUSE_S_MIN
    while True:
        began_s = clock()
        try:
            return work()
        except SwapTimeoutError:
            raise  # a reader is no server that is away
        except (RetriableError, BusyError) as error:
            if clock() - began_s > _WORKED_S:
                waited_s, pause_s = 0.0, _PAUSE_S_MIN
            # Busy is also who waited: the server may not have noticed yet that its connection is gone.
            if waited_s >= WAIT_S_MAX or (not waited_s and isinstance(error, BusyError)):
                raise
            why = str(error).partition("\n")[0]  # libpq goes on to ask whether the server runs
            tell(f"waits {pause_s:.0f} s, {WAIT_S_MAX - waited_s:.0f} s at most in all: {why}")
            sleep(pause_s)
            waited_s, pause_s = waited_s + clock() - began_s, min(2 * pause_s, _PAUSE_S_MAX)
