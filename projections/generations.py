"""Generations: sets of the projected tables, or some of them, beside the live ones, in schemas of their own.

Which there are, how far they are and where they stand is in tables of the live schema, which never move. How one takes
the place of the live tables is in `swapping`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from schemas.errors import FatalError, KintsugiError, RetriableError

from . import migrate
from .catalog import TABLES, chosen
from .kit import Table
from .parking import said, trouble
from .sql import blocks
from .store import CONNECT_TIMEOUT_S, GENERATION

#: One rebuild, promotion or drop at a time in each database.
RUN_LOCK = 0x6B67656E
#: What belongs to a generation and is kept in tables that never move.
_KEPT_BY_NAME = ("positions", "beginnings", "redactions", "ranges", "parts", "parked_workflows", "parked_events")
NAMES = [table.name for table in TABLES]
#: Things told by name that are in the way.
_SHOWN_MAX = 10
#: By kind of what looks at tables: what it is called, how its text is kept, how it goes away.
_LOOKS = {
    "view": ("view", "SELECT pg_get_viewdef('{name}'::regclass);", "DROP {kind} {name};"),
    "function": ("function", "SELECT pg_get_functiondef('{name}'::regprocedure);", "DROP FUNCTION {name};"),
    "key": ("foreign key", "take the foreign key {name} away;"),
}

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
    """One line of the list. `state`: loading, ready, promoted, retired or dropped. `tables`: those it holds;
    None: all."""

    name: str
    number: int
    state: str
    tables: Sequence[str] | None
    tables_version: int
    built_by: str | None
    differing: int | None
    actor: str
    reason: str
    created_at: datetime
    changed_at: datetime

    @property
    def holds(self) -> tuple[Table, ...]:
        """The tables it holds."""
        return chosen(self.tables)

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [table.name for table in self.holds]


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
    except (psycopg.OperationalError, psycopg.InternalError) as error:
        raise trouble(error) from None


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


def missing_grants(connection: Connection, *generations: str) -> list[str]:
    """What a database role lacks to rebuild and promote, and to change these generations, as statements that somebody
    with the right can run."""
    row = connection.execute(QUERIES["rights"]).fetchone()
    assert row is not None
    role, database = (sql.Identifier(name).as_string(connection) for name in row[:2])
    return [
        *([] if row[2] else [f"GRANT CREATE ON DATABASE {database} TO {role}"]),
        *([] if row[3] else [f"GRANT USAGE, CREATE ON SCHEMA {GENERATION} TO {role}"]),
        *_owners_missing(connection, role, [GENERATION, *generations]),
    ]


def _owners_missing(connection: Connection, role: str, schemas: list[str]) -> list[str]:
    """Who moves or drops a table must own it."""
    rows = connection.execute(QUERIES["strange_owners"], {"schemas": schemas}).fetchall()
    return [f"GRANT {sql.Identifier(owner).as_string(connection)} TO {role}" for (owner,) in rows]


def need_rights(connection: Connection, *generations: str) -> None:
    """FatalError, with the missing grants, when the role may not do what a rebuild does."""
    if missing := missing_grants(connection, *generations):
        raise FatalError("the database role lacks rights to rebuild and promote", hint="; ".join(missing))


def need_owner(connection: Connection, name: str) -> None:
    """FatalError, with the missing grants, when the role may not drop a generation, or not say that it is dropped."""
    row = connection.execute(QUERIES["rights"]).fetchone()
    assert row is not None
    role = sql.Identifier(row[0]).as_string(connection)
    if missing := _owners_missing(connection, role, [name, GENERATION]):
        raise FatalError(f"the database role lacks the right to drop {name}", hint="; ".join(missing))


def need_nobody_looking(connection: Connection, tables: Sequence[str] = NAMES) -> None:
    """GenerationError when something of somebody's looks at live tables: it would stay with these when others take
    their place. It says what, and what to do."""
    place = {"tables": list(tables), "all": NAMES}
    rows = connection.execute(QUERIES["looking"], place).fetchall()
    if not rows:
        return
    found = [f"{'materialized ' if stored else ''}{_LOOKS[kind][0]} {name}" for kind, name, stored in rows]
    steps = [
        step.format(name=name, kind="MATERIALIZED VIEW" if stored else "VIEW")
        for kind, name, stored in rows[:_SHOWN_MAX]
        for step in _LOOKS[kind][1:]
    ]
    more = f" and {len(found) - _SHOWN_MAX} more" if len(found) > _SHOWN_MAX else ""
    raise GenerationError(
        f"these would stay with the old tables: {', '.join(found[:_SHOWN_MAX])}{more}",
        hint=f"{' '.join(steps)} Then come back, and make them again afterwards",
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


def altered(connection: Connection, name: str, tables: Sequence[str] = NAMES) -> list[str]:
    """How the columns of the live tables differ from those that the migrations make, of which a generation has fresh
    ones."""
    wanted, have = (
        {
            (table, column): (kind, notnull)
            for table, column, kind, notnull in connection.execute(
                QUERIES["columns"], {"name": schema, "tables": list(tables)}
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


def create(connection: Connection, name: str, wanted: Collection[str] = NAMES) -> None:
    """Make the schema, with the wanted tables as the migrations make them, without indexes and keys."""
    migrate.make(connection, name)
    place = {"name": name, "tables": NAMES}
    for table, key, _ in connection.execute(QUERIES["keys"], place).fetchall():
        drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
        connection.execute(drop.format(sql.Identifier(name, table), sql.Identifier(key)))
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [name]).fetchall()
    for (table,) in tables:
        if table not in wanted:  # what belongs to all generations stays where it is
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name, table)))
    for table, index, key, _ in connection.execute(QUERIES["indexes"], place).fetchall():
        if key is None:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name, index)))
        else:
            drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
            connection.execute(drop.format(sql.Identifier(name, table), sql.Identifier(key)))


def live(found: Sequence[Generation]) -> dict[str, list[str]]:
    """Of each generation the tables that are the live ones now, if any: those that nobody took the place of since."""
    taken: set[str] = set()
    tables: dict[str, list[str]] = {}
    for one in sorted(found, key=lambda g: g.changed_at, reverse=True):
        if one.state == "promoted":
            if own := [name for name in one.names if name not in taken]:
                tables[one.name] = own
            taken.update(one.names)
    return tables


def forget(connection: Connection, name: str) -> None:
    """Drop a generation with all its rows; its line in the list stays."""
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
    for step in _KEPT_BY_NAME:
        connection.execute(QUERIES[f"forget_{step}"], {"name": name})
    connection.execute(QUERIES["state"], {"name": name, "state": "dropped", "differing": None})
