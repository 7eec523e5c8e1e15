"""Generations of the tables on the real stack: filled beside the live ones, compared, promoted, rolled back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from consumers.crash import REBUILD_POINTS
from engine.policy import default_policy
from ops import rebuild
from ops.stack import Addresses
from ops.verify import verify
from schemas.records.events import WorkflowCompleted

from .cli import Cli
from .database import own_database
from .kit import Role, Topics, build, failing, wait_for
from .test_projector_role import healthy, query, status_of

WHY = ("--reason", "a test")


@pytest.fixture(scope="module")
def own(addresses: Addresses) -> Iterator[Addresses]:
    """The stack, with a database that these tests share: each leaves sound tables behind, and the next one builds on
    them."""
    with own_database(addresses.postgres) as url:
        yield replace(addresses, postgres=url)


@pytest.fixture(scope="module")
def environment(own: Addresses) -> dict[str, str]:
    return {**os.environ, **own.environment()}


@pytest.fixture
def cli(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(environment, monkeypatch, capfd)


@pytest.fixture(scope="module")
def live(
    addresses: Addresses, own: Addresses, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Role]:
    """A projector that has applied the whole log, and runs through all tests."""
    topics = Topics(addresses)
    workflow_id = str(uuid.uuid4())
    topics.put(*healthy(workflow_id))
    topics.registry.close()
    folder = tmp_path_factory.mktemp("projector")
    objects = {**environment, "KINTSUGI_OBJECTS": (folder / "objects").as_uri()}
    role = Role("projector", objects, folder / "projector.log", "--group", f"test-{workflow_id}")
    try:
        wait_for("the workflow", lambda: status_of(own, workflow_id) == "completed", 120)
        settled(role)
        yield role
        assert role.stop() == 0
    finally:
        role.kill()


def settled(live: Role) -> None:
    wait_for("no lag", lambda: live.metric("kintsugi_consumer_lag_records") == 0)


def completed(own: Addresses, ids: Sequence[str]) -> bool:
    found = query(own, "SELECT count(*) FROM workflows WHERE status = 'completed' AND id = ANY(%s::uuid[])", list(ids))
    return bool(found[0][0] == len(ids))


class Reader:
    """Reads without a pause; remembers any error, and any workflow that is gone."""

    def __init__(self, own: Addresses, ids: list[str]) -> None:
        self.wrong: list[str] = []
        self.reads = 0
        self._own, self._ids, self._end = own, ids, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        with psycopg.connect(self._own.postgres, autocommit=True) as connection:
            seen = 0
            while not self._end.is_set():
                try:
                    found = connection.execute(
                        "SELECT count(*), count(*) FILTER (WHERE status = 'completed' AND id = ANY(%s::uuid[]))"
                        " FROM kintsugi.workflows",
                        [self._ids],
                    ).fetchone()
                except psycopg.Error as error:
                    self.wrong.append(str(error))
                    return
                assert found is not None
                if found[1] != len(self._ids) or found[0] < seen:
                    self.wrong.append(f"{found} after {seen}")
                seen = found[0]
                self.reads += 1


class Writer:
    """Workflows that come all the time."""

    def __init__(self, topics: Topics) -> None:
        self.ids: list[str] = []
        self._topics, self._end = topics, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._end.wait(0.1):
            workflow_id = str(uuid.uuid4())
            self._topics.put(*healthy(workflow_id))
            self.ids.append(workflow_id)


def states(cli: Cli) -> list[str]:
    return [row["state"] for row in cli("projections", "list", "--output", "json").json]


def poisoned(topics: Topics) -> str:
    """A workflow whose error the live tables do not take while `refusing` holds."""
    workflow_id = str(uuid.uuid4())
    *before, error = failing(workflow_id)
    told = ("error_id", "step_id", "step_run_id", "error_code", "detected_by")
    poison = build(type(error), workflow_id, **{n: getattr(error, n) for n in told}, error_message="poison")
    topics.put(*before, poison, build(WorkflowCompleted, workflow_id))
    return workflow_id


def sound(own: Addresses) -> None:
    report = verify(own, default_policy(), lambda what, done, total: None, only="tables")
    assert report.sound, report


def test_a_generation_is_promoted_and_rolled_back_under_readers_and_writers(
    topics: Topics, own: Addresses, live: Role, cli: Cli
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(20)]
    for workflow_id in ids:
        topics.put(*healthy(workflow_id))
    wait_for("all", lambda: completed(own, ids))
    reader, writer = Reader(own, ids), Writer(topics)
    try:
        built = cli("projections", "rebuild", *WHY, "--processes", "2", "--output", "json")
        assert built.code == 0, built.err
        name = built.json["name"]
        assert built.json["rows"] > 0
        promoted = cli("projections", "promote", name, *WHY, "--output", "json")
        assert promoted.code == 0, promoted.err
        retired = promoted.json["retired"]
        wait_for("live writes", lambda: status_of(own, writer.ids[-1]) == "completed")
        back = cli("projections", "rollback", retired, *WHY, "--output", "json")
        assert back.code == 0, back.err
    finally:
        writer.stop()
        reader.stop()
    assert reader.wrong == []
    assert reader.reads > 100
    wait_for("all", lambda: completed(own, writer.ids))
    settled(live)
    sound(own)
    assert cli("projections", "drop", back.json["retired"], *WHY).code == 0
    found = {r["name"]: r["state"] for r in cli("projections", "list", "--output", "json").json}
    assert found[back.json["retired"]] == "dropped"
    assert not query(own, "SELECT 1 FROM pg_namespace WHERE nspname = %s", back.json["retired"])


def test_what_is_parked_stays_parked_and_what_is_let_go_is_followed(
    topics: Topics, own: Addresses, live: Role, cli: Cli
) -> None:
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE kintsugi.workflow_errors ADD CONSTRAINT no_poison CHECK (error_message <> 'poison') NOT VALID"
        )
        retried, discarded, left = (poisoned(topics) for _ in range(3))
        wait_for("three that wait", lambda: live.metric("kintsugi_parked_workflows") == 3)
        built = cli("projections", "rebuild", *WHY, "--output", "json")
        assert (built.code, built.json["differing"]) == (0, 0), built.err
        connection.execute("ALTER TABLE kintsugi.workflow_errors DROP CONSTRAINT no_poison")
    assert cli("dlq", "retry", retried, *WHY).code == 0
    assert cli("dlq", "discard", discarded, *WHY).code == 0
    late = build(WorkflowCompleted, left)
    topics.put(late, *healthy(str(uuid.uuid4())))
    wait_for("three that wait", lambda: query(own, "SELECT count(*) FROM parked_events WHERE workflow_id = %s"
        " AND generation = 'kintsugi'", left) == [(3,)])  # fmt: skip
    name = built.json["name"]
    promoted = cli("projections", "promote", name, *WHY, "--output", "json")
    assert promoted.code == 0, promoted.err
    sound(own)
    assert [status_of(own, i) for i in (retried, discarded, left)] == ["completed", "completed", "running"]
    waiting = cli("dlq", "list", "--output", "json").json
    assert [(row["workflow_id"], row["events"]) for row in waiting] == [(left, 3)]
    assert cli("dlq", "retry", left, *WHY).code == 0
    assert status_of(own, left) == "completed"
    sound(own)
    back = cli("projections", "rollback", promoted.json["retired"], *WHY, "--output", "json")
    assert back.code == 0, back.err
    assert [status_of(own, i) for i in (retried, discarded, left)] == ["completed"] * 3
    assert query(own, "SELECT count(*) FROM parked_events WHERE generation = 'kintsugi'") == [(0,)]
    sound(own)
    assert cli("projections", "drop", back.json["retired"], *WHY).code == 0
    assert query(own, "SELECT count(*) FROM parked_events") == [(0,)]


def test_killed_at_any_point_the_same_command_goes_on(
    topics: Topics,
    own: Addresses,
    live: Role,
    cli: Cli,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def under_way() -> dict[str, Any]:
        (row,) = cli("projections", "status", "--output", "json").json
        assert (row["running"], row["eta_s"]) == (False, None)
        return row

    def killed(point: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ops.cli", "projections", *arguments, *WHY],
            env={**environment, "KINTSUGI_CRASH_AT": point},
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == -signal.SIGKILL, (point, done.stderr.decode())

    phases = {"rebuild_begun": "rows", "rebuild_part": "rows", "rebuild_filled": "indexes"}
    for point in REBUILD_POINTS[:4]:
        killed(point, "rebuild")
        assert under_way()["phase"] == phases.get(point, "catching up")
    row = under_way()
    assert (row["events"], row["indexes"]) == (row["events_total"], row["indexes_total"])
    assert row["rows"] > 0
    topics.put(*healthy(str(uuid.uuid4())))
    settled(live)
    for point in REBUILD_POINTS[4:6]:
        killed(point, "rebuild")
    assert cli("projections", "promote", row["name"], *WHY).code == 4, "it is not ready"
    built = cli("projections", "rebuild", *WHY, "--output", "json")
    assert built.code == 0, built.err
    assert under_way()["phase"] == "ready"
    assert states(cli).count("ready") == 1, "one, not seven"
    later = str(uuid.uuid4())
    topics.put(*healthy(later))
    wait_for("what the generation lacks", lambda: status_of(own, later) == "completed")
    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "LAG_RECORDS_MAX", 5)
        late = cli("projections", "promote", row["name"], *WHY)
    assert (late.code, "is 6 records behind the live tables, 5 allowed" in late.err) == (4, True), late.err
    killed("rebuild_swapped", "promote", built.json["name"])
    assert cli("projections", "promote", built.json["name"], *WHY).code == 0
    sound(own)


def test_what_differs_is_told_by_row_and_not_promoted(own: Addresses, live: Role, cli: Cli) -> None:
    with psycopg.connect(own.postgres) as connection:
        changed = connection.execute(
            "UPDATE kintsugi.workflows SET status = 'failed' WHERE id = (SELECT id FROM kintsugi.workflows"
            " WHERE status = 'completed' LIMIT 1) RETURNING id::text"
        ).fetchone()
    assert changed is not None
    built = cli("projections", "rebuild", *WHY, "--output", "json")
    assert built.code == 6
    refused = cli("projections", "promote", built.json["name"], *WHY, "--output", "json")
    assert refused.code == 6
    assert [(d["table"], d["key"], d["column"]) for d in refused.json] == [("workflows", changed[0], "status")]
    assert "differ from the live tables" in refused.err
    done = cli("projections", "promote", built.json["name"], *WHY, "--accept-differences")
    assert done.code == 0, done.err
    sound(own)


def test_missing_grants_are_named(own: Addresses, live: Role, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    role, database = f"clerk_{uuid.uuid4().hex[:8]}", own.postgres.rsplit("/", 1)[1]
    owner, host = own.postgres.split("//")[1].split("@")
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE {} LOGIN",
            "GRANT USAGE ON SCHEMA kintsugi TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA kintsugi TO {}",
        ):
            connection.execute(statement.format(role).encode())
        try:
            monkeypatch.setenv("KINTSUGI_POSTGRES", f"postgresql://{role}@{host}")
            wanted = [
                f'GRANT CREATE ON DATABASE "{database}" TO "{role}"',
                f'GRANT USAGE, CREATE ON SCHEMA kintsugi TO "{role}"',
                f'GRANT "{owner}" TO "{role}"',
            ]
            refused = cli("projections", "rebuild", *WHY)
            assert (refused.code, [grant in refused.err for grant in wanted]) == (1, [True] * 3), refused.err
            found = {row["check"]: row for row in cli("doctor", "--output", "json").json}
            assert (found["rights to rebuild"]["state"], found["rights to rebuild"]["fix"]) == (
                "warn",
                "; ".join(wanted),
            )
            for grant in wanted:
                connection.execute(grant.encode())
            found = {row["check"]: row for row in cli("doctor", "--output", "json").json}
            assert found["rights to rebuild"]["state"] == "ok"
            built = cli("projections", "rebuild", *WHY, "--output", "json")
            assert built.code == 0, built.err
            promoted = cli("projections", "promote", built.json["name"], *WHY, "--output", "json")
            assert promoted.code == 0, promoted.err
            assert query(own, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'kintsugi'") == [(owner,)]
            sound(own)
            assert cli("projections", "drop", promoted.json["retired"], *WHY).code == 0
        finally:
            connection.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())


def test_what_stands_in_the_way_is_said(own: Addresses, live: Role, cli: Cli) -> None:
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [0x6B67656E])
        busy = cli("projections", "rebuild", *WHY)
        assert (busy.code, "another rebuild" in busy.err) == (4, True)
        connection.execute("SELECT pg_advisory_unlock_all()")
        connection.execute("ALTER TABLE kintsugi.workflow_errors ADD COLUMN mine integer")
        altered = cli("projections", "rebuild", *WHY)
        assert (altered.code, "workflow_errors.mine: integer" in altered.err) == (4, True)
        connection.execute("ALTER TABLE kintsugi.workflow_errors DROP COLUMN mine")
        connection.execute("CREATE VIEW kintsugi.open_ones AS SELECT id FROM kintsugi.workflows")
        seen = cli("projections", "promote", "kintsugi_g9999", *WHY)
        assert (seen.code, "open_ones" in seen.err) == (4, True)
        connection.execute("DROP VIEW kintsugi.open_ones")
    assert "loading" not in states(cli)
    assert cli("projections", "promote", "kintsugi_g9999", *WHY).code == 4
