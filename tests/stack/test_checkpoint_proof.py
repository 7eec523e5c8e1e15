"""`kintsugi checkpoints verify`: each thing that can be wrong with a checkpoint is found once, with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.checkpoint_proof import Report, verify
from ops.stack import Addresses
from schemas import claims
from schemas.canonical import canonical_bytes, chain_digest_of, compress, digest_of
from schemas.keys import KeyRing
from schemas.keystore import Keystore
from schemas.objects import Objects
from schemas.records.events import CheckpointCreated, CheckpointRejected, CheckpointsExpired, WorkflowStarted
from schemas.sealing import binding_of, seal

from .kit import Role, Topics, build, wait_for
from .starter import command

Start = Callable[..., Role]


class Writer:
    """A service's checkpoints, written by hand: each chained to the one before."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.workflow_id = str(uuid.uuid4())
        self.last: CheckpointCreated | None = None
        topics.put(build(WorkflowStarted, self.workflow_id, workflow_version="1", steps=()))

    def next(self, **fields: Any) -> CheckpointCreated:
        """The next checkpoint, not written yet."""
        number = 1 if self.last is None else self.last.sequence + 1
        document = {"workflow_id": self.workflow_id, "step_id": "one", "status": "running", "data": {"n": number}}
        data = canonical_bytes(document)
        codec, stored = compress(data, codec="gzip", min_size_bytes=0)
        digest = digest_of(data)
        record = build(
            CheckpointCreated,
            self.workflow_id,
            checkpoint_id=str(uuid.uuid4()),
            step_id="one",
            checkpoint_type="manual",
            sequence=number,
            state_version="1",
            codec=codec,
            size_bytes=len(data),
            digest=digest,
            parent_digest=self.last.digest if self.last else None,
            chain_digest=chain_digest_of(self.last.chain_digest if self.last else None, digest),
            status="running",
            state=stored,
        )
        self.last = record
        return replace(record, **fields)

    def put(self, **fields: Any) -> CheckpointCreated:
        """Write the next checkpoint, changed on its way."""
        record = self.next(**fields)
        self.topics.put(record)
        return record


@pytest.fixture
def environment(own: Addresses, own_records: None) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def at(own: Addresses, start: Start, tmp_path: Path) -> Addresses:
    """The stack with tables of this test's own, being filled, and an object store of its own."""
    start("projector").wait_log("partitions assigned")
    return replace(own, objects=(tmp_path / "objects").as_uri())


@pytest.fixture
def writer(topics: Topics) -> Writer:
    return Writer(topics)


def in_tables(at: Addresses, record: CheckpointCreated) -> None:
    """Wait until the tables have a checkpoint."""

    def look() -> Any:
        with psycopg.connect(at.postgres, options="-c search_path=kintsugi") as connection:
            query = "SELECT 1 FROM workflow_checkpoints WHERE id = %s"
            return connection.execute(query, [record.checkpoint_id]).fetchone()

    wait_for("the checkpoint's row", look)


def change(at: Addresses, query: str, *parameters: Any) -> None:
    with psycopg.connect(at.postgres, autocommit=True, options="-c search_path=kintsugi") as connection:
        assert connection.execute(query, parameters).rowcount == 1  # type: ignore[arg-type]


def proof(at: Addresses, writer: Writer, **options: Any) -> Report:
    return verify(at, lambda what, done, total: None, workflow_id=writer.workflow_id, **options)


def found(report: Report) -> list[tuple[str, str]]:
    return sorted((f.checkpoint_id, f.reason) for f in report.failures)


def test_sound_checkpoints_are_proven(at: Addresses, writer: Writer) -> None:
    records = [writer.put() for _ in range(5)]
    in_tables(at, records[-1])
    report = proof(at, writer)
    assert (report.checkpoints, report.proven, report.failed, report.sound, report.complete) == (5, 5, 0, True, True)
    assert report.bytes == sum(record.size_bytes for record in records)
    one = proof(at, writer, checkpoint_id=records[2].checkpoint_id)
    assert (one.checkpoints, one.proven, one.sound) == (1, 1, True)


def test_everything_wrong_in_the_log_is_found_once(at: Addresses, topics: Topics, writer: Writer) -> None:
    writer.put()
    other = Writer(topics).next()
    wrong = {
        "digest": writer.put(digest="0" * 64, chain_digest=chain_digest_of(None, "0" * 64)),
        "codec": writer.put(codec="gzip", state=b"no gzip"),
        "size": writer.put(size_bytes=3),
        "structure": writer.put(**{f: getattr(other, f) for f in ("state", "codec", "size_bytes", "digest")}),
    }
    sound = [writer.put()]
    skipped = writer.next()
    wrong["chain_gap"] = writer.put()
    sound.append(writer.put())
    wrong["chain_fork"] = writer.put(chain_digest="1" * 64)
    sound.append(writer.put())
    wrong["replayed"] = replace(skipped, event_id=str(uuid.uuid4()))
    topics.put(wrong["replayed"])
    sound.append(writer.put())
    evidence = writer.put(state=b"{", evidence=True)
    in_tables(at, evidence)

    report = proof(at, writer)
    assert found(report) == sorted((record.checkpoint_id, reason) for reason, record in wrong.items())
    assert (report.failed, report.evidence, report.proven) == (len(wrong), 1, len(sound) + 1)
    assert report.checkpoints == len(wrong) + len(sound) + 2
    only = proof(at, writer, checkpoint_id=wrong["chain_fork"].checkpoint_id)
    assert found(only) == [(wrong["chain_fork"].checkpoint_id, "chain_fork")]


def test_a_row_that_is_not_what_the_log_says_is_found(at: Addresses, writer: Writer) -> None:
    records = [writer.put() for _ in range(6)]
    in_tables(at, records[-1])
    ids = [record.checkpoint_id for record in records]
    change(at, "UPDATE workflow_checkpoints SET state_data = state_data || '{\"data\": {}}' WHERE id = %s", ids[0])
    change(at, "UPDATE workflow_checkpoints SET checksum = %s WHERE id = %s", "f" * 64, ids[1])
    change(at, "UPDATE workflow_checkpoints SET log_offset = log_offset + 1000000 WHERE id = %s", ids[2])
    change(at, "DELETE FROM workflow_checkpoints WHERE id = %s", ids[3])
    report = proof(at, writer)
    assert found(report) == sorted(
        [(ids[0], "table"), (ids[1], "table"), (ids[2], "log"), (ids[2], "table"), (ids[3], "table")]
    )
    details = {f.checkpoint_id: f.detail for f in report.failures if f.checkpoint_id in ids[:2]}
    assert "column state_data" in details[ids[0]] and "column checksum" in details[ids[1]]


def test_what_expired_needs_no_row_and_what_was_rejected_is_told(at: Addresses, topics: Topics, writer: Writer) -> None:
    records = [writer.put() for _ in range(3)]
    topics.put(
        build(
            CheckpointsExpired,
            writer.workflow_id,
            checkpoint_ids=(records[0].checkpoint_id,),
            event_ids=(records[0].event_id,),
            reason="max_checkpoints",
        ),
        build(
            CheckpointRejected,
            writer.workflow_id,
            checkpoint_id=records[1].checkpoint_id,
            step_id="one",
            reason="decryption",
            detail="the keeper could not open it",
            detected_by="scrub",
        ),
    )
    in_tables(at, writer.put())
    report = proof(at, writer)
    assert found(report) == [(records[1].checkpoint_id, "rejected")]
    assert "scrub" in report.failures[0].detail
    assert report.checkpoints == 3, "the expired one has no row"


def test_claims_and_sealed_states_are_proven_with_the_keys(
    at: Addresses, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek = KeyRing("k1", {"k1": os.urandom(32)})
    monkeypatch.setenv("KINTSUGI_TEST_KEYS", kek.dump().decode())
    objects = Objects(at.objects)
    key = Keystore(kek, objects).current(writer.workflow_id)

    def sealed(protection: str, *, claimed: bool = False, spoiled: bool = False) -> CheckpointCreated:
        record = replace(writer.next(), protection=protection)
        assert record.state is not None
        stored = seal(record.state, key, protection=protection, binding=binding_of(record))
        if spoiled:
            stored = stored[:-1] + bytes([stored[-1] ^ 1])
        if claimed:
            record = replace(record, state=None, claim_uri=claims.put(objects, stored))
        else:
            record = replace(record, state=stored)
        writer.topics.put(record)
        return record

    sealed("hmac-sha256")
    sealed("aes-256-gcm")
    sealed("aes-256-gcm", claimed=True)
    broken = sealed("aes-256-gcm", spoiled=True)
    gone = sealed("hmac-sha256", claimed=True)
    damaged = sealed("aes-256-gcm", claimed=True)
    assert gone.claim_uri is not None and damaged.claim_uri is not None
    objects.delete(claims.path_of(gone.claim_uri))
    objects.put(claims.path_of(damaged.claim_uri), b"other bytes")
    bare = writer.put()
    in_tables(at, bare)

    blind = proof(at, writer)
    assert found(blind) == sorted([(gone.checkpoint_id, "claim_missing"), (damaged.checkpoint_id, "claim")])
    assert (blind.unreadable, blind.proven, blind.complete) == ({"no_keys": 4}, 1, False)

    monkeypatch.setenv("KINTSUGI_KEYS", "env:KINTSUGI_TEST_KEYS")
    report = proof(at, writer)
    assert found(report) == sorted(
        [
            (broken.checkpoint_id, "decryption"),
            (gone.checkpoint_id, "claim_missing"),
            (damaged.checkpoint_id, "claim"),
            (bare.checkpoint_id, "unsealed"),
        ]
    )
    assert (report.unreadable, report.proven) == ({}, 3)

    Keystore(kek, objects).erase(writer.workflow_id, actor="ann", reason="asked")
    erased = proof(at, writer)
    assert erased.unreadable == {"key_erased": 4}
    assert erased.complete, "it was erased on purpose"


def test_the_command_says_what_fails_and_exits_with_6(at: Addresses, writer: Writer) -> None:
    records = [writer.put(), writer.put(size_bytes=3), writer.put()]
    in_tables(at, records[-1])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command({**os.environ, **at.environment()}, "checkpoints", *arguments)

    done = run("verify", "--workflow", writer.workflow_id, "--output", "json")
    assert done.returncode == 6
    told = json.loads(done.stdout)
    assert [(f["checkpoint_id"], f["reason"]) for f in told["failures"]] == [(records[1].checkpoint_id, "size")]
    assert (told["proven"], told["sound"], told["counts"]) == (2, False, {"size": 1})
    assert "3 checkpoints in" in done.stderr and "/s)" in done.stderr
    assert run("verify", records[0].checkpoint_id).returncode == 0
    text = run("verify", records[1].checkpoint_id)
    assert text.returncode == 6 and "declared 3 bytes" in text.stdout
    assert run("verify").returncode == 2
    assert run("verify", "--all", "--workflow", writer.workflow_id).returncode == 2
    assert run("verify", str(uuid.uuid4())).returncode == 3
