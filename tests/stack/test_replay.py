"""`kintsugi replay` on the real log: it asks for what was recorded, writes nothing, and says what a range lacks."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from engine.events import Delivered
from ops.stack import Addresses
from projections.catalog import TABLES
from projections.digest import differences
from projections.filling import copy_rows
from projections.fold import Folded
from schemas.codec import Unknown
from schemas.records.events import DebugSessionFinished, DebugSessionStarted, RecoveryDecided
from schemas.topics import EVENTS

from .cli import Cli
from .kit import Role, Topics, failing, stand_at_end, wait_for


@pytest.fixture
def environment(own: Addresses) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def cli(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(environment, monkeypatch, capfd)


class Decided(NamedTuple):
    """A workflow whose failure was decided on, and where its records lie: partition, first offset, behind the last."""

    workflow_id: str
    partition: int
    first: int
    end: int

    @property
    def span(self) -> tuple[str, ...]:
        """As options of a replay."""
        place = f"{self.partition}:"
        return ("--from", f"{place}{self.first}", "--to", f"{place}{self.end}", "--workflow", self.workflow_id)


@pytest.fixture(scope="module")
def decided(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decided]:
    """One for all tests: what they add to it lies behind its end."""
    topics, folder = Topics(addresses), tmp_path_factory.mktemp("recovery")
    workflow_id, group = str(uuid.uuid4()), f"test-{uuid.uuid4()}"
    stand_at_end(addresses.kafka, group)
    own = {**os.environ, **addresses.environment(), "KINTSUGI_OBJECTS": (folder / "objects").as_uri()}
    role = Role("recovery", own, folder / "recovery.log", "--group", group)
    try:
        role.wait_log("partitions assigned")
        topics.put(*failing(workflow_id))
        wait_for("a command", lambda: topics.commands({workflow_id}))
        assert role.stop() == 0
        messages = topics.read(EVENTS, {workflow_id})
        yield Decided(
            workflow_id, messages[0].partition() or 0, messages[0].offset() or 0, (messages[-1].offset() or 0) + 1
        )
    finally:
        role.kill()
        topics.registry.close()


def test_a_range_is_replayed_alike_each_time_and_changes_nothing(topics: Topics, decided: Decided, cli: Cli) -> None:
    workflow_id, span = decided.workflow_id, decided.span

    def sessions() -> list[int]:
        return [len(topics.events(kind, {workflow_id})) for kind in (DebugSessionStarted, DebugSessionFinished)]

    commands, [begun, ended] = len(topics.commands({workflow_id})), sessions()

    once = cli("replay", *span, "--json", "--step")
    assert once.code == 0, once.err
    *steps, last = (json.loads(line) for line in once.out.splitlines())
    document = last["summary"]
    [decision] = document["decisions"]
    assert (decision["verdict"], decision["strategy"]) == ("same", "increase_timeout_and_retry")
    assert document["commands"] == {"RetryStep": 1}
    assert document["commands_compared"] == {"same": 1}
    assert document["agrees"] is True and document["not_projected"]["records"] == 0
    opened = next(s for s in steps if s["event"] == "WorkflowErrorOccurred")
    assert (opened["engine"]["before"]["cases"], len(opened["engine"]["after"]["cases"])) == ([], 1)
    assert cli("replay", *span, "--json", "--step").out == once.out

    injected = ("--inject", f"drop@{opened['place']}", "--inject", f"kill@{steps[1]['place']}")
    changed = cli("replay", *span, "--json", *injected)
    assert changed.code == 0 and changed.json["decisions"][0]["verdict"] == "not_asked"
    assert changed.json["commands_compared"] == {"not_asked": 1}
    assert changed.json["kills"][0]["same_states"] and changed.json["kills"][0]["same_effects"]

    assert len(topics.commands({workflow_id})) == commands
    assert len(topics.events(RecoveryDecided, {workflow_id})) == 1
    assert sessions() == [begun + 3, ended + 3]
    assert {session.status for session in topics.events(DebugSessionFinished, {workflow_id})} == {"completed"}


def applied(own: Addresses, topics: Topics, workflow_id: str) -> None:
    """What a projector makes of one workflow's events, in the live tables."""
    folded = Folded(TABLES)
    for message in topics.read(EVENTS, {workflow_id}):
        record = topics.codec.decode(message.value())
        assert not isinstance(record, Unknown)
        place = message.partition() or 0, message.offset() or 0, message.timestamp()[1] * 1000
        folded.add(Delivered(record, *place))
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        for table in TABLES:
            copy_rows(connection, "kintsugi", table, list(folded.rows[table.name].values()))


def test_rows_of_a_replay_go_to_a_schema_of_their_own_until_it_is_dropped(
    topics: Topics, decided: Decided, own: Addresses, cli: Cli
) -> None:
    into = ("replay", *decided.span, "--into", "night", "--json")
    schema = "kintsugi_replay_night"

    filled = cli(*into)
    assert filled.code == 0, filled.err
    assert filled.json["into"] == {"schema": schema, "rows": 3, "refused": []}
    assert f"FROM {schema}." in filled.err, "it says how to look at the rows"
    again = cli(*into)
    assert (again.code, again.out) == (4, "") and "--replace" in again.err
    replaced = cli(*into, "--replace")
    assert replaced.out == filled.out
    session_id = replaced.err.split("debugging session ")[1].split()[0]

    with psycopg.connect(own.postgres) as connection:
        assert connection.execute("SELECT count(*) FROM kintsugi.workflows").fetchone() == (0,)
        applied(own, topics, decided.workflow_id)
        others = [table for table in TABLES if table.name != "workflow_debug_sessions"]
        assert differences(connection, "kintsugi", schema, others).rows == {}
    shown = cli("replay", "list", "--output", "json").json
    assert [s["status"] for s in shown["sessions"] if s["into"] == schema] == ["completed", "completed"]
    [found] = [s for s in shown["sessions"] if s["session"] == session_id]
    assert found["into"] == schema and found["ranges"][0]["start"] == decided.first
    [listed] = shown["schemas"]
    assert (listed["name"], listed["state"], listed["session"]) == (schema, "filled", session_id)
    assert listed["size_bytes"] > 0
    assert cli("replay", "drop", "kintsugi", "--reason", "a test").code == 3
    assert cli("replay", "drop", "night", "--reason", "a test").code == 0
    assert cli("replay", "list", "--output", "json").json["schemas"] == []


def test_a_range_that_is_none_is_refused_with_what_to_do(topics: Topics, cli: Cli) -> None:
    topics.put(*failing(str(uuid.uuid4())))
    message = topics.read(EVENTS)[-1]
    partition, end = message.partition() or 0, (message.offset() or 0) + 1

    def refused(*arguments: str) -> tuple[int, Any]:
        done = cli("replay", *arguments)
        assert done.out == ""
        return done.code, done.err

    for places, code, said in (
        ((f"{partition}:5", f"{partition}:2"), 2, "swap the two"),
        ((f"{partition}:{end - 1}", f"{partition}:{end + 1_000_000}"), 4, "beyond"),
        (("999:1", "999:2"), 3, "no partition 999"),
    ):
        found, told = refused("--from", places[0], "--to", places[1])
        assert found == code and said in told, told
    assert refused("--topic", "workflow.nothing")[0] == 3
    assert refused("--inject", "explode@0:1")[0] == 2
