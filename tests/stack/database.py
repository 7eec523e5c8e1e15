"""A database of a test's own on the stack's Postgres, with the tables in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from ops.stack import Addresses
from projections.migrate import migrate
from projections.store import GENERATION
from schemas.topics import EVENTS

from .kit import ends_of


@contextmanager
def own_database(url: str) -> Iterator[str]:
    """URL of a new, migrated database; dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    own = url.rsplit("/", 1)[0] + "/" + name
    try:
        migrate(own)
        yield own
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def stand_at_the_logs_end(own: Addresses) -> None:
    """Let the tables begin where the log ends, so that a test meets only its own workflows."""
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        for place in ends_of(own.kafka):
            connection.execute(
                "INSERT INTO positions VALUES (%s, %s, %s, %s, 0, now())",
                (GENERATION, EVENTS, place.partition, place.offset),
            )
