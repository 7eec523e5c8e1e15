"""Creates the tables, and later changes them: numbered steps, forward only, each recorded with its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from schemas.errors import FatalError, RetriableError

from .catalog import TABLES
from .kit import TABLES_VERSION
from .store import CONNECT_TIMEOUT_S, GENERATION

#: One migration at a time, whoever runs it.
_LOCK = 0x6B696E74
#: What a version of the tables changes once its new tables are there.
_CHANGES: dict[int, tuple[str, ...]] = {
    2: ("0002_states.sql", "0002_redactions.sql"),
    3: (
        "0003_interventions.sql",
        "0003_errors.sql",
        "0003_generations.sql",
        "0003_progress.sql",
        "0003_parking.sql",
        "0003_tried.sql",
        "0003_partial.sql",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One migration: `state` is applied or pending."""

    name: str
    checksum: str
    state: str


def _steps() -> list[tuple[str, LiteralString]]:
    found = [("0001_own", _text("projections", "own.sql"))]
    for version in range(1, TABLES_VERSION + 1):
        made = [t for t in TABLES if t.since == version]
        found += [(f"{version:04d}_{t.name}", _text(f"projections.{t.name}", "table.sql")) for t in made]
        found += [(file.removesuffix(".sql"), _text("projections", file)) for file in _CHANGES.get(version, ())]
    return found


def _text(package: str, file: str) -> LiteralString:
    return (files(package) / file).read_text(encoding="utf-8")


def migrate(url: str, *, generation: str = GENERATION, dry_run: bool = False) -> list[Step]:
    """Apply what is pending, in one transaction. FatalError when an applied step was changed afterwards."""
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            done = _migrate(connection, generation)
            if dry_run:
                connection.rollback()
                return [
                    Step(name=s.name, checksum=s.checksum, state=s.state.replace("applied now", "pending"))
                    for s in done
                ]
            return done
    except psycopg.OperationalError as error:
        raise RetriableError(f"Postgres: {error}", hint="kintsugi status") from error


def make(connection: psycopg.Connection[Any], generation: str) -> None:
    """All tables in a schema of their own, within the caller's transaction."""
    with connection.transaction():
        before = connection.execute("SHOW search_path").fetchone()
        _migrate(connection, generation)
        assert before is not None
        connection.execute("SELECT set_config('search_path', %s, true)", before)


def _migrate(connection: psycopg.Connection[Any], generation: str) -> list[Step]:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(generation)))
    connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(generation)))
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, checksum text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied = dict(connection.execute("SELECT name, checksum FROM migrations").fetchall())
    steps = []
    for name, text in _steps():
        checksum = sha256(text.encode()).hexdigest()
        if name in applied:
            if applied[name] != checksum:
                raise FatalError(
                    f"migration {name} was changed after it was applied",
                    hint="add a new step; during development: DROP SCHEMA kintsugi CASCADE, then kintsugi db migrate",
                )
            steps.append(Step(name=name, checksum=checksum, state="applied"))
            continue
        connection.execute(text)
        connection.execute("INSERT INTO migrations (name, checksum) VALUES (%s, %s)", [name, checksum])
        steps.append(Step(name=name, checksum=checksum, state="applied now"))
    return steps
