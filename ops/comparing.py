"""A generation held against the live tables: its columns, and its rows."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from consumers.log_reader import LogReader
from projections import digest
from projections import generations as g
from projections.store import GENERATION
from schemas.ids import is_uuid
from schemas.topics import EVENTS

from .archive import history_of
from .catching_up import positions
from .stack import Addresses


class DiffersError(g.GenerationError):
    """Rows of a generation differ from the live ones; the first of them are in `shown`."""

    def __init__(self, message: str, shown: Sequence[digest.Drift], *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.shown = shown


def need_same_columns(connection: g.Connection, one: g.Generation) -> None:
    """GenerationError, column by column, when live tables were altered by hand, or by another release."""
    altered = g.altered(connection, one.name, one.names)
    if altered:
        raise g.GenerationError(
            f"live tables and those of {one.name} have other columns: {'; '.join(altered[:10])}",
            hint="undo what was altered by hand, or run kintsugi db migrate, and rebuild",
        )


def compare(at: Addresses, one: g.Generation) -> digest.Differences:
    """Hold a generation against the live tables, at one moment, without the workflows of records between the two, and
    those parked in one of them."""
    with LogReader(at.kafka) as log, psycopg.connect(at.postgres, options=f"-c search_path={GENERATION}") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        live, own = positions(connection, GENERATION), positions(connection, one.name)
        if not live:
            return digest.Differences()  # nothing was ever applied to the live tables: there is nothing to lose
        between = {p: (own.get(p, 0), end) for p, end in live.items() if own.get(p, 0) < end}
        keys = {r.key for r in history_of(at, log).read(between) if r.key is not None} if between else set()
        place = {"name": one.name, "topic": EVENTS}
        parked = {found for (found,) in connection.execute(g.QUERIES["parked_differently"], place).fetchall()}
        texts = (key.decode("utf-8", "replace").lower() for key in keys)
        without = sorted(parked | {text for text in texts if is_uuid(text)})
        return digest.differences(connection, GENERATION, one.name, one.holds, leaving_out=without)
