"""Quix Streams' Postgres sink on the bench's topic. Runs in an environment of its own: quix.lock."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from quixstreams import Application, message_context  # type: ignore[import-not-found]
from quixstreams.sinks.community.postgresql import PostgreSQLSink  # type: ignore[import-not-found]

#: A checkpoint, and with it a transaction, after so many records or so many seconds: the defaults (any number, 5 s)
#: would show rows once in five seconds, in transactions of any size.
COMMIT_EVERY_RECORDS = 5_000
COMMIT_INTERVAL_S = 1.0


def row(value: dict[str, Any], key: Any, timestamp_ms: int, headers: Any) -> dict[str, Any]:
    """The table's columns. Every row has all of them: a batch is written with the columns of its first row alone."""
    context = message_context()
    return {
        "id": value["notification_id"],
        "incident_id": value["incident_id"],
        "channel": value["channel"],
        "kind": value["kind"],
        "outcome": value["outcome"],
        "tries": value["tries"],
        "detail": value["detail"],
        "created_at": datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(),
        "log_partition": context.partition,
        "log_offset": context.offset,
    }


def main(kafka: str, topic: str, group: str, postgres: str, schema: str, folder: str) -> None:
    """Run until killed."""
    at = urlsplit(postgres)
    application = Application(
        broker_address=kafka,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_every=COMMIT_EVERY_RECORDS,
        commit_interval=COMMIT_INTERVAL_S,
        state_dir=folder,
        loglevel="WARNING",
    )
    sink = PostgreSQLSink(
        host=at.hostname or "",
        port=at.port or 5432,
        dbname=at.path.lstrip("/"),
        user=at.username or "",
        password=at.password or "",
        schema_name=schema,
        table_name="notifications",
        schema_auto_update=False,
        primary_key_columns="id",
        on_conflict_do_nothing=True,  # a checkpoint that failed after its rows were committed writes them again
        include_metadata=False,
    )
    application.dataframe(application.topic(topic, value_deserializer="json")).apply(row, metadata=True).sink(sink)
    application.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
