"""Reads a record of the log by partition and offset, and proves that a checkpoint is what was saved."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ._schemas.canonical import parse_state, verify_stored
from ._schemas.codec import Codec
from ._schemas.errors import DecodeError, RetriableError, StateError
from ._schemas.records import Record
from ._schemas.records.commands import ResumeFromCheckpoint, RetryStep
from ._schemas.records.events import CheckpointCreated, WorkflowStarted
from ._schemas.topics import EVENTS
from .checkpoints import Chain
from .errors import ClosedError, RestoreError
from .run import Standing
from .settings import connected, describe_error

FETCH_TIMEOUT_S = 10.0
_POLL_S = 0.2
_ABSENT = (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)


class LogReader:
    """One consumer without a group, used by one restore at a time."""

    def __init__(self, settings: dict[str, Any], codec: Codec) -> None:
        self._settings = {
            **settings,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            # One record is asked for: no more than a little is read ahead.
            "queued.max.messages.kbytes": 16_384,
        }
        self._codec = codec
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._closed = False

    def fetch(self, partition: int, offset: int) -> Record:
        """The record at (partition, offset). RestoreError when it is not there or unreadable, RetriableError when
        Kafka is away."""
        where = f"{EVENTS}[{partition}]@{offset}"
        if partition < 0 or offset < 0:
            raise RestoreError(f"{where} is no place in the log")
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._consumer is None:
                self._consumer = connected(Consumer, self._settings)
            try:
                return self._read(self._consumer, TopicPartition(EVENTS, partition, offset), where)
            except KafkaException as error:
                if error.args[0].code() in _ABSENT:
                    raise RestoreError(f"{where}: there is no such partition") from error
                raise RetriableError(f"{where} cannot be read now: {describe_error(error.args[0])}") from error

    def _read(self, consumer: Consumer, place: TopicPartition, where: str) -> Record:
        low, high = consumer.get_watermark_offsets(place, FETCH_TIMEOUT_S, cached=False)
        if not low <= place.offset < high:
            raise RestoreError(f"{where} is not in the log, or not any more")
        consumer.assign([place])
        try:
            return self._decode(self._poll(consumer, place.offset, where), where)
        finally:
            consumer.unassign()

    def _poll(self, consumer: Consumer, offset: int, where: str) -> bytes | None:
        deadline_s = time.monotonic() + FETCH_TIMEOUT_S
        trouble = "no answer"
        while time.monotonic() < deadline_s and not self._closed:
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is None and message.offset() == offset:
                return message.value()
            if error is None or error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError._PARTITION_EOF):
                raise RestoreError(f"{where} is not in the log any more")
            trouble = describe_error(error)
        raise RetriableError(f"{where} cannot be read now: {trouble}")

    def _decode(self, value: bytes | None, where: str) -> Record:
        try:
            record = self._codec.decode(value)
        except DecodeError as failure:
            raise RestoreError(f"{where} cannot be read: {failure}", corrupt=True) from failure
        if isinstance(record, Record):
            return record
        raise RestoreError(f"{where} is a {record.name}, which this client does not know")

    def checkpoint(self, command: RetryStep | ResumeFromCheckpoint, version: str) -> Standing:
        """The verified state of the command's checkpoint.

        RestoreError says what is wrong; `corrupt` when the bytes are not what was saved.
        """
        partition, offset = command.checkpoint_partition, command.checkpoint_offset
        if partition is None or offset is None:
            raise RestoreError("the command does not say where its checkpoint is")
        where = f"the checkpoint at {partition}@{offset}"
        record = self.fetch(partition, offset)
        if not isinstance(record, CheckpointCreated):
            raise RestoreError(f"{where} is a {type(record).__name__}")
        if record.workflow_id != command.workflow_id or record.checkpoint_id != command.checkpoint_id:
            raise RestoreError(f"{where} is another one")
        if record.evidence:
            raise RestoreError(f"{where} is evidence of an error, which is never restored")
        if record.state is None:
            raise RestoreError(f"{where}: the state lies in object storage, which this version does not read")
        if command.checkpoint_digest is not None and command.checkpoint_digest != record.digest:
            raise RestoreError(f"{where}: its digest is not the one that the command names", corrupt=True)
        return _standing(record, record.state, where, version)

    def input_of(self, workflow_id: str, partition: int | None, offset: int | None) -> Standing:
        """The beginning of a workflow, with the input that it was started with."""
        if partition is None or offset is None:
            raise RestoreError("the workflow's start is not in the log")
        record = self.fetch(partition, offset)
        if not isinstance(record, WorkflowStarted) or record.workflow_id != workflow_id:
            raise RestoreError(f"the record at {partition}@{offset} is not this workflow's start")
        try:
            value = json.loads(record.input) if record.input else {}
        except (ValueError, RecursionError) as error:
            raise RestoreError(f"the workflow's input is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise RestoreError(f"the workflow's input is no JSON object but a {type(value).__name__}")
        return Standing(value)

    def close(self) -> None:
        """Give up the connection; a read under way ends."""
        self._closed = True
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None


def _standing(record: CheckpointCreated, state: bytes, where: str, version: str) -> Standing:
    try:
        data = verify_stored(state, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
        document = parse_state(data)
    except StateError as error:
        raise RestoreError(f"{where} does not verify: {error}", corrupt=True) from error
    if document.get("workflow_id") != record.workflow_id:
        raise RestoreError(f"{where} holds the state of another workflow", corrupt=True)
    if record.state_version != version:
        raise RestoreError(f"{where} is of version {record.state_version!r}, this service runs version {version!r}")
    values, completed, metadata = (document.get(k) for k in ("data", "completed_steps", "metadata"))
    if not (isinstance(values, dict) and isinstance(completed, list) and isinstance(metadata, dict)):
        raise RestoreError(f"{where} holds no state of a workflow", corrupt=True)
    return Standing(
        values,
        completed=[str(step) for step in completed],
        metadata=metadata,
        chain=Chain(record.sequence, record.digest, record.chain_digest),
        checkpoint_id=record.checkpoint_id,
        step_id=record.step_id,
    )
