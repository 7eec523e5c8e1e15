"""Generations: sets of the projected tables beside the live one, in schemas of their own.

Which there are, how far they are and where they stand is in tables of the live schema, which never move; a promotion
moves the projected tables alone, old and new, in one transaction. Live writers begin each transaction with a shared
lock (`store.GATE`); who promotes takes it whole, so nobody holds half of a batch meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from schemas.errors import FatalError, KintsugiError, RetriableError
from schemas.topics import EVENTS

from . import migrate
from .catalog import TABLES
from .kit import TABLES_VERSION
from .parking import said
from .sql import blocks
from .store import CONNECT_TIMEOUT_S, GATE, GENERATION

#: One rebuild, promotion or drop at a time in each database.
RUN_LOCK = 0x6B67656E
#: How long a promotion waits for readers of the tables before it lets those behind it pass, and tries again.
SWAP_LOCK_TIMEOUT_MS = 500
#: What belongs to a generation and is kept in tables that never move.
_KEPT_BY_NAME = ("positions", "beginnings", "redactions", "ranges", "parts", "parked_workflows", "parked_events")
NAMES = [table.name for table in TABLES]

QUERIES = blocks("projections", "generations.sql")
Connection = psycopg.Connection[Any]


class GenerationError(KintsugiError):
    """Generations do not stand as the command needs them; nothing was changed."""


class BusyError(GenerationError):
    """Somebody else is at work on generations."""


class SwapTimeoutError(RetriableError):
    """A reader held the tables for longer than a promotion makes others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One line of the list. `state`: loading, ready, promoted, retired or dropped."""

    name: str
    number: int
    state: str
    tables_version: int
    built_by: str | None
    differing: int | None
    actor: str
    reason: str
    created_at: datetime
    changed_at: datetime


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A connection that sees the live schema; database errors become ours, without the rows Postgres quotes."""
    try:
        with psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            options=f"-c search_path={GENERATION}",
            application_name="kintsugi-generations",
            tcp_user_timeout=30_000,
        ) as connection:
            yield connection
    except psycopg.errors.LockNotAvailable:
        raise SwapTimeoutError("a reader holds the tables", hint="try again, or end long transactions") from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise FatalError(f"the database role lacks a right: {said(error)}", hint="kintsugi doctor") from None
    except psycopg.ProgrammingError as error:
        raise FatalError(
            f"the tables are not as they should be: {said(error)}", hint="run: kintsugi db migrate"
        ) from None
    except psycopg.OperationalError as error:
        raise RetriableError(f"Postgres: {said(error)}", hint="kintsugi status") from None


@contextmanager
def sole(connection: Connection) -> Iterator[None]:
    """Be the one at work on generations. GenerationError when somebody else is, which says who."""
    found = connection.execute("SELECT pg_try_advisory_lock(%s)", [RUN_LOCK]).fetchone()
    if found is None or not found[0]:
        row = worker(connection)
        who = (
            "" if row is None else f": backend {row[0]} from {row[2] or 'this host'}, since {row[3]:%Y-%m-%d %H:%M:%S}"
        )
        raise BusyError(f"another rebuild or promotion is at work{who}", hint="kintsugi projections list")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", [RUN_LOCK])


def worker(connection: Connection) -> tuple[int, str, str | None, datetime] | None:
    """Who is at work on generations: backend, its name, from where, since when."""
    return connection.execute(QUERIES["worker"], {"lock": RUN_LOCK}).fetchone()


def missing_grants(connection: Connection) -> list[str]:
    """What a database role lacks to rebuild and promote, as statements that somebody with the right can run."""
    row = connection.execute(QUERIES["rights"]).fetchone()
    assert row is not None
    role, database = (sql.Identifier(name).as_string(connection) for name in row[:2])
    owners = [sql.Identifier(owner).as_string(connection) for (owner,) in connection.execute(QUERIES["strange_owners"])]
    return [
        *([] if row[2] else [f"GRANT CREATE ON DATABASE {database} TO {role}"]),
        *([] if row[3] else [f"GRANT USAGE, CREATE ON SCHEMA {GENERATION} TO {role}"]),
        *(f"GRANT {owner} TO {role}" for owner in owners),  # who moves a table must own it
    ]


def need_rights(connection: Connection) -> None:
    """FatalError, with the missing grants, when the role may not do what a rebuild does."""
    if missing := missing_grants(connection):
        raise FatalError("the database role lacks rights to rebuild and promote", hint="; ".join(missing))


def need_no_views(connection: Connection) -> None:
    """GenerationError when views look at the live tables: they would stay with these when tables change places."""
    views = [view for (view,) in connection.execute(QUERIES["looking"], {"tables": NAMES}).fetchall()]
    if views:
        raise GenerationError(
            f"views would go on showing the old tables: {', '.join(sorted(views)[:10])}",
            hint="drop them, and create them again afterwards",
        )


def listed(connection: Connection) -> list[Generation]:
    """All there were, oldest first."""
    with connection.cursor(row_factory=psycopg.rows.class_row(Generation)) as cursor:
        return cursor.execute(QUERIES["all"]).fetchall()


def found(connection: Connection, name: str, *states: str) -> Generation:
    """One in one of these states; GenerationError otherwise."""
    one = next((g for g in listed(connection) if g.name == name), None)
    if one is None:
        raise GenerationError(f"there is no generation {name!r:.80}", hint="kintsugi projections list")
    if one.state not in states:
        raise GenerationError(f"{name} is {one.state}, not {' or '.join(states)}", hint="kintsugi projections list")
    return one


def altered(connection: Connection, name: str) -> list[str]:
    """How the columns of the live tables differ from those that the migrations make, of which a generation has fresh
    ones."""
    wanted, have = (
        {
            (table, column): (kind, notnull)
            for table, column, kind, notnull in connection.execute(
                QUERIES["columns"], {"name": schema, "tables": NAMES}
            ).fetchall()
        }
        for schema in (name, GENERATION)
    )
    return [
        f"{table}.{column}: {_shape(have.get((table, column)))}, not {_shape(wanted.get((table, column)))}"
        for table, column in sorted(wanted.keys() | have.keys())
        if wanted.get((table, column)) != have.get((table, column))
    ]


def _shape(column: tuple[str, bool] | None) -> str:
    return "no such column" if column is None else f"{column[0]}{' not null' if column[1] else ''}"


def create(connection: Connection, name: str) -> None:
    """Make the schema, with the projected tables as the migrations make them, without indexes and keys."""
    migrate.make(connection, name)
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [name]).fetchall()
    for (table,) in tables:
        if table not in NAMES:  # what belongs to all generations stays where it is
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name, table)))
    for table, key, _ in connection.execute(QUERIES["keys"], {"name": name, "tables": NAMES}).fetchall():
        drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
        connection.execute(drop.format(sql.Identifier(name, table), sql.Identifier(key)))
    for table, index, key, _ in connection.execute(QUERIES["indexes"], {"name": name, "tables": NAMES}).fetchall():
        if key is None:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name, index)))
        else:
            drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
            connection.execute(drop.format(sql.Identifier(name, table), sql.Identifier(key)))


def swap(connection: Connection, name: str, *, state: str, actor: str, reason: str) -> str:
    """Within a transaction that holds the gate: the generation becomes the live tables, these become a retired one,
    whose name is returned. SwapTimeoutError, by the connection, when a reader holds them."""
    connection.execute(f"SET LOCAL lock_timeout = {SWAP_LOCK_TIMEOUT_MS}".encode())
    new = {"state": "retired", "version": TABLES_VERSION, "built_by": None, "actor": actor, "reason": reason}
    row = connection.execute(QUERIES["new"], new).fetchone()
    assert row is not None
    retired = str(row[0])
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(retired)))
    grants = connection.execute(QUERIES["grants"], {"tables": NAMES}).fetchall()
    owners = connection.execute(QUERIES["owners"], {"tables": NAMES}).fetchall()
    both = [sql.Identifier(schema, table) for schema in (GENERATION, name) for table in NAMES]
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(both)))
    move = sql.SQL("ALTER TABLE {} SET SCHEMA {}")
    for source, target in ((GENERATION, retired), (name, GENERATION)):
        for table in NAMES:
            connection.execute(move.format(sql.Identifier(source, table), sql.Identifier(target)))
    for table, right, role in grants:
        grantee = sql.SQL("PUBLIC") if role is None else sql.Identifier(role)
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(right), sql.Identifier(GENERATION, table), grantee)
        )
    for table, owner in owners:  # who writes the live tables goes on, whoever rebuilt them
        connection.execute(
            sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(GENERATION, table), sql.Identifier(owner))
        )
    connection.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(name)))
    place = {"name": name, "retired": retired, "topic": EVENTS}
    if connection.execute(QUERIES["parked_differently"], place).fetchone() is not None:
        raise GenerationError(f"other events wait in {name} than in the live tables", hint=f"drop {name}, and rebuild")
    for step in ("positions", "beginnings", "redactions"):
        connection.execute(QUERIES[f"kept_{step}"], place)
        connection.execute(QUERIES[f"live_{step}"], place)
    for step in ("parked_workflows", "parked_events"):
        connection.execute(QUERIES[f"kept_{step}"], place)
    connection.execute(QUERIES["forget_positions"], place)
    connection.execute(QUERIES["state"], {"name": name, "state": state, "differing": None})
    return retired


def close_gate(connection: Connection) -> None:
    """Wait for live batches at work, and hold those to come, until the transaction ends."""
    connection.execute("SET LOCAL lock_timeout = 5000")
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [GATE])


def forget(connection: Connection, name: str) -> None:
    """Drop a generation with all its rows; its line in the list stays."""
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
    for step in _KEPT_BY_NAME:
        connection.execute(QUERIES[f"forget_{step}"], {"name": name})
    connection.execute(QUERIES["state"], {"name": name, "state": "dropped", "differing": None})
