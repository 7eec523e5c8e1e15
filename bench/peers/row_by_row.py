"""What one writes first: a consumer, and one INSERT for each record; a transaction and a commit for each batch."""

from __future__ import annotations

import sys

import orjson
import psycopg
from confluent_kafka import Consumer
from psycopg import sql

from consumers.loop import BATCH_RECORDS_MAX

_INSERT = """
INSERT INTO {} (id, incident_id, channel, kind, outcome, tries, detail, created_at, log_partition, log_offset)
VALUES (%s, %s, %s, %s, %s, %s, %s, to_timestamp(%s / 1000.0), %s, %s) ON CONFLICT (id) DO NOTHING
"""


def main(kafka: str, topic: str, group: str, postgres: str, schema: str) -> None:
    """Run until killed."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    insert = sql.SQL(_INSERT).format(sql.Identifier(schema, "notifications"))
    with psycopg.connect(postgres) as connection:
        while True:
            messages = consumer.consume(BATCH_RECORDS_MAX, 0.1)
            if not messages:
                continue
            for message in messages:
                value = orjson.loads(message.value() or b"")
                row = (
                    value["notification_id"],
                    value["incident_id"],
                    value["channel"],
                    value["kind"],
                    value["outcome"],
                    value["tries"],
                    value["detail"],
                    message.timestamp()[1],
                    message.partition(),
                    message.offset(),
                )
                connection.execute(insert, row)
            connection.commit()
            consumer.commit(asynchronous=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
