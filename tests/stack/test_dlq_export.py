"""`kintsugi dlq export` on the real stack: complete, to be written again byte for byte, hidden where that is wanted."""

from __future__ import annotations

import json
import os
import uuid
from base64 import b64decode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from consumers.dead_letter import SIZE_HEADER
from engine.events import Delivered
from ops import dlq_export
from ops.stack import Addresses
from projections.parking import encoded
from projections.store import Store
from schemas.dead_letters import STAGE_APPLY, STAGE_DECODE, DeadLetter
from schemas.log_record import LogRecord
from schemas.records.events import WorkflowErrorOccurred
from schemas.redaction import REDACTED, Redaction
from schemas.topics import AUDIT, DEAD_LETTERS, EVENTS

from .cli import Cli
from .kit import Topics
from .test_parking import _BROKEN, mixed, of, run

SECRET = "canary-4711"
HEADERS = (("traceparent", b"00-1"), ("ce_id", None))


@pytest.fixture
def environment(own: Addresses) -> dict[str, str]:
    return {**os.environ, **own.environment(), "KINTSUGI_ACTOR": "ann"}


@pytest.fixture
def cli(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(environment, monkeypatch, capfd)


def raw(event: Delivered) -> LogRecord:
    return replace(encoded(event), headers=HEADERS)


@pytest.fixture
def parked(database: str) -> tuple[str, list[Delivered]]:
    """A workflow that is parked for an error with a secret in its context, and what waits of it."""
    run(database, _BROKEN)
    log, (known, _) = mixed("BOOM", "FINE")
    workflow_id = str(uuid.uuid4())  # the topics are shared: another test's workflow may have the known one
    log = [_own(event, known, workflow_id) for event in log]
    store = Store(database, redaction=Redaction(("**.password",)))
    store.claim(0)
    letter = DeadLetter(
        topic=EVENTS, partition=0, offset=len(log), timestamp_us=1_764_000_000_000_000, key=workflow_id.encode(),
        value=b"\x07" + SECRET.encode(), headers=[("h", b"v")], stage=STAGE_DECODE, reason="wrong_magic",
        detail=f"first bytes {SECRET}",
    )  # fmt: skip
    store.apply(0, log, [letter], start=0, end=len(log) + 1, raw=raw)
    store.close()
    return workflow_id, of(log, workflow_id)


def _own(event: Delivered, known: str, workflow_id: str) -> Delivered:
    """The event, as one of this test's own workflow, and with a secret if it is an error."""
    changed: dict[str, Any] = {"workflow_id": workflow_id} if event.record.workflow_id == known else {}
    if isinstance(event.record, WorkflowErrorOccurred):
        changed["context"] = json.dumps({"user": {"password": SECRET}})
    return replace(event, record=replace(event.record, **changed))


def lines(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def put_letter(addresses: Addresses, key: bytes, place: str, value: bytes | None, *headers: tuple[str, bytes]) -> None:
    """As the recovery role does."""
    producer = Producer({"bootstrap.servers": addresses.kafka})
    told = {
        "topic": EVENTS,
        "partition": "3",
        "offset": place,
        "stage": STAGE_DECODE,
        "exception.message": f"empty: {SECRET}",
    }
    why = [(f"__connect.errors.{name}", text.encode()) for name, text in told.items()]
    producer.produce(DEAD_LETTERS, key=key, value=value, headers=[("own", b"\xff"), *headers, *why])
    assert producer.flush(20) == 0


def test_all_that_was_set_aside_is_written_with_its_bytes_and_written_down(
    cli: Cli, own: Addresses, topics: Topics, parked: tuple[str, list[Delivered]], tmp_path: Path
) -> None:
    workflow_id, waiting = parked
    for place in ("41", "41", "7"):
        put_letter(own, workflow_id.encode(), place, b"\x00" + SECRET.encode())
    path = tmp_path / "a" / "set-aside.jsonl"
    asked = ("dlq", "export", "--workflow", workflow_id, "--file", str(path))
    assert cli(*asked).code == 2
    assert cli(*asked, "--reason", " ").code == 2
    assert not path.exists()
    done = cli(*asked, "--reason", "case 7", "--output", "json")
    assert done.code == 0, done.err
    assert {k: done.json[k] for k in ("parked", "table", "topic")} == {"parked": len(waiting), "table": 1, "topic": 2}
    assert path.stat().st_mode & 0o777 == 0o600 and os.listdir(path.parent) == [path.name]
    found = lines(path.read_bytes())

    for line, event in zip(found, waiting, strict=False):
        record = raw(event)
        assert (line["source"], line["topic"], line["partition"], line["offset"]) == ("parked", EVENTS, 0, event.offset)
        assert line["timestamp_us"] == event.timestamp_us
        assert b64decode(line["raw"]["value"]) == record.value and b64decode(line["raw"]["key"]) == record.key
        assert [(n, b64decode(v)) for n, v in line["raw"]["headers"]] == [("traceparent", b"00-1"), ("ce_id", b"")]
        assert line["sha256"] == sha256(record.value or b"").hexdigest()
        assert line["content"]["event_id"] == event.record.event_id
        assert SECRET not in json.dumps(line["content"])
    assert [line["reason"] for line in found[: len(waiting)]] == ["refused_by_postgres"] + ["waits_behind"] * (
        len(waiting) - 1
    )
    assert found[0]["content"]["context"] == {"user": {"password": REDACTED}}
    table, *topic = found[len(waiting) :]
    assert (table["source"], table["stage"], table["reason"]) == ("table", STAGE_DECODE, "wrong_magic")
    assert (b64decode(table["raw"]["value"]), table["unreadable"]) == (b"\x07" + SECRET.encode(), "wrong_magic")
    assert [(line["partition"], line["offset"], line["reason"]) for line in topic] == [
        (3, 41, "empty"),
        (3, 7, "empty"),
    ]
    assert topic[0]["raw"]["headers"] == [["own", "/w=="]] and topic[0]["detail"] == SECRET

    again = cli(*asked, "--reason", "case 7")
    assert again.code == 4 and "nothing is written over" in again.err
    entries = [json.loads(m.value() or b"{}") for m in topics.read(AUDIT)]
    told = [e for e in entries if e["subject"] == workflow_id]
    assert [(e["action"], e["actor"], e["outcome"], e["reason"]) for e in told] == [
        ("dlq.export", "ann", outcome, "case 7") for outcome in ("begun", "done")
    ]
    assert told[1]["detail"] == {
        "file": "set-aside.jsonl", "records": {"parked": len(waiting), "table": 1, "topic": 2}
    }  # fmt: skip


def test_without_bytes_nothing_that_is_hidden_leaves_and_nothing_is_written_down(
    cli: Cli, own: Addresses, topics: Topics, parked: tuple[str, list[Delivered]]
) -> None:
    workflow_id, waiting = parked
    put_letter(own, workflow_id.encode(), "41", None, (SIZE_HEADER, b"99999999"))
    assert cli("dlq", "export", "--redacted", "--reason", "why").code == 2
    done = cli("dlq", "export", "--workflow", workflow_id, "--redacted")
    assert done.code == 0, done.err
    assert SECRET not in done.out
    found = lines(done.out)
    assert [line["source"] for line in found] == ["parked"] * len(waiting) + ["table", "topic"]
    assert all("raw" not in line for line in found)
    assert (found[-1]["value_size_bytes"], found[-1]["sha256"]) == (99_999_999, None)
    every = cli("dlq", "export", "--redacted", "--source", "topic")
    assert found[-1] in lines(every.out)
    assert not [m for m in topics.read(AUDIT) if workflow_id.encode() in (m.value() or b"")]


def test_a_policy_that_hides_more_or_shows_no_states_is_kept_to(
    cli: Cli, parked: tuple[str, list[Delivered]], tmp_path: Path
) -> None:
    workflow_id, _ = parked
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "workflow_error_handling: {checkpoints: {redact: [user]}, debugging: {state_inspection: {enabled: false}}}",
        encoding="utf-8",
    )
    asked = ("--workflow", workflow_id, "--policy", str(policy))
    assert cli("dlq", "export", *asked, "--reason", "case 7").code == 7
    (first, *_) = lines(cli("dlq", "export", *asked, "--redacted").out)
    assert first["content"]["context"] == {"user": REDACTED}
    shown = cli("dlq", "show", workflow_id, "--policy", str(policy), "--contents", "2", "--output", "json").json
    assert [c["log_offset"] for c in shown["contents"]] == [w["log_offset"] for w in shown["waiting"][:2]]
    assert shown["contents"][0]["content"]["context"] == {"user": REDACTED}
    assert shown["parked"][0]["goes_on_with"].startswith("a table that takes its values")


@pytest.mark.parametrize(("records", "size"), [(1, 2**20), (2, 2**20), (500, 1)])
def test_records_are_read_a_few_at_a_time_and_all_of_them(
    cli: Cli,
    parked: tuple[str, list[Delivered]],
    database: str,
    records: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO kintsugi.dead_letters SELECT %s, p, o, %s, 'x', '[]', %s, 'discarded', '', now()"
            " FROM generate_series(0, 2) p, generate_series(900, 904) o",
            (EVENTS, parked[0].encode(), STAGE_APPLY),
        )
    asked = ("dlq", "export", "--workflow", parked[0], "--redacted", "--source")
    whole = [cli(*asked, source).out for source in ("parked", "table")]
    monkeypatch.setattr(dlq_export, "_BATCH_RECORDS_MAX", records)
    monkeypatch.setattr(dlq_export, "_BATCH_BYTES_MAX", size)
    assert [cli(*asked, source).out for source in ("parked", "table")] == whole
    found = [(line["partition"], line["offset"]) for line in lines(whole[1])]
    assert found == sorted(found) and len(found) == len(set(found)) == 16


def test_a_file_that_cannot_be_finished_is_not_there(
    cli: Cli, parked: tuple[str, list[Delivered]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set-aside.jsonl"
    monkeypatch.setattr(os, "fsync", _full)
    done = cli("dlq", "export", "--workflow", parked[0], "--redacted", "--source", "parked", "--file", str(path))
    assert done.code == 1 and "No space left" in done.err
    assert not [name for name in os.listdir(tmp_path) if "set-aside" in name]


def _full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_set_aside_is_an_empty_file(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "nothing.jsonl"
    done = cli("dlq", "export", "--workflow", str(uuid.uuid4()), "--file", str(path), "--redacted", "--output", "json")
    assert done.code == 0, done.err
    assert (done.json["parked"], done.json["size_bytes"], path.read_bytes()) == (0, 0, b"")
