"""Migrations tried before a deployment: how they are found, and what is said of each state."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.history import Bounds
from ops.checkpoint_log import CheckpointLog
from ops.commands.migrate import _check_of
from ops.state import FAILURES_SHOWN_MAX, PASSED_OVER_MAX, Report, load_migrations, try_migrations, version_to_reach
from schemas.codec import Codec
from schemas.errors import ConfigError, RetriableError, StateError
from schemas.log_record import LogRecord
from schemas.migrations import Migrations
from schemas.records.events import CheckpointCreated

MODULE = """
from kintsugi_client import Client, Migrations

chain = Migrations()

@chain.add("1", "2")
def rename(data):
    data["title"] = data.pop("name")
    return data

client = Client.connect("app", kafka="127.0.0.1:1")
kind = client.workflow_type("app", version="2", migrations=chain)
client.close(0)

class Holder:
    inner = chain

empty = Migrations()
number = 5
words = {"a": "b"}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A working directory with a module of its own; the module's name."""
    name = f"app_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("raise RuntimeError('no database')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(("path", "version"), [("chain", None), ("kind", "2"), ("Holder.inner", None)])
def test_migrations_are_found_in_the_working_directory(here: str, path: str, version: str | None) -> None:
    migrations, named = load_migrations(f"{here}:{path}")
    assert named == version
    assert migrations.run({"name": "x"}, "1", "2").data == {"title": "x"}
    assert version_to_reach(migrations, None, named) == "2"
    assert version_to_reach(migrations, "7", named) == "7"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "is not package.module:OBJECT"),
        (":chain", "is not package.module:OBJECT"),
        ("no_such_module_anywhere:x", "ModuleNotFoundError"),
        ("HERE:missing", "has no attribute 'missing'"),
        ("HERE_broken:x", "RuntimeError: no database"),
        ("HERE:number", "is a int, not package.module:OBJECT"),
        ("HERE:words", "is a dict, not package.module:OBJECT"),
        ("HERE:empty", "holds no migration"),
    ],
)
def test_what_are_no_migrations_is_refused(here: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_migrations(name.replace("HERE", here))


def test_migrations_with_several_ends_need_a_version() -> None:
    migrations = Migrations()
    migrations.add("1", "2")(dict)
    migrations.add("1", "3")(dict)
    with pytest.raises(ConfigError, match="2, 3") as caught:
        version_to_reach(migrations, None, None)
    assert "--to" in (caught.value.hint or "")


def checkpoint(number: int) -> CheckpointCreated:
    return CheckpointCreated(
        event_id=str(uuid.uuid4()),
        workflow_id=str(uuid.UUID(int=number)),
        workflow_type="app",
        occurred_at=1,
        producer="test",
        checkpoint_id=str(uuid.UUID(int=number)),
        step_id="one",
        checkpoint_type="manual",
        sequence=1,
        state_version="1",
        codec="identity",
        size_bytes=2,
        digest="0" * 64,
        chain_digest="0" * 64,
        status="running",
        state=b"{}",
    )


class FakeLog:
    """One partition: at each offset the checkpoint of that number. `states`: their states, or what reading one raises;
    what is not among them is not in the log."""

    def __init__(self, states: dict[int, dict[str, Any] | Exception | bytes]) -> None:
        self.states = states
        self.codec = Codec()
        self.history = self
        self.ranges: list[tuple[int, int]] = []

    def bounds(self) -> dict[int, Bounds]:
        return {0: Bounds(first=0, low=0, end=max(self.states) + 1)}

    def read(self, ranges: dict[int, tuple[int, int]], *, on_gap: Any) -> Iterator[LogRecord]:
        ((partition, (start, end)),) = ranges.items()
        self.ranges.append((start, end))
        for offset in range(start, end):
            found = self.states.get(offset)
            record = checkpoint(offset)
            value = found if isinstance(found, bytes) else self.codec.encode(record)
            if found is not None:
                yield LogRecord(partition, offset, 0, 2, record.workflow_id.encode(), value, ())

    def state(self, record: CheckpointCreated) -> dict[str, Any]:
        found = self.states[uuid.UUID(record.checkpoint_id).int]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, dict)
        return found


def rows_of(versions: dict[int, str]) -> list[dict[str, Any]]:
    """Rows of the tables, in no certain order."""
    rows = []
    for number, version in reversed(versions.items()):
        ids = {"id": uuid.UUID(int=number), "workflow_id": uuid.UUID(int=number)}
        rows.append({**ids, "state_version": version, "log_partition": 0, "log_offset": number})
    return rows


def tried(states: dict[int, Any], versions: dict[int, str], **options: Any) -> Report:
    migrations = Migrations()

    @migrations.add("1", "2")
    def rename(data: dict[str, Any]) -> dict[str, Any]:
        data["title"] = data.pop("name")
        return data

    rows = rows_of(versions)
    return try_migrations(cast(CheckpointLog, FakeLog(states)), rows, len(rows) + 1, migrations, "2", **options)


def test_each_state_is_counted_under_its_version_and_failures_say_why() -> None:
    steps: list[int] = []
    report = tried(
        {
            1: {"data": {"name": "a"}},
            2: {"data": {}},
            3: StateError("digest", "the bytes are not those that were saved"),
            4: StateError("key_erased", "the data keys were erased"),
            6: {"data": {}},
            7: {"data": "text"},
            8: {"data": {}},
        },
        {1: "1", 2: "1", 3: "1", 4: "1", 5: "2", 6: "9", 7: "1", 8: "0"},
        tried=steps.append,
    )
    assert steps == list(range(1, 9))
    assert (report.workflows, report.without, report.failed) == (9, 1, 5)
    assert [(v.state_version, v.passed, v.failed, v.erased) for v in report.versions] == [
        ("0", 0, 1, 0),
        ("1", 1, 3, 1),
        ("2", 1, 0, 0),
        ("9", 0, 1, 0),
    ]
    assert [(f.state_version, f.reason) for f in report.failures] == [
        ("1", "migration_failed"),
        ("1", "digest"),
        ("9", "downgrade"),
        ("1", "structure"),
        ("0", "migration_missing"),
    ]
    assert report.failures[0].detail == "migration '1' -> '2': KeyError: 'name'"
    assert report.failures[0].checkpoint_id == str(uuid.UUID(int=2))


def test_failures_listed_are_bounded_and_counts_are_not() -> None:
    many = range(FAILURES_SHOWN_MAX + 5)
    report = tried({n: {"data": {}} for n in many}, dict.fromkeys(many, "1"))
    assert (len(report.failures), report.failed) == (FAILURES_SHOWN_MAX, len(many))


def test_what_is_away_is_no_failure_of_a_state() -> None:
    with pytest.raises(RetriableError):
        tried({1: RetriableError("the store is away")}, {1: "1"})


def test_what_is_not_in_the_log_or_is_something_else_is_told() -> None:
    other = Codec().encode(checkpoint(77))
    report = tried(
        {1: {"data": {"name": "a"}}, 2: b"no record of ours", 4: other, 6: {"data": {"name": "a"}}},
        {1: "1", 2: "1", 3: "1", 4: "1", 6: "1", 9: "1"},
    )
    assert sorted((uuid.UUID(f.workflow_id).int, f.reason) for f in report.failures) == [
        (2, "log"),
        (3, "gone"),
        (4, "log"),
        (9, "gone"),
    ]


def test_neighbours_in_the_log_are_read_at_once_and_others_by_themselves() -> None:
    state = {"data": {"name": "a"}}
    far = 10 + PASSED_OVER_MAX + 1
    log = FakeLog({1: state, 5: state, 10: state, far: state, far + 7: state})
    rows = rows_of({1: "1", 10: "1", far: "1", far + 3: "2"})
    migrations = Migrations()
    migrations.add("1", "2")(dict)
    assert try_migrations(cast(CheckpointLog, log), rows, 4, migrations, "2").failed == 0
    assert log.ranges == [(1, 11), (far, far + 1)]


def test_a_schema_is_asked_about_every_state(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}')
    report = tried(
        {1: {"data": {"name": "a"}}, 2: {"data": {"name": 5}}, 3: {"data": {"title": "b"}}, 4: {"data": {}}},
        {1: "1", 2: "1", 3: "2", 4: "2"},
        check=_check_of(schema),
    )
    assert [(f.workflow_id[-1], f.reason) for f in report.failures] == [("2", "migration_failed"), ("4", "schema")]


@pytest.mark.parametrize("text", ["{", "[]", '{"type": 5}', '{"$ref": "https://example.org/x"}'])
def test_a_schema_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(text)
    with pytest.raises(ConfigError, match=r"schema\.json"):
        _check_of(schema)
