"""What the client's tests on the real stack share: services here and in child processes, and commands to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
import zlib
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Producer
from kintsugi_client import Client

from schemas.canonical import chain_digest_of, parse_state, verify_stored
from schemas.headers import headers_for
from schemas.ids import uuid_bytes
from schemas.records import Command, Record
from schemas.records.events import CheckpointCreated, CommandAcknowledged, WorkflowStarted
from schemas.topics import COMMANDS, EVENTS

from .kit import Topics, wait_for
from .planned import Planned, runs

C = TypeVar("C", bound=Command)
PARTITIONS = 8
#: What describes the type of workflow; all else describes the client.
TYPE_OPTIONS = ("checkpoint_types", "migrations", "state_schema", "version")


def fresh_name() -> str:
    """Name of a service and its workflow type, of one test's own."""
    return f"svc-{uuid.uuid4()}"


def partition_of(workflow_id: str) -> int:
    """Partition of a workflow's commands, as librdkafka's default partitioner chooses it."""
    return zlib.crc32(workflow_id.encode()) % PARTITIONS


def state_of(record: CheckpointCreated) -> dict[str, Any]:
    """The document in a checkpoint, proven."""
    assert record.state is not None
    data = verify_stored(record.state, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
    return parse_state(data)


def assert_chain(checkpoints: list[CheckpointCreated]) -> None:
    """Each checkpoint verifies, and is chained to the one before."""
    chain: str | None = None
    for number, record in enumerate(checkpoints, 1):
        state_of(record)
        chain = chain_digest_of(chain, record.digest)
        assert (record.sequence, record.chain_digest) == (number, chain)


class Desk:
    """Writes commands as an engine would, and reads what services answered."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.producer = Producer(
            {"bootstrap.servers": topics.at.kafka, "acks": "all", "message.max.bytes": 16_000_000, "log_level": 0}
        )

    def build(self, kind: type[C], workflow_id: str, workflow_type: str, **fields: Any) -> C:
        """A command with a fresh id, valid for a minute."""
        now_us = time.time_ns() // 1000
        values: dict[str, Any] = {
            "event_id": str(uuid.uuid4()),
            "command_id": str(uuid.uuid4()),
            "expires_at": now_us + 60_000_000,
            "reason": "test",
            "actor": "tester",
            **fields,
        }
        known = kind.__dataclass_fields__
        return kind(
            workflow_id=workflow_id,
            workflow_type=workflow_type,
            occurred_at=now_us,
            producer="test",
            **{k: v for k, v in values.items() if k in known},
        )

    def send(self, *commands: Command) -> None:
        """Write commands and wait until they are in the log."""
        for command in commands:
            self.raw(command.workflow_id, self.topics.codec.encode(command), headers_for(command))
        assert self.producer.flush(20) == 0

    def raw(self, key: str, value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> None:
        """Write bytes to the command topic."""
        self.producer.produce(COMMANDS, value, key.encode(), headers=headers or [])  # type: ignore[arg-type]
        assert self.producer.flush(20) == 0

    def answers(self, command: Command) -> list[CommandAcknowledged]:
        """Answers to a command so far, in the order of the log."""
        found = self.topics.events(CommandAcknowledged, {command.workflow_id})
        return [a for a in found if a.command_id == command.command_id]

    def wait_answers(self, command: Command, *expected: tuple[str, bool]) -> list[CommandAcknowledged]:
        """Wait for these answers: status, and whether it says that it was a copy."""

        def look() -> list[CommandAcknowledged] | None:
            found = self.answers(command)
            said = [(a.status, a.duplicate) for a in found]
            assert said == list(expected[: len(said)]), f"{[(a.status, a.detail) for a in found]}"
            return found if len(found) == len(expected) else None

        found: list[CommandAcknowledged] = wait_for(f"answers {expected}", look)
        return found

    def places(self, workflow_id: str) -> list[tuple[Record, int, int]]:
        """A workflow's events with the places they have in the log."""
        found = []
        for message in self.topics.read(EVENTS, {workflow_id}):
            record = self.topics.codec.decode(message.value())
            assert isinstance(record, Record)
            found.append((record, message.partition() or 0, message.offset() or 0))
        return found

    def where(self, workflow_id: str, nth: int = -1) -> dict[str, Any]:
        """How a command names a workflow's start, and its newest (or nth) checkpoint."""
        places = self.places(workflow_id)
        named: dict[str, Any] = {}
        for record, partition, offset in places:
            if isinstance(record, WorkflowStarted):
                named.update(started_partition=partition, started_offset=offset)
        saved = [p for p in places if isinstance(p[0], CheckpointCreated) and not p[0].evidence]
        record, partition, offset = saved[nth]
        assert isinstance(record, CheckpointCreated)
        return {
            **named,
            "checkpoint_id": record.checkpoint_id,
            "checkpoint_partition": partition,
            "checkpoint_offset": offset,
            "checkpoint_digest": record.digest,
        }


class Here:
    """A planned service in this process."""

    def __init__(self, environment: dict[str, str], folder: Path, name: str, **options: Any) -> None:
        self.name = name
        self.folder = folder
        type_options = {k: options.pop(k) for k in TYPE_OPTIONS if k in options}
        self.client = Client.connect(
            name,
            kafka=options.pop("kafka", environment["KINTSUGI_KAFKA"]),
            registry=options.pop("registry", environment["KINTSUGI_REGISTRY"]),
            objects=options.pop("objects", ""),
            keys=options.pop("keys", ""),
            **options,
        )
        self.planned = Planned(self.client, name, folder, **type_options)
        self.kind = self.planned.kind

    def ran(self, workflow_id: str) -> list[str]:
        """Steps that ran, of one workflow, in order."""
        return [r["step_id"] for r in runs(self.folder) if r["workflow_id"] == workflow_id]


class Child:
    """A planned service as a process of its own."""

    def __init__(self, environment: dict[str, str], folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / f"child-{uuid.uuid4()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.stack.planned", name, str(folder), *arguments],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        assert self._read() == {"ready": True}

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the service ended:\n{self.log.read_text()[-3000:]}"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, do: str, **fields: Any) -> Any:
        """Let the service do something, and wait for its answer."""
        self.tell(do, **fields)
        return self._read()["answer"]

    def tell(self, do: str, **fields: Any) -> None:
        """Let the service do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()

    def start(self, plan: dict[str, list[str]], workflow_id: str | None = None) -> str:
        """Start a workflow, and wait until its start is in the log."""
        workflow_id = workflow_id or str(uuid.uuid4())
        uuid_bytes(workflow_id)
        self.ask("start", data={"plan": plan}, workflow_id=workflow_id)
        return workflow_id

    def partitions(self) -> list[int]:
        """Partitions of commands that the group has given it."""
        found: list[int] = self.ask("stats")["partitions"]
        return found

    def ran(self, workflow_id: str) -> list[dict[str, Any]]:
        """Runs of a workflow's steps, in any process."""
        return [r for r in runs(self.folder) if r["workflow_id"] == workflow_id]

    def kill(self) -> None:
        """kill -9, if it still runs."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)


def close_all(parts: list[Here | Child]) -> None:
    """End what a test has left running; steps that are held go on."""
    for part in parts:
        (part.folder / "release").touch()
    for part in parts:
        if isinstance(part, Here):
            part.client.close(5.0)
        else:
            part.kill()


def environment_of(given: dict[str, str]) -> dict[str, str]:
    """A child's environment: what the stack says, and nothing buffered."""
    return {**os.environ, **given, "PYTHONUNBUFFERED": "1"}
