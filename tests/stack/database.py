"""A database of a test's own on the stack's Postgres, with the tables in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql

from ops.stack import Addresses
from projections.migrate import migrate
from projections.store import GENERATION
from schemas.topics import EVENTS


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
    reader = Consumer({"bootstrap.servers": own.kafka, "group.id": "reader", "log_level": 0})
    try:
        partitions = sorted(reader.list_topics(EVENTS, 10).topics[EVENTS].partitions)
        ends = {p: reader.get_watermark_offsets(TopicPartition(EVENTS, p), 10)[1] for p in partitions}
    finally:
        reader.close()
    with psycopg.connect(own.postgres, options="-c search_path=kintsugi") as connection:
        for partition, end in ends.items():
            connection.execute(
                "INSERT INTO positions VALUES (%s, %s, %s, %s, 0, now())", (GENERATION, EVENTS, partition, end)
            )
