"""A connection to Postgres that does not wait for ever.

A server that is frozen, or cut off behind something that goes on acknowledging, ends no connection, and its
`statement_timeout` is its own: nothing but our own clock notices.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout

#: For one answer. Longer than a statement may take, and shorter than a batch may.
ANSWER_TIMEOUT_S = 65.0
#: How often a wait looks up, so that Ctrl-C is noticed: psycopg's own default.
_INTERVAL_S = 0.1

T = TypeVar("T")


class PatientConnection(psycopg.Connection[Any]):
    """Waits ANSWER_TIMEOUT_S at most; then it is closed, and OperationalError raised."""

    def wait(self, gen: PQGen[T], interval: float = _INTERVAL_S, timeout: float | None = None) -> T:
        """As psycopg's, within the bound."""
        try:
            return super().wait(gen, interval, ANSWER_TIMEOUT_S if timeout is None else timeout)
        except _WaitTimeout:
            self.pgconn.finish()  # an answer that came late would be taken for that of the next question
            raise psycopg.OperationalError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
