"""The schemas on the real registry, with Confluent's own serializers as the oracle, and the command that registers."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from hypothesis import HealthCheck, given, settings

import ops.commands.schemas as command
import schemas.registry
from ops.output import MISMATCH, TEMPORARY, guarded
from ops.stack import Addresses
from schemas import release
from schemas.admission import admit
from schemas.catalog import Schema, load, shipped
from schemas.codec import Codec, Unknown
from schemas.errors import ConfigError, DecodeError, FatalError, RetriableError
from schemas.records import RECORD_TYPES, Record
from schemas.registry import COMPATIBILITY, Registry
from tests.unit.schemas.kit import NAMES, changed, field_of, records, step_started

from .kit import Role, Topics, failing, wait_for

NO_SUCH_ID = 2_000_000_001


@pytest.fixture
def registry(addresses: Addresses) -> Iterator[Registry]:
    """A client of the stack's registry that has asked nothing yet."""
    with Registry(addresses.registry) as found:
        yield found


@pytest.fixture(scope="module")
def confluent(addresses: Addresses) -> Iterator[SchemaRegistryClient]:
    """Confluent's own client."""
    with SchemaRegistryClient({"url": addresses.registry}) as found:
        yield found


def schema_of(raw: dict[str, Any]) -> Schema:
    """A schema under a subject of its own, which no other test and no role looks at."""
    return replace(load(json.dumps(raw)), topic=f"test.{uuid.uuid4()}")


def registered(registry: Registry, raw: dict[str, Any]) -> int:
    (done,) = registry.register([schema_of(raw)])
    assert done.schema_id is not None
    return done.schema_id


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\x00" + schema_id.to_bytes(4, "big") + body


def written(raw: dict[str, Any], value: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(raw, named_schemas={}), value)
    return out.getvalue()


# Confluent's serializer and ours.


def as_confluent_gives_it(record: Record) -> dict[str, Any]:
    """A record as the dict that a generic Avro reader makes: lists, not tuples."""

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: listed(v) for k, v in value.items()}
        return [listed(v) for v in value] if isinstance(value, tuple | list) else value

    found: dict[str, Any] = listed(asdict(record))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_confluent_writes_what_we_write_and_reads_what_we_read(
    name: str, registry: Registry, confluent: SchemaRegistryClient
) -> None:
    schema = shipped()[name]
    conf = {"subject.name.strategy": topic_record_subject_name_strategy}
    serialize = AvroSerializer(
        confluent, schema.text, lambda record, _: asdict(record), {**conf, "auto.register.schemas": False}
    )
    deserialize = AvroDeserializer(confluent, conf=conf)
    place = SerializationContext(schema.topic, MessageField.VALUE)
    codec = Codec(registry)

    def agree(record: Record) -> None:
        ours, theirs = codec.encode(record), serialize(record, place)
        assert ours == theirs
        assert deserialize(ours, place) == as_confluent_gives_it(record)
        assert codec.decode(theirs) == record

    for bare in (False, True):
        agree(release.sample(schema, bare=bare))
    settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])(
        given(records(name))(agree)
    )()


def test_what_confluent_writes_with_another_version_is_read(
    registry: Registry, confluent: SchemaRegistryClient
) -> None:
    def evolve(raw: dict[str, Any]) -> None:
        raw["fields"].remove(field_of(raw, "heartbeat_timeout_ms"))
        raw["fields"].append({"name": "colour", "type": "string", "default": "", "doc": "New."})
        field_of(raw, "event_id")["type"] = {"type": "string", "logicalType": "uuid"}

    schema = schema_of(changed("StepStarted", evolve))
    registry.register([schema])
    serialize = AvroSerializer(
        confluent,
        schema.text,
        conf={"subject.name.strategy": topic_record_subject_name_strategy, "auto.register.schemas": False},
    )
    record = step_started(timeout_ms=7)
    values = {**asdict(record), "event_id": uuid.UUID(record.event_id), "colour": "red"}
    data = serialize(values, SerializationContext(schema.topic, MessageField.VALUE))
    assert admit(Codec(registry), record.workflow_id.encode(), data) == record


def test_a_record_of_an_unknown_type_is_known_to_be_unknown(registry: Registry) -> None:
    raw = changed("StepStarted", lambda s: s.update(name="StepDreamed"))
    data = framed(registered(registry, raw), written(raw, asdict(step_started())))
    assert Codec(registry).decode(data) == Unknown("StepDreamed")


# The registry's own rules.


def refused(registry: Registry, schema: Schema) -> str:
    with pytest.raises(FatalError) as caught:
        registry.register([schema])
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["fields"].remove(field_of(raw, "step_id")),
        lambda raw: raw["fields"].append({"name": "colour", "type": "string", "doc": "No default."}),
        lambda raw: field_of(raw, "step_id").update(type="long"),
    ],
)
def test_registry_refuses_an_incompatible_version(registry: Registry, change: Callable[[dict[str, Any]], None]) -> None:
    first = schema_of(changed("StepStarted", lambda raw: None))
    registry.register([first])
    broken = replace(load(json.dumps(changed("StepStarted", change))), topic=first.topic)
    assert f"{first.subject}: the registry refused it" in refused(registry, broken)
    assert registry.lookup(first) is not None
    assert registry.lookup(broken) is None


def test_registry_compares_with_all_versions_not_with_the_last_alone(
    registry: Registry, confluent: SchemaRegistryClient
) -> None:
    def version(*fields: dict[str, Any]) -> dict[str, Any]:
        return {"type": "record", "name": "R", "namespace": "kintsugi", "fields": list(fields)}

    stays = {"name": "a", "type": "int", "default": 0}
    first = schema_of(version(stays, {"name": "b", "type": "string", "default": ""}))
    second = replace(load(json.dumps(version(stays))), topic=first.topic)
    third = replace(load(json.dumps(version(stays, {"name": "b", "type": "int", "default": 0}))), topic=first.topic)
    registry.register([first, second])
    assert "the registry refused it" in refused(registry, third)
    assert confluent.get_compatibility(first.subject) == COMPATIBILITY


def test_registering_again_changes_nothing(registry: Registry, confluent: SchemaRegistryClient) -> None:
    schema = schema_of(changed("StepStarted", lambda raw: None))
    states = [registry.register([schema], dry_run=dry_run)[0] for dry_run in (True, False, True, False)]
    assert [s.state for s in states] == ["missing", "new", "registered", "registered"]
    assert states[0].schema_id is None
    assert states[1].schema_id is not None
    assert len({s.schema_id for s in states[1:]}) == 1
    assert confluent.get_versions(schema.subject) == [1]


def test_a_schema_that_is_not_registered_stops_the_writer(registry: Registry) -> None:
    schema = schema_of(changed("StepStarted", lambda raw: None))
    with pytest.raises(FatalError, match="is not registered") as caught:
        registry.id_of(schema)
    assert caught.value.hint == "run: kintsugi schemas register"


# Ids nobody knows, and a registry that is away.


@pytest.fixture
def requests(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids that the registry was really asked for."""
    asked: list[int] = []
    get_schema = registry._client.get_schema

    def counted(schema_id: int, *arguments: Any, **named: Any) -> Any:
        asked.append(schema_id)
        return get_schema(schema_id, *arguments, **named)

    monkeypatch.setattr(registry._client, "get_schema", counted)
    return asked


def reason_of(codec: Codec, data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        codec.decode(data)
    return caught.value.reason


def test_an_unknown_id_is_asked_for_once_until_it_may_be_known(
    registry: Registry, requests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    junk = framed(NO_SUCH_ID, b"x")
    codecs = [Codec(registry) for _ in range(3)]
    assert [reason_of(codec, junk) for codec in codecs * 5] == ["unknown_schema_id"] * 15
    assert requests == [NO_SUCH_ID]
    monkeypatch.setattr(schemas.registry, "UNKNOWN_ID_TTL_S", 0.0)
    for _ in range(2):
        assert reason_of(codecs[0], framed(NO_SUCH_ID + 1, b"x")) == "unknown_schema_id"
    assert requests == [NO_SUCH_ID, NO_SUCH_ID + 1, NO_SUCH_ID + 1]


def test_unknown_ids_take_bounded_memory(
    registry: Registry, requests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas.registry, "UNKNOWN_IDS_MAX", 3)
    for number in range(8):
        assert registry.text_of(NO_SUCH_ID + number) is None
    assert len(registry._unknown) <= 3
    assert len(requests) == 8


def test_threads_share_one_request_for_one_id(registry: Registry, requests: list[int]) -> None:
    with Registry(registry.url) as other:
        schema_id = other.id_of(shipped()["StepStarted"])
        data = Codec(other).encode(step_started())
    found: list[Record | Unknown] = []
    threads = [threading.Thread(target=lambda: found.append(Codec(registry).decode(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [step_started()] * 8
    assert requests == [schema_id]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Failing(BaseHTTPRequestHandler):
    """A registry whose own database is away."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(params=["refuses", "hangs", "fails"])
def away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a registry that does not do its work."""
    if request.param == "refuses":
        yield f"http://127.0.0.1:{closed_port()}"
    elif request.param == "hangs":
        monkeypatch.setattr(schemas.registry, "_TIMEOUT_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
    else:
        with HTTPServer(("127.0.0.1", 0), Failing) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join(10)


def test_a_registry_that_is_away_means_try_again(away: str) -> None:
    with Registry(away) as registry:
        codec = Codec(registry)
        for use in (
            lambda: codec.decode(framed(7, b"x")),
            lambda: codec.encode(step_started()),
            lambda: registry.register(shipped().values()),
            lambda: registry.compare(),
        ):
            with pytest.raises(RetriableError, match="does not answer") as caught:
                use()
            assert caught.value.hint == "run: kintsugi doctor"
        # Away is not unknown: nothing of it is remembered, and what needs no registry goes on.
        assert registry._unknown == {}
        assert codec.decode(Codec().encode(step_started())) == step_started()


@pytest.mark.parametrize("url", ["", "localhost:8081", "ftp://registry", "mock://"])
def test_an_address_that_is_none_names_the_key(url: str) -> None:
    with pytest.raises(ConfigError, match="KINTSUGI_REGISTRY"):
        Registry(url)


# Poison that arrives by a registered schema.


def test_a_schema_that_kills_decoders_is_set_aside_and_the_partition_moves_on(
    topics: Topics, start: Callable[..., Role]
) -> None:
    """Decoded, the first would end the process (a million levels deep), the second would spin for years."""
    node = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"], "default": None}]}
    nulls = {"type": "record", "name": "N", "fields": [{"name": "x", "type": {"type": "array", "items": "null"}}]}
    deep = framed(registered(topics.registry, node), b"\x02" * 1_000_000 + b"\x00")
    endless = framed(registered(topics.registry, nulls), b"\xff\xff\xff\xff\xff\xff\xff\x7f\x00")
    role = start()
    role.wait_log("partitions assigned")
    bad = {str(uuid.uuid4()): data for data in (deep, endless)}
    for key, data in bad.items():
        topics.raw(key.encode(), data)
        topics.put(*failing(key))  # behind it, in the same partition
    wait_for("commands behind both", lambda: {c.workflow_id for c in topics.commands(set(bad))} == set(bad))
    for key, data in bad.items():
        (letter,) = topics.dead_letters(key.encode())
        assert letter.value() == data
        reason: Any = dict(letter.headers() or [])["__connect.errors.exception.message"]
        assert reason.startswith(b"unsafe_schema: ")
    assert role.metric("kintsugi_dlq_records_total", reason="unsafe_schema") == 2
    assert role.stop() == 0


# The command.


def kintsugi(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "kintsugi"), "schemas", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_register_is_idempotent_and_speaks_json(environment: dict[str, str]) -> None:
    runs = [kintsugi(environment, "register", *more, "--output", "json") for more in ([], ["--dry-run"], [])]
    assert [done.returncode for done in runs] == [0, 0, 0], runs[0].stderr
    rows = [json.loads(done.stdout) for done in runs]
    assert rows[0] == rows[1] == rows[2]
    assert {row["subject"]: row["state"] for row in rows[0]} == {s.subject: "registered" for s in shipped().values()}
    assert all(row["id"] > 0 for row in rows[0])


def test_check_and_lint_say_that_all_is_well(environment: dict[str, str]) -> None:
    for arguments, talk in (
        (["check"], "every schema is compatible and registered"),
        (["check", "--offline"], "every schema is compatible"),
        (["lint"], f"{len(RECORD_TYPES)} schemas, no problem"),
    ):
        done = kintsugi(environment, *arguments)
        assert (done.returncode, done.stdout, done.stderr.strip()) == (0, "", talk)
    assert json.loads(kintsugi(environment, "check", "--output", "json").stdout) == []


def test_offline_check_needs_no_registry_the_others_say_that_it_is_away(environment: dict[str, str]) -> None:
    nowhere = {**environment, "KINTSUGI_REGISTRY": f"http://127.0.0.1:{closed_port()}"}
    assert kintsugi(nowhere, "check", "--offline").returncode == 0
    for arguments in (["check"], ["register"]):
        done = kintsugi(nowhere, *arguments)
        assert done.returncode == TEMPORARY
        assert "does not answer" in done.stderr
        assert "kintsugi doctor" in done.stderr


@pytest.fixture
def run(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Runs the command here with other schemas than those that ship: (exit code, rows, talk)."""
    for key, value in environment.items():
        if key.startswith("KINTSUGI_"):
            monkeypatch.setitem(os.environ, key, value)

    def with_schemas(schemas_: list[Schema], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        for module in (command, schemas.registry):
            monkeypatch.setattr(module, "shipped", lambda: {s.name: s for s in schemas_})
        monkeypatch.setattr(sys, "argv", ["kintsugi schemas", *arguments, "--output", "json"])
        code = 0
        try:
            guarded(command.schemas)
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, talk = capsys.readouterr()
        return code, json.loads(out) if out else [], talk

    return with_schemas


def test_missing_schema_is_told_registered_and_then_well(run: Callable[..., tuple[int, Any, str]]) -> None:
    schema = schema_of(changed("StepStarted", lambda raw: None))
    missing = {"schema": schema.subject, "against": "registry", "problem": "missing"}
    assert run([schema], "check")[:2] == (MISMATCH, [missing])
    assert run([schema], "register", "--dry-run")[:2] == (
        0,
        [{"subject": schema.subject, "id": None, "state": "missing"}],
    )
    assert run([schema], "check")[:2] == (MISMATCH, [missing])
    code, (row,), _ = run([schema], "register")
    assert (code, row["state"]) == (0, "new")
    assert run([schema], "check")[:2] == (0, [])


def test_newer_version_in_the_registry_is_told(run: Callable[..., tuple[int, Any, str]], registry: Registry) -> None:
    ours = schema_of(changed("StepStarted", lambda raw: None))
    extra = {"name": "colour", "type": "string", "default": "", "doc": "New."}
    newer = replace(load(json.dumps(changed("StepStarted", lambda raw: raw["fields"].append(extra)))), topic=ours.topic)
    registry.register([ours, newer])
    assert run([ours], "check")[:2] == (
        MISMATCH,
        [{"schema": ours.subject, "against": "registry", "problem": "newer"}],
    )


def test_refused_schema_fails_the_deployment(run: Callable[..., tuple[int, Any, str]], registry: Registry) -> None:
    first = schema_of(changed("StepStarted", lambda raw: None))
    registry.register([first])
    broken = changed("StepStarted", lambda raw: raw["fields"].remove(field_of(raw, "step_id")))
    code, rows, talk = run([replace(load(json.dumps(broken)), topic=first.topic)], "register")
    assert (code, rows) == (1, [])
    assert "the registry refused it" in talk


def test_lint_names_the_schema_and_the_rule(run: Callable[..., tuple[int, Any, str]]) -> None:
    broken = schema_of(changed("StepStarted", lambda raw: field_of(raw, "step_id").pop("doc")))
    code, rows, talk = run([broken], "lint")
    assert (code, rows) == (MISMATCH, [{"schema": "StepStarted", "problem": "field step_id has no doc"}])
    assert "docs/schemas.md" in talk
    assert (Path(__file__).parents[2] / "docs" / "schemas.md").is_file()
