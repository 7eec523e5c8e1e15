"""Kintsugi's live projection against what one would use instead: same topic, same table, same rows, same durability.

Each reads the whole topic into a table of its own, from the beginning, alone. The clock runs from the row at a fifth of
the topic to the last one, so that no start, and not the warming up of a JVM, is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import psutil
import psycopg
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg import sql

from bench.figures import Benchmark, Figure, Setup, median
from bench.processes import producer_of
from ops.stack import Addresses
from ops.stack.servers import java
from projections.migrate import migrate

from .install import install

ROWS, ROWS_QUICK = 100_000, 15_000
REPEATS, REPEATS_QUICK = 3, 1
#: The clock starts when this share of the rows is there.
WARM_UP_SHARE = 0.2
TIMEOUT_S = 120.0
_POLL_S = 0.02
_TABLE = "notifications"
_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_NAMESPACE = uuid.UUID("6f0c3f0e-6a4c-4b0e-9a43-6c6de1b0f5d1")
_STRINGS = ("event_id", "workflow_id", "workflow_type", "producer", "channel", "kind", "outcome", "detail")
_UUIDS = ("notification_id", "incident_id")
#: What Kafka Connect is told of the values; an UNNEST of Debezium's needs to know a UUID from text.
_SCHEMA = {
    "type": "struct",
    "optional": False,
    "fields": [
        *({"field": name, "type": "string", "optional": False} for name in _STRINGS),
        *({"field": name, "type": "string", "optional": False, "name": "io.debezium.data.Uuid"} for name in _UUIDS),
        {"field": "occurred_at", "type": "int64", "optional": False},
        {"field": "tries", "type": "int32", "optional": False},
    ],
}


#: From the stack, the peers' folder, an empty folder, the topic and the schema to what is run.
Command = Callable[[Addresses, Path, Path, str, str], list[str]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One that fills the table; `command` starts it."""

    name: str
    does: str
    command: Command
    #: To what its times are kept; what is finer is not compared.
    times_kept: str = "milliseconds"

    @property
    def schema(self) -> str:
        """Where its table is."""
        return f"bench_{self.name.split()[0].lower()}"


@dataclass(frozen=True, slots=True)
class Taken:
    """Of one run: rows per second, and milliseconds of CPU for a thousand rows in the contender's process."""

    rows_per_s: float
    cpu_ms: float


def _ours(module: str) -> Command:
    def command(at: Addresses, peers: Path, scratch: Path, topic: str, schema: str) -> list[str]:
        return [sys.executable, "-m", module, at.kafka, topic, scratch.name, at.postgres, schema]

    return command


def _quix(at: Addresses, peers: Path, scratch: Path, topic: str, schema: str) -> list[str]:
    program = [str(peers / "quix" / "bin" / "python"), str(_HERE / "quix_sink.py")]
    return [*program, at.kafka, topic, scratch.name, at.postgres, schema, str(scratch)]


def _debezium(at: Addresses, peers: Path, scratch: Path, topic: str, schema: str) -> list[str]:
    database = urlsplit(at.postgres)
    names = {
        "kafka": at.kafka,
        "folder": str(scratch),
        "name": scratch.name,
        "topic": topic,
        "host": database.hostname or "",
        "port": str(database.port or 5432),
        "database": database.path.lstrip("/"),
        "user": database.username or "",
        "password": database.password or "",
        "schema": schema,
        "value_schema": json.dumps(_SCHEMA),
    }
    files = []
    for name in ("worker.properties", "debezium.properties"):
        text = (_HERE / name).read_text("utf-8")
        for key, value in names.items():
            text = text.replace("{" + key + "}", value)
        files.append(scratch / name)
        files[-1].write_text(text, encoding="utf-8")
    options = ["-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{peers / 'jars'}/*"]
    return [java(), *options, "org.apache.kafka.connect.cli.ConnectStandalone", *map(str, files)]


CONTENDERS = (
    Contender("live projection", "exactly once: its position is in the rows' transaction", _ours("bench.peers.live")),
    # With UNNEST it cuts a time to whole seconds.
    Contender(
        "Debezium JDBC sink", "at least once, made harmless by upserts; cuts times to seconds", _debezium, "second"
    ),
    Contender("Quix Streams sink", "at least once, made harmless by ON CONFLICT DO NOTHING", _quix),
    Contender(
        "psycopg row by row",
        "at least once, made harmless by ON CONFLICT DO NOTHING; 500 rows in a transaction",
        _ours("bench.peers.row_by_row"),
    ),
)


def _measure(setup: Setup) -> list[Figure]:
    peers = install(setup.say)
    rows, repeats = (ROWS_QUICK, REPEATS_QUICK) if setup.quick else (ROWS, REPEATS)
    topic = f"bench.peers.{uuid.uuid4().hex[:8]}"
    taken: dict[str, list[Taken]] = {contender.name: [] for contender in CONTENDERS}
    try:
        with psycopg.connect(setup.stack.postgres, autocommit=True) as connection:
            durable = {name: _shown(connection, name) for name in ("fsync", "synchronous_commit", "full_page_writes")}
            if set(durable.values()) != {"on"}:
                raise RuntimeError(f"this Postgres does not keep what it has said it keeps: {durable}")
            _fill(setup.stack.kafka, topic, rows)
            for number in range(repeats):
                # The other way round in every second run, so that none always comes first.
                for contender in CONTENDERS[:: -1 if number % 2 else 1]:
                    setup.say(f"{rows:,} rows by {contender.name}: {number + 1} of {repeats}")
                    taken[contender.name].append(_run(setup, peers, connection, contender, topic, rows))
                _compare(connection, rows)
    finally:
        admin = AdminClient({"bootstrap.servers": setup.stack.kafka, "log_level": 0})
        admin.delete_topics([topic])[topic].result(30)
        _drop(setup.stack.postgres)
    return _figures(taken, rows, repeats)


def _figures(taken: dict[str, list[Taken]], rows: int, repeats: int) -> list[Figure]:
    ours = median([t.rows_per_s for t in taken[CONTENDERS[0].name]])
    figures = []
    for contender in CONTENDERS:
        rate = median([t.rows_per_s for t in taken[contender.name]])
        figures.append(Figure(name=contender.name, measured=rate, unit="rows/s", note=contender.does))
        cpu_ms = median([t.cpu_ms for t in taken[contender.name]])
        figures.append(Figure(name=f"{contender.name}, CPU", measured=cpu_ms, unit="ms per 1,000 rows"))
        if contender is not CONTENDERS[0]:
            note = f"{rows:,} rows, one partition, median of {repeats}"
            figures.append(
                Figure(name=f"live projection against {contender.name}", measured=ours / rate, unit="times", note=note)
            )
    return figures


def _fill(kafka: str, topic: str, rows: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    admin.create_topics([NewTopic(topic, 1, 1, config={"message.timestamp.type": "LogAppendTime"})])[topic].result(30)
    producer = producer_of(kafka)
    for number in range(rows):
        workflow = str(uuid.uuid5(_NAMESPACE, f"workflow {number // 10}"))
        value = {
            "event_id": str(uuid.uuid5(_NAMESPACE, f"event {number}")),
            "workflow_id": workflow,
            "workflow_type": "development",
            "occurred_at": 1_790_000_000_000_000 + number,
            "producer": "notifier-1",
            "notification_id": _id(number),
            "incident_id": str(uuid.uuid5(_NAMESPACE, f"incident {number // 3}")),
            "channel": ("slack", "email", "pagerduty")[number % 3],
            "kind": "trigger",
            "outcome": "delivered",
            "tries": 1 + number % 3,
            "detail": f"message {number} taken by the channel after {number % 97} ms",
        }
        while True:
            try:
                producer.produce(topic, orjson.dumps(value), workflow.encode())
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(60):
        raise RuntimeError("the topic could not be filled")


def _run(
    setup: Setup, peers: Path, connection: psycopg.Connection[Any], contender: Contender, topic: str, rows: int
) -> Taken:
    """One reads the topic into an empty table."""
    _fresh(setup.stack.postgres, connection, contender.schema)
    scratch = setup.folder / f"bench-{uuid.uuid4().hex[:8]}"  # names the consumer group too, which is new in each run
    scratch.mkdir()
    log = scratch / "log"
    command = contender.command(setup.stack, peers, scratch, topic, contender.schema)
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=_ROOT, env=dict(os.environ), stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait(process, connection, contender, _id(int(rows * WARM_UP_SHARE)), log)
        began_s, began_cpu_s = time.perf_counter(), _cpu_s(process)
        # Not the row waited for: it came with the others of its transaction, 5,000 of them with one contender.
        left = rows - _count(connection, contender)
        _wait(process, connection, contender, _id(rows - 1), log)
        elapsed_s, cpu_s = time.perf_counter() - began_s, _cpu_s(process) - began_cpu_s
        if left <= 0:
            raise RuntimeError(f"{contender.name} wrote everything at once: nothing was measured")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
    return Taken(rows_per_s=left / elapsed_s, cpu_ms=1e6 * cpu_s / left)


def _wait(
    process: subprocess.Popen[bytes], connection: psycopg.Connection[Any], contender: Contender, key: str, log: Path
) -> None:
    """Until a row is to be seen."""
    query = sql.SQL("SELECT 1 FROM {} WHERE id = %s").format(sql.Identifier(contender.schema, _TABLE))
    end_s = time.monotonic() + TIMEOUT_S
    while connection.execute(query, (key,)).fetchone() is None:
        if process.poll() is not None or time.monotonic() > end_s:
            raise RuntimeError(f"{contender.name} does not go on:\n{log.read_text('utf-8', 'replace')[-2000:]}")
        time.sleep(_POLL_S)


def _count(connection: psycopg.Connection[Any], contender: Contender) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(contender.schema, _TABLE))
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    used = psutil.Process(process.pid).cpu_times()
    return float(used.user + used.system)


def _compare(connection: psycopg.Connection[Any], rows: int) -> None:
    """Each has made the same table."""
    query = sql.SQL(
        "SELECT (SELECT count(*) FROM {one}),"
        " (SELECT count(*) FROM (SELECT {columns} FROM {one} EXCEPT SELECT {columns} FROM {ours}) AS other)"
    )
    others = sql.SQL("id, incident_id, channel, kind, outcome, tries, detail, log_partition, log_offset")
    for contender in CONTENDERS:
        time_of_row = sql.SQL("date_trunc({}, created_at)").format(sql.Literal(contender.times_kept))
        names = {
            "one": sql.Identifier(contender.schema, _TABLE),
            "ours": sql.Identifier(CONTENDERS[0].schema, _TABLE),
            "columns": sql.SQL(", ").join((others, time_of_row)),
        }
        found = connection.execute(query.format(**names)).fetchone()
        if found != (rows, 0):
            raise RuntimeError(f"{contender.name}: {found} rows and differences, {rows} and 0 expected")


def _fresh(url: str, connection: psycopg.Connection[Any], schema: str) -> None:
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    migrate(url, generation=schema)
    connection.execute("CHECKPOINT")


def _drop(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for contender in CONTENDERS:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(contender.schema)))


def _shown(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    return str(row[0]) if row else ""


def _id(number: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"notification {number}"))


BENCHMARK = Benchmark(
    name="peers",
    measures="rows per second from a topic of one record type into one table of ten columns, by one process",
    compared_to="Debezium's JDBC sink on Kafka Connect, Quix Streams' Postgres sink, and psycopg row by row, on the"
    " same topic and an equal table, with fsync and synchronous_commit on; settings in bench/peers/",
    run=_measure,
)
