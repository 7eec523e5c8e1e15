"""The generated records, the topics and the ids: what is written down twice agrees, what is frozen stays."""

from __future__ import annotations

import json
import uuid
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import schemas
from schemas import topics
from schemas.catalog import by_fingerprint, shipped
from schemas.generate import render, snake
from schemas.ids import derive_id, uuid_bytes, uuid_text
from schemas.records import COMMAND_TYPES, COORDINATION_TYPES, EVENT_TYPES, RECORD_TYPES, Command

from .kit import NAMES

FOLDER = Path(schemas.__file__).parent


@pytest.mark.parametrize("folder", ["events", "commands"])
def test_records_are_what_the_schemas_say(folder: str) -> None:
    on_disk = (FOLDER / "records" / f"{folder}.py").read_text(encoding="utf-8")
    assert on_disk == render(folder), "run: python -m schemas.generate"


@pytest.mark.parametrize("name", NAMES)
def test_record_has_the_fields_and_defaults_of_its_schema(name: str) -> None:
    schema = json.loads(shipped()[name].text)
    kind = RECORD_TYPES[name]
    assert {f.name for f in fields(kind)} == {f["name"] for f in schema["fields"]}
    given_ = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    declared = {f["name"]: f["default"] for f in schema["fields"] if "default" in f}
    assert given_ == {name: () if value == [] else value for name, value in declared.items()}


def test_every_schema_file_is_named_after_its_record_and_shipped_once() -> None:
    files = sorted(path.stem for path in FOLDER.glob("avsc/*/*.avsc"))
    assert files == sorted(snake(name) for name in shipped())
    assert set(shipped()) == set(RECORD_TYPES)
    assert len(by_fingerprint()) == len(shipped())


def test_commands_and_events_go_to_their_topics() -> None:
    assert {s.name for s in shipped().values() if s.topic == topics.COMMANDS} == set(COMMAND_TYPES)
    assert {s.name for s in shipped().values() if s.topic == topics.EVENTS} == set(EVENT_TYPES)
    assert {s.name for s in shipped().values() if s.topic == topics.COORDINATION} == set(COORDINATION_TYPES)
    assert all(issubclass(kind, Command) for kind in COMMAND_TYPES.values())
    assert not any(issubclass(kind, Command) for kind in EVENT_TYPES.values())
    assert shipped()["StepStarted"].subject == "workflow.events-kintsugi.StepStarted"
    assert shipped()["RetryStep"].subject == "workflow.commands-kintsugi.RetryStep"


def test_every_topic_takes_the_largest_message_and_says_how_long_it_keeps_it() -> None:
    names = [topic.name for topic in topics.TOPICS]
    assert sorted(names) == sorted({topics.EVENTS, topics.COMMANDS, topics.COORDINATION, topics.POLICIES, topics.AUDIT,
                                    topics.DEAD_LETTERS})  # fmt: skip
    assert len(names) == len(set(names))
    for topic in topics.TOPICS:
        assert int(topic.config["max.message.bytes"]) >= topics.MESSAGE_SIZE_BYTES_MAX
        assert topic.partitions >= 1
        assert topic.purpose
        assert "retention.ms" in topic.config or topic.config["cleanup.policy"] == "compact"


def test_dead_letters_keep_partition_time_and_size_of_what_they_hold() -> None:
    by_name = {topic.name: topic for topic in topics.TOPICS}
    source, dead = by_name[topics.EVENTS], by_name[topics.DEAD_LETTERS]
    assert dead.partitions == source.partitions
    assert dead.config["message.timestamp.type"] == "CreateTime"
    assert source.config["message.timestamp.type"] == "LogAppendTime"
    assert int(dead.config["max.message.bytes"]) > int(source.config["max.message.bytes"])


# Ids.

NAMESPACE = uuid.UUID("6b696e74-7375-5769-8000-676f6c646a6f")


@pytest.mark.parametrize(
    ("cause", "kind", "number", "id_"),
    [
        ("", "", 0, "96b048e6-242d-5b25-91bc-101507dada8f"),
        ("e", "k", 0, "2c7c6f0f-2db9-5998-a27c-304c98181875"),
        ("0d4f0a1e-9b1c-4c1e-8f5e-1f2e3d4c5b6a", "attempt", 3, "c46e0336-34a8-5c39-96b9-910136b40105"),
        ("é漢😀", "command", 2**31, "72c43719-7aa5-5857-9488-f94116772f0e"),
    ],
)
def test_derived_ids_never_change(cause: str, kind: str, number: int, id_: str) -> None:
    assert derive_id(cause, kind, number) == id_


@given(st.text(), st.text(), st.integers())
def test_derived_id_is_a_version_5_uuid(cause: str, kind: str, number: int) -> None:
    assert derive_id(cause, kind, number) == str(uuid.uuid5(NAMESPACE, f"{cause}|{kind}|{number}"))


@given(st.uuids())
def test_uuid_text_and_bytes_are_each_others_inverse(value: uuid.UUID) -> None:
    assert uuid_bytes(str(value)) == value.bytes
    assert uuid_text(value.bytes) == str(value)


GOOD = "88995189-e6ae-55f9-abce-6bd9015256a3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        GOOD.upper(),
        GOOD.replace("-", ""),
        f"{{{GOOD}}}",
        f"urn:uuid:{GOOD}",
        f" {GOOD[1:]}",
        GOOD[:-1],
        GOOD + "0",
        GOOD[:-1] + "g",
        GOOD[:-1] + " ",
        GOOD[:-1] + "-",
        GOOD[:-1] + "٣",
        "88995189e6ae-55f9-abce--6bd9015256a3",
        "\x00" * 36,
    ],
)
def test_anything_but_a_canonical_uuid_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        uuid_bytes(text)


@given(st.text(alphabet="0123456789abcdefABCDEF- \n\x00é", min_size=30, max_size=40))
def test_a_text_is_refused_unless_the_library_writes_it_back(text: str) -> None:
    try:
        found = uuid_text(uuid_bytes(text))
    except ValueError:
        return
    assert found == text == str(uuid.UUID(text))
