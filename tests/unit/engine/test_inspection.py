"""Sealed checkpoints on arrival: nothing that was changed, moved or sealed by nobody passes for what was saved."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inspection import Inspector
from engine.invariants import LogCheck
from engine.policy import default_policy, load_policy
from engine.testing import Service, World
from schemas.canonical import canonical_bytes, chain_digest_of, compress, digest_of
from schemas.errors import RetriableError, StateError
from schemas.records.events import CheckpointCreated, CheckpointRejected, StepSpec, WorkflowErrorOccurred
from schemas.sealing import DataKey, binding_of, seal

WORKFLOW, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
PROTECTIONS = ("hmac-sha256", "aes-256-gcm")
#: Where a record came from and when is not bound; what stands in `state` is looked at by itself.
UNBOUND = {"state", "claim_uri", "event_id", "occurred_at", "producer", "correlation_id", "causation_id"}


def key_of(workflow_id: str, number: int) -> DataKey:
    return DataKey(workflow_id, number, hashlib.sha256(f"{workflow_id}{number}".encode()).digest())


def document(workflow_id: str, number: int = 0) -> bytes:
    return canonical_bytes(
        {"workflow_id": workflow_id, "step_id": "build", "status": "running", "data": {"n": number, "text": "x" * 99}}
    )


def sealed(protection: str, *, workflow_id: str = WORKFLOW, key: int = 1, **changed: Any) -> CheckpointCreated:
    data = document(workflow_id)
    codec, stored = compress(data, codec="gzip", min_size_bytes=0)
    digest = digest_of(data)
    given: dict[str, Any] = {
        "event_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{workflow_id}{changed}")),
        "workflow_id": workflow_id,
        "workflow_type": "development",
        "external_id": "run-7",
        "occurred_at": 0,
        "producer": "test",
        "checkpoint_id": str(uuid.UUID(int=100)),
        "step_id": "build",
        "checkpoint_type": "manual",
        "epoch": 0,
        "sequence": 1,
        "state_version": "1",
        "codec": codec,
        "protection": protection,
        "size_bytes": len(data),
        "digest": digest,
        "parent_digest": "ab" * 32,
        "chain_digest": chain_digest_of(None, digest),
        "status": "running",
        "metadata": "{}",
    }
    record = CheckpointCreated(**{**given, **changed})
    return replace(
        record, state=seal(stored, key_of(workflow_id, key), protection=protection, binding=binding_of(record))
    )


INSPECTOR = Inspector(key_of)


def reason(record: CheckpointCreated, inspector: Inspector = INSPECTOR) -> str | None:
    found = inspector.inspect(record)
    return None if found.rejection is None else found.rejection[0]


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_what_was_sealed_is_read(protection: str) -> None:
    found = INSPECTOR.inspect(sealed(protection))
    assert (found.rejection, found.unreadable) == (None, None)
    assert found.state is not None
    assert found.state["workflow_id"] == WORKFLOW


@pytest.mark.parametrize("protection", PROTECTIONS)
@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 2**16), change=st.integers(0, 255))
def test_every_changed_or_missing_byte_is_found(protection: str, at: int, change: int) -> None:
    record = sealed(protection)
    assert record.state is not None
    at %= len(record.state)
    changed = record.state[:at] + bytes([record.state[at] ^ change]) + record.state[at + 1 :] if change else b""
    mutated = replace(record, state=changed or record.state[:at])
    assert reason(mutated) is not None or INSPECTOR.inspect(mutated).unreadable == "key_missing"


def other_value(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if value is None:
        return "a value"
    return f"{value}x" if len(str(value)) != 36 else str(uuid.UUID(int=77))


@pytest.mark.parametrize("protection", PROTECTIONS)
@pytest.mark.parametrize("field", [f.name for f in fields(CheckpointCreated) if f.name not in UNBOUND])
def test_every_field_of_the_record_is_bound(protection: str, field: str) -> None:
    record = sealed(protection)
    mutated = replace(record, **{field: other_value(getattr(record, field))})
    if mutated.evidence:
        return  # evidence is never restored from, whatever it says
    assert reason(mutated) is not None


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_the_state_of_another_checkpoint_or_workflow_is_refused(protection: str) -> None:
    mine, later = sealed(protection), sealed(protection, checkpoint_id=str(uuid.UUID(int=101)), sequence=2)
    foreign = sealed(protection, workflow_id=OTHER)
    assert reason(replace(mine, state=later.state)) == "decryption"
    assert reason(replace(mine, state=foreign.state)) == "decryption"
    assert reason(replace(foreign, workflow_id=WORKFLOW)) == "decryption"


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_taking_the_seal_off_is_found(protection: str) -> None:
    record = sealed(protection)
    assert record.state is not None
    naked = replace(record, protection="none", state=compress(document(WORKFLOW), codec="gzip", min_size_bytes=0)[1])
    assert reason(naked) == "unsealed"
    assert reason(replace(naked, state=None, claim_uri="claim:sha256:" + "ab" * 32)) == "unsealed"
    assert reason(naked, Inspector(key_of, keys_optional=True)) is None, "while keys are being rolled out"
    assert reason(naked, Inspector()) is None, "without keys there is nothing to expect"


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_one_protection_does_not_pass_for_another(protection: str) -> None:
    other = next(p for p in PROTECTIONS if p != protection)
    assert reason(replace(sealed(protection), protection=other)) == "decryption"
    assert reason(replace(sealed(protection), protection="rot13")) == "decryption"


def test_a_state_whose_key_is_gone_is_unreadable_and_not_rejected() -> None:
    def gone(why: str) -> Callable[[str, int], DataKey]:
        def look(workflow_id: str, number: int) -> DataKey:
            raise StateError(why, "gone")

        return look

    for why in ("key_erased", "key_missing"):
        found = Inspector(gone(why)).inspect(sealed("aes-256-gcm"))
        assert (found.rejection, found.unreadable) == (None, why)
    found = Inspector().inspect(sealed("aes-256-gcm"))
    assert (found.rejection, found.unreadable) == (None, "no_keys")


def test_a_store_that_is_away_is_no_verdict() -> None:
    def away(workflow_id: str, number: int) -> DataKey:
        raise RetriableError("the store is away")

    with pytest.raises(RetriableError):
        Inspector(away).inspect(sealed("aes-256-gcm"))


def test_a_key_rotated_in_the_middle_of_a_workflow_is_found_by_its_number() -> None:
    assert [reason(sealed("aes-256-gcm", key=n)) for n in (1, 2, 7)] == [None] * 3
    wrong = Inspector(lambda workflow_id, number: key_of(workflow_id, number + 1))
    assert reason(sealed("aes-256-gcm"), wrong) == "decryption"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"size_bytes": 11 * 1024 * 1024}, "limit"),
        ({"size_bytes": -1}, "limit"),
        ({"state": b"x"}, "structure"),
        ({"claim_uri": None}, "structure"),
    ],
)
def test_a_claim_is_held_to_what_its_record_says(changed: dict[str, Any], expected: str) -> None:
    record = replace(sealed("aes-256-gcm"), state=None, claim_uri="claim:sha256:" + "ab" * 32)
    assert INSPECTOR.inspect(record).unreadable == "claim"
    assert reason(replace(record, **changed)) == expected


# -- the verdict in the log -----------------------------------------------------------------------------------------


def played(world: World, records: list[CheckpointCreated]) -> list[str]:
    for record in records:
        world.append(record)
        world.settle()
    return [r.reason for r in world.records(CheckpointRejected)]


def chained(count: int) -> list[CheckpointCreated]:
    made: list[CheckpointCreated] = []
    for number in range(1, count + 1):
        parent = made[-1] if made else None
        digest = digest_of(document(WORKFLOW))
        made.append(
            sealed(
                "aes-256-gcm",
                checkpoint_id=str(uuid.UUID(int=100 + number)),
                sequence=number,
                parent_digest=parent.digest if parent else None,
                chain_digest=chain_digest_of(parent.chain_digest if parent else None, digest),
            )
        )
    return made


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.integers(0, 4), st.integers(0, 2**16))
def test_one_change_to_a_sealed_log_is_one_finding(kind: int, at: int, byte: int) -> None:
    made = chained(6)
    if kind == 0:  # a byte
        state = bytearray(made[at].state or b"")
        state[8 + byte % (len(state) - 8)] ^= 1 + byte % 255
        made[at] = replace(made[at], state=bytes(state))
    elif kind == 1:  # the states of two swapped: both are wrong now
        made[at], made[at + 1] = (
            replace(made[at], state=made[at + 1].state),
            replace(made[at + 1], state=made[at].state),
        )
    elif kind == 2:  # an old one put back in place of a newer one
        made[at + 1] = replace(made[at], event_id=str(uuid.UUID(int=byte + 500)))
    else:  # renumbered
        made[at] = replace(made[at], sequence=made[at].sequence + 1 + byte % 9)
    world = World(default_policy(), INSPECTOR)
    assert len(played(world, made)) == (2 if kind == 1 else 1)


def test_without_the_switch_a_bad_checkpoint_is_no_error_and_still_never_restored() -> None:
    off = "workflow_error_handling: {error_detection: {state_corruption: {enabled: false}}}"
    world = World(load_policy(off, "test"))
    service = Service(world, (StepSpec(step_id="build"),))

    def saved(workflow_id: str, step_id: str) -> dict[str, object]:
        data = document(workflow_id)
        return {"codec": "identity", "size_bytes": len(data), "digest": digest_of(data), "state": data}

    service.checkpoint("build", saved)
    service.checkpoint("build", saved, chain_digest="ab" * 32)
    assert [r.reason for r in world.records(CheckpointRejected)] == ["chain_fork"]
    assert world.records(WorkflowErrorOccurred) == []
    assert len(list(service.state.all_checkpoints())) == 1


def test_a_log_agrees_with_itself_after_its_keys_are_erased() -> None:
    made = chained(5)
    state = made[2].state or b""
    made[2] = replace(made[2], state=state[:-1] + bytes([state[-1] ^ 1]))
    world = World(default_policy(), INSPECTOR)
    assert played(world, made) == ["decryption"]

    def erased(workflow_id: str, number: int) -> DataKey:
        raise StateError("key_erased", "erased")

    for inspector in (INSPECTOR, Inspector(erased), Inspector()):
        check = LogCheck(world.policy)
        check.begins_at_zero(0)
        for event in world.log:
            check.event(inspector.deliver(event.record, 0, event.offset, event.timestamp_us))
        for command in world.commands:
            check.command(command, world.now_us)
        assert check.findings(world.now_us + 60_000_000) == [
            f for f in check.findings(world.now_us + 60_000_000) if f.rule == "overdue"
        ]
