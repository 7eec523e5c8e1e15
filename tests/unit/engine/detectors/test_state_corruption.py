"""Any checkpoint that does not verify is rejected and an error; one that does is neither."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.testing import Service, World, saved
from schemas.canonical import canonical_bytes, digest_of
from schemas.records.events import CheckpointRejected, StepSpec, WorkflowStarted

from .kit import errors, policy_with, started

SCHEMA = json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}})


def bytes_of(text: bytes) -> dict[str, object]:
    """Fields of a checkpoint whose stored bytes and digest agree, whatever they are."""
    return {"codec": "identity", "state": text, "size_bytes": len(text), "digest": digest_of(text)}


def flipped(fields: dict[str, object]) -> dict[str, object]:
    """One byte of the state is another."""
    state = bytes(fields["state"])  # type: ignore[call-overload]
    return {**fields, "state": state.replace(b"running", b"runninh")}


CORRUPT: dict[str, tuple[dict[str, object], str]] = {
    "bytes that end too early": ({"state": b'{"data"'}, "size"),
    "another digest": ({"digest": "0" * 64}, "digest"),
    "another size": ({"size_bytes": 1}, "size"),
    "bytes that do not unpack": ({"codec": "zstd"}, "codec"),
    "a codec that nobody knows": ({"codec": "rot13"}, "codec"),
    "no state at all": (bytes_of(b"[]"), "structure"),
    "a sequence with a hole": ({"sequence": 9}, "chain_gap"),
    "a link to what is not there": ({"parent_digest": "1" * 64}, "chain_fork"),
    "a chain of its own": ({"chain_digest": "2" * 64}, "chain_fork"),
    "a run that nobody began": ({"epoch": 7}, "chain_fork"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_what_does_not_verify_is_rejected_and_an_error(name: str) -> None:
    fields, reason = CORRUPT[name]
    world, service = started()
    service.start("a")
    service.checkpoint("a", saved)
    bad = service.checkpoint("a", lambda w, s: saved(w, s, 2), **fields)
    (rejected,) = world.records(CheckpointRejected)
    (error,) = errors(world, "state_corruption")
    assert rejected.checkpoint_id == error.checkpoint_id == bad.checkpoint_id
    assert rejected.reason == error.reason
    assert error.reason == reason
    assert (error.error_code, error.step_id) == ("STATE_CORRUPTION", "a")
    assert service.state.find_checkpoint(bad.checkpoint_id) is None


def test_a_flipped_byte_is_found() -> None:
    world, service = started()
    service.checkpoint("a", lambda w, s: flipped(saved(w, s)))
    (error,) = errors(world, "state_corruption")
    assert error.reason == "digest"


def test_a_state_against_its_schema_is_an_error() -> None:
    world = World(policy_with("{}"))
    service = Service(world)
    service.emit(
        WorkflowStarted, workflow_version="1", steps=(StepSpec(step_id="a"),), state_version="1", state_schema=SCHEMA
    )

    def of(data: Any) -> Any:
        def make(workflow_id: str, step_id: str) -> dict[str, object]:
            document = {"workflow_id": workflow_id, "step_id": step_id, "status": "running", "data": data}
            return bytes_of(canonical_bytes(document))

        return make

    service.checkpoint("a", of({"n": 1}))
    assert not errors(world, "state_corruption")
    service.checkpoint("a", of({"n": "one"}))
    (error,) = errors(world, "state_corruption")
    assert error.reason == "schema"


def test_sound_checkpoints_are_no_error() -> None:
    world, service = started()
    for number in range(20):
        service.start("a")
        service.checkpoint("a", lambda w, s, n=number: saved(w, s, n))  # type: ignore[misc]
        service.complete("a")
    assert not world.records(CheckpointRejected)
    assert not errors(world, "state_corruption")


def test_without_the_policys_consent_it_is_rejected_and_no_error() -> None:
    world, service = started(policy_with("{state_corruption: {enabled: false}}"))
    service.checkpoint("a", saved)
    service.checkpoint("a", saved, sequence=9)
    assert len(world.records(CheckpointRejected)) == 1
    assert not errors(world, "state_corruption")


def test_evidence_of_an_error_needs_no_validity() -> None:
    world, service = started()
    service.checkpoint("a", saved, evidence=True, digest="0" * 64)
    assert not world.records(CheckpointRejected)
    assert not errors(world, "state_corruption")
