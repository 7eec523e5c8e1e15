"""States that a careless or hostile producer writes: none is restored from, each is named, the partition moves on."""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.records import Record
from schemas.records.commands import ResumeFromCheckpoint
from schemas.records.events import (
    CheckpointCreated,
    CheckpointRejected,
    RecoveryDecided,
    WorkflowErrorOccurred,
)

from .kit import Role, Topics, build, failing, wait_for

Start = Callable[..., Role]
MIB = 1024 * 1024
R = TypeVar("R", bound=Record)


def checkpoint(workflow_id: str, data: bytes, **changed: object) -> Record:
    digest = digest_of(data)
    fields: dict[str, object] = {
        "checkpoint_id": str(uuid.uuid4()),
        "step_id": "build",
        "checkpoint_type": "manual",
        "sequence": 1,
        "state_version": "1",
        "codec": "identity",
        "size_bytes": len(data),
        "digest": digest,
        "chain_digest": chain_digest_of(None, digest),
        "status": "running",
        "state": data,
        **changed,
    }
    return build(CheckpointCreated, workflow_id, **fields)


def state(workflow_id: str, inner: str = '{"n":1}') -> bytes:
    text = f'{{"data":{inner},"status":"running","step_id":"build","workflow_id":"{workflow_id}"}}'
    return text.encode("utf-8", "surrogatepass")


BOMB = gzip.compress(b'{"data":"' + b"a" * 200 * MIB + b'"}', mtime=0)
LARGE = gzip.compress(state(str(uuid.UUID(int=0)), '"' + "a" * 20 * MIB + '"'), mtime=0)


def bad_states(workflow_id: str) -> dict[str, tuple[str, Record]]:
    """What is wrong -> (the reason it is refused with, the record)."""
    good = state(workflow_id)
    return {
        "NaN": ("structure", checkpoint(workflow_id, state(workflow_id, '{"n":NaN}'))),
        "Infinity": ("structure", checkpoint(workflow_id, state(workflow_id, '{"n":1e999}'))),
        "U+0000": ("structure", checkpoint(workflow_id, state(workflow_id, '"\\u0000"'))),
        "escaped surrogate": ("structure", checkpoint(workflow_id, state(workflow_id, '"\\ud800"'))),
        "surrogate bytes": ("structure", checkpoint(workflow_id, state(workflow_id, '"\ud800"'))),
        "key twice": ("structure", checkpoint(workflow_id, state(workflow_id, '{"a":1,"a":2}'))),
        "50 digits": ("structure", checkpoint(workflow_id, state(workflow_id, "1" * 50))),
        "not canonical": ("structure", checkpoint(workflow_id, state(workflow_id, '{ "a": 1 }'))),
        "depth": ("limit", checkpoint(workflow_id, state(workflow_id, "[" * 100 + "]" * 100))),
        "no JSON": ("structure", checkpoint(workflow_id, b"\x80\x04pickle")),
        "an array": ("structure", checkpoint(workflow_id, b"[1,2]")),
        "another workflow's": ("structure", checkpoint(workflow_id, state(str(uuid.uuid4())))),
        "flipped": ("digest", checkpoint(workflow_id, good, state=good.replace(b"1", b"2"))),
        "cut": ("size", checkpoint(workflow_id, good, state=good[:-1])),
        "20 MiB": ("limit", checkpoint(workflow_id, b"x", state=LARGE, codec="gzip", size_bytes=20 * MIB + 100)),
        "bomb": ("size", checkpoint(workflow_id, b"x", state=BOMB, codec="gzip", size_bytes=1000)),
        "unknown codec": ("codec", checkpoint(workflow_id, good, codec="lzma")),
    }


def first_of(records: Sequence[R]) -> dict[str, R]:
    """The first record of each workflow: nobody answers here, so more follow."""
    return {record.workflow_id: record for record in reversed(records)}


def test_every_state_that_cannot_be_trusted_is_refused_and_repaired(topics: Topics, start: Start) -> None:
    role = start()
    role.wait_log("partitions assigned")
    kinds = list(bad_states(str(uuid.uuid4())))
    ids = {kind: str(uuid.uuid4()) for kind in kinds}
    wanted: dict[str, str] = {}
    sound: dict[str, str] = {}
    for kind, workflow_id in ids.items():
        started, step, _ = failing(workflow_id)
        before = checkpoint(workflow_id, canonical_bytes({"workflow_id": workflow_id, "step_id": "build",
                                                          "status": "running", "data": {}}))  # fmt: skip
        wanted[kind], bad = bad_states(workflow_id)[kind]
        assert isinstance(before, CheckpointCreated)
        sound[kind] = before.checkpoint_id
        topics.put(started, step, before, bad)
    everyone = set(ids.values())
    wait_for("a repair of each", lambda: {c.workflow_id for c in topics.commands(everyone)} == everyone, 90)
    rejected = first_of(topics.events(CheckpointRejected, everyone))
    errors = first_of(topics.events(WorkflowErrorOccurred, everyone))
    decided = first_of(topics.events(RecoveryDecided, everyone))
    commands = first_of(topics.commands(everyone))
    for kind, workflow_id in ids.items():
        assert rejected[workflow_id].reason == wanted[kind], kind
        assert (errors[workflow_id].error_code, errors[workflow_id].detected_by) == (
            "STATE_CORRUPTION",
            "detector:state_corruption",
        )
        assert decided[workflow_id].strategy == "restore_from_last_valid_checkpoint", kind
        command = commands[workflow_id]
        assert isinstance(command, ResumeFromCheckpoint), kind
        assert command.checkpoint_id == sound[kind], "the older, sound one"
    for reason in set(wanted.values()):
        count = sum(r == reason for r in wanted.values())
        assert role.metric("kintsugi_state_validation_failures_total", reason=reason) == count
    assert role.stop() == 0


def test_a_record_larger_than_the_topic_allows_never_gets_into_the_log(topics: Topics) -> None:
    workflow_id = str(uuid.uuid4())
    fate: list[KafkaError | None] = []
    topics.producer.produce(
        "workflow.events",
        key=workflow_id.encode(),
        value=topics.codec.encode(checkpoint(workflow_id, b"x" * 13 * MIB)),
        on_delivery=lambda error, message: fate.append(error),
    )
    topics.producer.flush(20)
    (error,) = fate
    assert error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert topics.events(CheckpointCreated, {workflow_id}) == []


def test_a_record_larger_than_the_producer_allows_is_an_error_at_the_call(topics: Topics) -> None:
    try:
        topics.producer.produce("workflow.events", key=b"k", value=b"x" * 20 * MIB)
        refused = False
    except KafkaException as error:
        refused = error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert refused
