"""Reads a record of the log by partition and offset, and proves that a checkpoint is what was saved."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ._schemas.canonical import parse_state, verify_stored
from ._schemas.codec import Codec
from ._schemas.errors import DecodeError, RetriableError, StateError
from ._schemas.records import Record
from ._schemas.records.events import CheckpointCreated, WorkflowStarted
from ._schemas.topics import EVENTS
from .checkpoints import Chain
from .errors import RestoreError

FETCH_TIMEOUT_S = 10.0


class LogReader:
    """One consumer without a group, used by one restore at a time."""

    def __init__(self, config: Mapping[str, Any], codec: Codec) -> None:
        self._config = {
            "group.id": "kintsugi-restore-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 10,
            "queued.max.messages.kbytes": 16_384,
            "log_level": 3,
            **config,
        }
        self._codec = codec
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None

    def fetch(self, partition: int, offset: int) -> Record:
        """The record at (partition, offset). RestoreError when it is not there or unreadable, RetriableError when
        Kafka is away."""
        with self._lock:
            if self._consumer is None:
                self._consumer = Consumer(self._config)
            place = TopicPartition(EVENTS, partition, offset)
            self._consumer.assign([place])
            try:
                return self._read(place)
            except KafkaException as error:
                raise RetriableError(f"Kafka: {error.args[0].str()}") from error
            finally:
                self._consumer.unassign()

    def _read(self, place: TopicPartition) -> Record:
        assert self._consumer is not None
        deadline = time.monotonic() + FETCH_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            message = self._consumer.poll(left_s)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                if error.name() in ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"):
                    raise RestoreError(f"{place.topic}[{place.partition}]@{place.offset} is not in the log any more")
                continue
            if message.offset() != place.offset:
                break
            try:
                record = self._codec.decode(message.value())
            except DecodeError as failure:
                raise RestoreError(f"the record cannot be read: {failure}", corrupt=True) from failure
            if isinstance(record, Record):
                return record
            raise RestoreError(f"the record is a {record.name}, which this client does not know")
        raise RestoreError(f"no record at {place.topic}[{place.partition}]@{place.offset}")

    def checkpoint(
        self, workflow_id: str, checkpoint_id: str, partition: int, offset: int, digest: str | None
    ) -> tuple[dict[str, Any], Chain]:
        """The verified state of a checkpoint, and its place in the chain.

        RestoreError says what is wrong; `corrupt` when the bytes are not what was saved.
        """
        record = self.fetch(partition, offset)
        if not isinstance(record, CheckpointCreated):
            raise RestoreError(f"the record at {partition}@{offset} is a {type(record).__name__}, not a checkpoint")
        if record.workflow_id != workflow_id or record.checkpoint_id != checkpoint_id:
            raise RestoreError(f"the checkpoint at {partition}@{offset} is another one")
        if record.evidence:
            raise RestoreError("evidence of an error is never restored from")
        if record.state is None:
            raise RestoreError("the state lies in object storage, which this version does not read")
        if digest is not None and digest != record.digest:
            raise RestoreError("the checkpoint's digest is not the one the command names", corrupt=True)
        try:
            data = verify_stored(record.state, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
            document = parse_state(data)
        except StateError as error:
            raise RestoreError(f"the checkpoint does not verify: {error}", corrupt=True) from error
        if document.get("workflow_id") != workflow_id:
            raise RestoreError("the state is that of another workflow", corrupt=True)
        return document, Chain(record.sequence, record.digest, record.chain_digest)

    def input_of(self, workflow_id: str, partition: int, offset: int) -> dict[str, Any]:
        """The input that a workflow was started with."""
        record = self.fetch(partition, offset)
        if not isinstance(record, WorkflowStarted) or record.workflow_id != workflow_id:
            raise RestoreError(f"the record at {partition}@{offset} is not this workflow's start")
        value = json.loads(record.input) if record.input else {}
        return value if isinstance(value, dict) else {}

    def close(self) -> None:
        """Give up the connection."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None
