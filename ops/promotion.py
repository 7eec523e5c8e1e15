"""`kintsugi projections promote | rollback | drop`: a generation takes the place of the live tables, or goes.

While a server is away each of them waits, and says so. A promotion whose answer was lost is found again by what it did.
"""

from __future__ import annotations

import time

import psycopg

from consumers.crash import crash_point
from projections import generations as g
from projections.references import validate
from projections.swapping import close_gate, outcome, swap

from .catching_up import LAG_RECORDS_MAX, Progress, catch_up, catch_up_whole, lag_of
from .comparing import DiffersError, compare, need_same_columns
from .patience import Tell, patiently, silent
from .stack import Addresses

#: Tries to get past readers when the tables change places.
SWAP_TRIES_MAX = 60
_SWAP_PAUSE_S = 0.5


def promote(
    at: Addresses, name: str, progress: Progress, *, actor: str, reason: str, accept: bool, tell: Tell = silent
) -> str:
    """Make a generation that is ready the live tables; the name under which the old ones stay. `accept`: although rows
    differ."""
    return _changed(at, name, "ready", progress, actor=actor, reason=reason, accept=accept, tell=tell)


def rollback(at: Addresses, name: str, progress: Progress, *, actor: str, reason: str, tell: Tell = silent) -> str:
    """Make retired tables live again, up to date; the name under which those before stay."""
    return _changed(at, name, "retired", progress, actor=actor, reason=reason, accept=None, tell=tell)


def drop(at: Addresses, name: str, *, tell: Tell = silent) -> None:
    """Delete a generation that is not live."""
    begun = False

    def work() -> None:
        nonlocal begun
        with g.connected(at.postgres) as connection, g.sole(connection):
            # Dropped: by us, when the answer was lost.
            one = g.found(connection, name, "loading", "ready", "retired", *(["dropped"] if begun else []))
            g.need_owner(connection, name)
            begun = True
            if one.state != "dropped":
                _forget(connection, name)

    patiently(work, tell)


def _forget(connection: g.Connection, name: str) -> None:
    with connection.transaction():
        g.forget(connection, name)


def _changed(
    at: Addresses,
    name: str,
    state: str,
    progress: Progress,
    *,
    actor: str,
    reason: str,
    accept: bool | None,
    tell: Tell,
) -> str:
    """Catch up, compare (`accept` None: not), change places."""
    begun = False

    def work() -> str:
        nonlocal begun
        with g.connected(at.postgres) as connection, g.sole(connection):
            if begun and (retired := outcome(connection, name)) is not None:
                validate(connection, g.NAMES)
                return retired
            one = g.found(connection, name, state)
            g.need_rights(connection, name)
            g.need_nobody_looking(connection, one.names)
            need_same_columns(connection, one)
            if accept is not None:
                _need_equal(at, connection, one, progress, accept=accept)
            begun = True
            return _swap(at, connection, one, actor=actor, reason=reason, progress=progress)

    return patiently(work, tell)


def _need_equal(
    at: Addresses, connection: g.Connection, one: g.Generation, progress: Progress, *, accept: bool
) -> None:
    lag = lag_of(connection, one.name)
    if lag > LAG_RECORDS_MAX:
        raise g.GenerationError(
            f"{one.name} is {lag} records behind the live tables, {LAG_RECORDS_MAX} allowed",
            hint="kintsugi projections rebuild --reason ... goes on with it until it has caught up",
        )
    catch_up(at, connection, one, progress)
    found = compare(at, one)
    differing = sum(found.rows.values())
    if differing and not accept:
        raise DiffersError(
            f"{differing} rows of {one.name} differ from the live tables: {found.rows}",
            found.shown,
            hint="look at them; --accept-differences if they are what the rebuild was for",
        )


def _swap(
    at: Addresses, connection: g.Connection, one: g.Generation, *, actor: str, reason: str, progress: Progress
) -> str:
    """Hold live writers, apply the last records, change places. Tried again while readers are in the way."""
    for number in range(SWAP_TRIES_MAX):
        catch_up(at, connection, one, progress)
        try:
            with connection.transaction():
                close_gate(connection)
                catch_up_whole(at, one)
                retired = swap(connection, one, actor=actor, reason=reason)
                crash_point("rebuild_swapped")
        except psycopg.errors.LockNotAvailable:
            progress("waits for readers", number, SWAP_TRIES_MAX)
            time.sleep(_SWAP_PAUSE_S)
            continue
        validate(connection, g.NAMES)
        return retired
    raise g.SwapTimeoutError("readers held the tables all the time", hint="end long transactions, then try again")
