"""The tables for the keeper (`consumers.keeper.tables.Tables`), in Postgres.

The lock is held by a session of its own, so that it lasts exactly as long as that is there. Long answers are read
through cursors that outlive their transaction: Postgres keeps the rows aside, no old row version is held back by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import groupby
from typing import Any, ParamSpec, TypeVar

import psycopg

from consumers.keeper.places import Place
from consumers.keeper.tables import History, Kept, Target
from projections.sql import blocks
from projections.store import CONNECT_TIMEOUT_S, GENERATION
from schemas.dead_letters import STAGE_APPLY
from schemas.errors import FatalError, RetriableError
from schemas.topics import EVENTS

_SQL = blocks("ops", "keeper.sql")
#: One keeper at work in each database.
_LOCK = 0x6B656570
#: Rows in memory at once of an answer that may have millions.
_FETCH_ROWS = 2_000
#: A statement that takes longer is ended by Postgres, and the job begins again.
_STATEMENT_TIMEOUT_MS = 120_000
#: Records that the tables did not take, all of which a collection looks at.
REFUSED_MAX = 10_000
#: A peer that is gone is noticed after about 15 s.
_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}

P = ParamSpec("P")
R = TypeVar("R")


def _told(call: Callable[P, R]) -> Callable[P, R]:
    """RetriableError when Postgres is away, FatalError when the tables are not there."""

    @wraps(call)
    def told(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return call(*arguments, **named)
        except psycopg.Error as error:
            raise _error(error) from error

    return told


def _error(error: psycopg.Error) -> Exception:
    # Not the details and the context, in which Postgres quotes rows.
    text = error.diag.message_primary or str(error)
    if isinstance(error, psycopg.ProgrammingError):
        return FatalError(f"the tables are not as they should be: {text}", hint="run: kintsugi db migrate")
    return RetriableError(f"Postgres: {text}", hint="kintsugi status")


class KeeperTables:
    """Two sessions, made when they are needed. One thread."""

    def __init__(self, url: str, *, generation: str = GENERATION) -> None:
        self._url = url
        self._generation = generation
        self._connection: psycopg.Connection[Any] | None = None
        self._session: psycopg.Connection[Any] | None = None
        self._cursors = 0

    def close(self) -> None:
        """Let go of both sessions."""
        self.unlock()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @_told
    def try_lock(self) -> bool:
        """Become the one keeper at work."""
        if self._session is None or self._session.closed:
            self._session = self._connect("kintsugi keeper lock")
        return bool(self._one(self._session, "lock", lock=_LOCK))

    @_told
    def holds_lock(self) -> bool:
        """Whether the session that holds the lock is still there."""
        if self._session is None or self._session.closed:
            return False
        return bool(self._one(self._session, "alive"))

    def unlock(self) -> None:
        """End the session that holds the lock, and the lock with it."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @_told
    def live_count(self) -> int:
        """Number of workflows that have not ended."""
        return int(self._one(self._at(), "live_count"))

    def targets(self, *, per_workflow: int, after: Place) -> Iterator[Target]:
        """The newest sound checkpoints of every live workflow, in the order of the log, from behind `after` around."""
        for row in self._rows("targets", per_workflow=per_workflow, partition=after[0], offset=after[1]):
            yield Target(
                checkpoint_id=row[0],
                workflow_id=row[1],
                workflow_type=row[2],
                external_id=row[3],
                step_id=row[4],
                partition=row[5],
                offset=row[6],
                checksum=row[7],
                size_bytes=row[8],
                plain=row[9],
            )

    @_told
    def states(self, checkpoint_ids: Sequence[str]) -> dict[str, str]:
        """The states in the rows of checkpoints, as JSON text."""
        found = self._at().execute(_SQL["states"], {"ids": list(checkpoint_ids)}).fetchall()
        return dict(found)

    @_told
    def histories(self, *, after: str, workflows: int, checkpoints_max: int) -> Sequence[History]:
        """The next workflows in the order of their ids."""
        rows = self._at().execute(
            _SQL["histories"], {"after": after, "workflows": workflows, "checkpoints_max": checkpoints_max}
        )
        return [_history(list(group)) for _, group in groupby(rows.fetchall(), key=lambda row: row[0])]

    def claims(self) -> Iterator[str]:
        """Every claim_uri that a row names, ascending."""
        for row in self._rows("claims"):
            yield row[0]

    @_told
    def has_checkpoints(self) -> bool:
        """Whether there is any checkpoint at all."""
        return bool(self._one(self._at(), "has_checkpoints"))

    @_told
    def positions(self) -> dict[int, int]:
        """Next offset to apply, by partition."""
        place = {"generation": self._generation, "topic": EVENTS}
        return dict(self._at().execute(_SQL["positions"], place).fetchall())

    @_told
    def refused(self) -> Sequence[Place]:
        """Places of records that the tables did not take."""
        wanted = {"topic": EVENTS, "stage": STAGE_APPLY, "limit": REFUSED_MAX + 1}
        found = self._at().execute(_SQL["refused"], wanted).fetchall()
        if len(found) > REFUSED_MAX:
            raise RetriableError(
                f"more than {REFUSED_MAX} records that the tables did not take", hint="see dead letters in the handbook"
            )
        return [(partition, offset) for partition, offset in found]

    def _rows(self, query: str, **values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of an answer as of one moment, a few in memory at once."""
        self._cursors += 1
        try:
            with self._at().cursor(name=f"keeper_{self._cursors}", withhold=True) as cursor:
                cursor.itersize = _FETCH_ROWS
                yield from cursor.execute(_SQL[query], values)
        except psycopg.Error as error:
            raise _error(error) from error

    def _one(self, connection: psycopg.Connection[Any], query: str, **values: Any) -> Any:
        row = connection.execute(_SQL[query], values).fetchone()
        assert row is not None
        return row[0]

    def _at(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect("kintsugi keeper")
        return self._connection

    def _connect(self, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=name,
            options=f"-c search_path={self._generation} -c statement_timeout={_STATEMENT_TIMEOUT_MS}",
            **_KEEPALIVE,
        )


def _history(rows: list[tuple[Any, ...]]) -> History:
    return History(
        workflow_id=rows[0][0],
        live=rows[0][1],
        checkpoints=tuple(
            Kept(
                checkpoint_id=row[2], partition=row[3], offset=row[4], created_us=row[5], sound=row[6], evidence=row[7]
            )
            for row in rows
        ),
    )
