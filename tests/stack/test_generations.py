"""Generations of the tables on the real stack: filled beside the live ones, compared, promoted, rolled back."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from consumers.crash import REBUILD_POINTS
from consumers.log_reader import LogReader
from engine.policy import default_policy
from ops import patience, promotion
from ops.doctor import rights
from ops.stack import Addresses
from ops.verify import verify
from schemas.errors import RetriableError
from schemas.records import Record
from schemas.records.events import CheckpointsExpired, WorkflowCompleted
from schemas.topics import EVENTS

from .cli import Cli
from .database import own_database
from .killing import killed_promotion, killed_rebuild, prepare, running_rebuild
from .kit import Role, Topics, build, failing, wait_for
from .test_projector_role import healthy, query, status_of

WHY = ("--reason", "a test")
JSON = ("--output", "json")
#: Advisory lock for which a rebuild waits in the middle of its filling, as `paused` makes it do.
PAUSE = 4_711


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
    """A projector that has applied the whole log, and runs through all tests. What they leave behind is proven at the
    end; that no row differs from those of a new generation proves it in between."""
    topics = Topics(addresses)
    topics.put(*healthy(str(uuid.uuid4())))
    topics.registry.close()
    folder = tmp_path_factory.mktemp("projector")
    objects = {**environment, "KINTSUGI_OBJECTS": (folder / "objects").as_uri()}
    role = Role("projector", objects, folder / "projector.log", "--group", f"test-{uuid.uuid4()}")
    prepare()
    try:
        applied(own, role)
        yield role
        applied(own, role)
        assert role.stop() == 0
        sound(own)
    finally:
        role.kill()


def applied(own: Addresses, live: Role) -> None:
    """Wait until the live tables stand where the log ends now. How long that takes depends on what others wrote."""
    with LogReader(own.kafka) as log:
        ends = {partition: end for partition, (low, end) in log.bounds(EVENTS).items() if low < end}

    def there() -> bool:
        assert live.process.poll() is None, f"it has ended:\n{live.log_file.read_text()[-3000:]}"
        stand = dict(query(own, "SELECT log_partition, next_offset FROM positions WHERE generation = 'kintsugi'"))
        return all(stand.get(partition, -1) >= end for partition, end in ends.items())

    wait_for(f"tables that stand at {ends}", there, 300)


def completed(own: Addresses, ids: list[str]) -> bool:
    found = query(own, "SELECT count(*) FROM workflows WHERE status = 'completed' AND id = ANY(%s::uuid[])", ids)
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
        while not self._end.wait(0.3):
            workflow_id = str(uuid.uuid4())
            self._topics.put(*healthy(workflow_id))
            self.ids.append(workflow_id)


def listed(cli: Cli) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in cli("projections", "list", *JSON).json}


def under_way(cli: Cli) -> dict[str, Any]:
    (row,) = cli("projections", "status", *JSON).json
    assert isinstance(row, dict)
    return row


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


@contextmanager
def paused(own: Addresses) -> Iterator[psycopg.Connection[Any]]:
    """Rebuilds wait when they have filled some partitions, until the connection lets go of PAUSE."""
    with psycopg.connect(own.postgres, autocommit=True, options="-c search_path=kintsugi") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [PAUSE])
        connection.execute(
            "CREATE FUNCTION paused() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF EXISTS (SELECT FROM kintsugi.generation_parts WHERE generation = NEW.generation"
            f"   AND log_partition <> NEW.log_partition) THEN PERFORM pg_advisory_xact_lock({PAUSE}); END IF;"
            " RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER paused BEFORE INSERT ON generation_parts FOR EACH ROW EXECUTE FUNCTION paused()"
        )
        try:
            yield connection
        finally:
            connection.execute("SELECT pg_advisory_unlock_all()")
            connection.execute("DROP FUNCTION paused() CASCADE")


@contextmanager
def away_once(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """What a promotion calls by this name finds that Postgres is away, the first time."""
    call, calls = getattr(promotion, name), [0]

    def away(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise RetriableError("Postgres: it is away")
        return call(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(patience, "_PAUSE_S_MIN", 0.01)
        patch.setattr(promotion, name, away)
        yield
    assert calls[0] > 1


def test_a_generation_is_promoted_and_rolled_back_under_readers_and_writers(
    topics: Topics, own: Addresses, live: Role, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(20)]
    topics.put(*(event for workflow_id in ids for event in healthy(workflow_id)))
    applied(own, live)
    reader, writer = Reader(own, ids), Writer(topics)
    try:
        with paused(own) as pausing:
            rebuild = running_rebuild(own, processes=2)
            waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
            wait_for("a rebuild that has filled some", lambda: query(own, waiting, PAUSE), 120)
            row = under_way(cli)
            assert (row["phase"], row["running"], row["state"]) == ("rows", True, "loading")
            assert row["events_per_second"] > 0
            assert row["rows_per_second"] > 0
            assert row["eta_s"] >= 0
            busy = cli("projections", "rebuild", *WHY)
            assert (busy.code, "another rebuild or promotion is at work: backend" in busy.err) == (4, True)
            assert cli("projections", "drop", row["name"], *WHY).code == 4
            pausing.execute("SELECT pg_advisory_unlock(%s)", [PAUSE])
            rebuild.join(120)
            assert rebuild.exitcode == 0
        name = row["name"]
        row = under_way(cli)
        assert (row["phase"], row["running"], row["differing"], row["eta_s"]) == ("ready", False, 0, None)
        promoted = cli("projections", "promote", name, *WHY, *JSON)
        assert promoted.code == 0, promoted.err
        assert listed(cli)[name]["live"] == listed(cli)[name]["tables"]
        retired = promoted.json["retired"]
        wait_for("live writes", lambda: status_of(own, writer.ids[-1]) == "completed")
        with away_once(monkeypatch, "_swap"):
            back = cli("projections", "rollback", retired, *WHY, *JSON)
        assert back.code == 0, back.err
        assert "900 s at most in all: Postgres: it is away" in back.err
    finally:
        writer.stop()
        reader.stop()
    assert reader.wrong == []
    assert reader.reads > 100
    applied(own, live)
    assert completed(own, [*ids, *writer.ids])
    dropped = back.json["retired"]
    assert [bool(listed(cli)[one]["live"]) for one in (name, retired, dropped)] == [False, True, False]
    with away_once(monkeypatch, "_forget"):
        assert cli("projections", "drop", dropped, *WHY).code == 0
    assert listed(cli)[dropped]["state"] == "dropped"
    assert not query(own, "SELECT 1 FROM pg_namespace WHERE nspname = %s", dropped)


def test_killed_at_any_point_the_same_command_goes_on(
    topics: Topics, own: Addresses, live: Role, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is parked stays parked, what is retried or discarded meanwhile is followed."""
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE kintsugi.workflow_errors ADD CONSTRAINT no_poison CHECK (error_message <> 'poison') NOT VALID"
        )
        retried, discarded, left = mine = [poisoned(topics) for _ in range(3)]
        applied(own, live)
        phases = {"rebuild_begun": "rows", "rebuild_part": "rows", "rebuild_filled": "indexes"}
        for point in REBUILD_POINTS[:4]:
            killed_rebuild(point, own)
            row = under_way(cli)
            assert (row["phase"], row["running"], row["eta_s"]) == (phases.get(point, "catching up"), False, None)
        assert (row["events"], row["indexes"]) == (row["events_total"], row["indexes_total"])
        assert row["rows"] > 0
        name = row["name"]
        topics.put(*healthy(str(uuid.uuid4())))
        applied(own, live)
        for point in REBUILD_POINTS[4:6]:
            killed_rebuild(point, own)
        assert cli("projections", "promote", name, *WHY).code == 4, "it is not ready"
        built = cli("projections", "rebuild", *WHY, *JSON)
        assert (built.code, built.json["name"], built.json["differing"]) == (0, name, 0), built.err
        assert under_way(cli)["phase"] == "ready"
        connection.execute("ALTER TABLE kintsugi.workflow_errors DROP CONSTRAINT no_poison")
    assert cli("dlq", "retry", retried, *WHY).code == 0
    assert cli("dlq", "discard", discarded, *WHY).code == 0
    later = [build(WorkflowCompleted, left), *healthy(str(uuid.uuid4()))]
    topics.put(*later)
    applied(own, live)
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "LAG_RECORDS_MAX", len(later) - 1)
        late = cli("projections", "promote", name, *WHY)
    assert (late.code, f"records behind the live tables, {len(later) - 1} allowed" in late.err) == (4, True), late.err
    killed_promotion("rebuild_swapped", own, name)
    with away_once(monkeypatch, "validate"):  # the answer to a COMMIT is lost: it is found by what it did
        promoted = cli("projections", "promote", name, *WHY, *JSON)
    assert promoted.code == 0, promoted.err
    retired = promoted.json["retired"]
    assert (listed(cli)[retired]["state"], bool(listed(cli)[name]["live"])) == ("retired", True)
    sound(own)
    assert [status_of(own, i) for i in mine] == ["completed", "completed", "running"]
    waiting = [row for row in cli("dlq", "list", *JSON).json if row["workflow_id"] in mine]
    assert [(row["workflow_id"], row["events"]) for row in waiting] == [(left, 3)]
    assert cli("dlq", "retry", left, *WHY).code == 0
    assert status_of(own, left) == "completed"
    back = cli("projections", "rollback", retired, *WHY, *JSON)
    assert back.code == 0, back.err
    assert [status_of(own, i) for i in mine] == ["completed"] * 3
    assert cli("projections", "drop", back.json["retired"], *WHY).code == 0
    assert query(own, "SELECT count(*) FROM parked_events WHERE workflow_id = ANY(%s::uuid[])", mine) == [(0,)]


def with_checkpoint(workflow_id: str) -> tuple[list[Record], Record]:
    """A workflow whose error names its checkpoint, and the record by which the checkpoint expires."""
    started, step, checkpoint, error, *rest = healthy(workflow_id)
    told = ("error_id", "step_id", "step_run_id", "error_code", "error_message", "detected_by")
    made = checkpoint.checkpoint_id  # type: ignore[attr-defined]
    named = build(type(error), workflow_id, **{n: getattr(error, n) for n in told}, checkpoint_id=made)
    expired = build(
        CheckpointsExpired, workflow_id, checkpoint_ids=(made,), event_ids=(checkpoint.event_id,), reason="age"
    )
    return [started, step, checkpoint, named, *rest], expired


def keys_between_live_tables(own: Addresses) -> list[tuple[Any, ...]]:
    return query(
        own,
        "SELECT c.conname, t.relnamespace::regnamespace::text, c.convalidated FROM pg_constraint c"
        " JOIN pg_class t ON t.oid = c.confrelid WHERE c.contype = 'f' AND c.connamespace = 'kintsugi'::regnamespace"
        " ORDER BY 1",
    )


def test_tables_that_somebody_altered_by_hand_are_rebuilt_alone(
    topics: Topics, own: Addresses, live: Role, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    records, expiries = zip(*(with_checkpoint(workflow_id) for workflow_id in ids), strict=True)
    topics.put(*(event for one in records for event in one), expiries[0])
    applied(own, live)
    keys = keys_between_live_tables(own)
    untouched = "SELECT 'kintsugi.workflows'::regclass::oid, 'kintsugi.workflow_checkpoints'::regclass::oid"
    others = query(own, untouched)
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        changed, gone = (error for (error,) in query(
            own, "SELECT id::text FROM workflow_errors WHERE workflow_id = ANY(%s::uuid[]) LIMIT 2", ids
        ))  # fmt: skip
        connection.execute("UPDATE kintsugi.workflow_errors SET error_message = 'mine' WHERE id = %s", [changed])
        connection.execute("DELETE FROM kintsugi.workflow_errors WHERE id = %s", [gone])
    tables = ("workflow_errors", "workflow_recovery_attempts")
    options = [option for table in tables for option in ("--table", table)]
    for point in ("rebuild_part", "rebuild_indexed"):
        killed_rebuild(point, own, tables)
    topics.put(expiries[1], *healthy(str(uuid.uuid4())))  # comes when the rows are there
    applied(own, live)
    killed_rebuild("rebuild_applied", own, tables)
    other = cli("projections", "rebuild", *WHY)
    assert (other.code, f"of {', '.join(tables)}" in other.err) == (4, True), other.err
    built = cli("projections", "rebuild", *options, *WHY, *JSON)
    assert built.code == 6, built.err
    name = built.json["name"]
    made = query(own, "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", name)
    assert [table for (table,) in made] == list(tables)
    refused = cli("projections", "promote", name, *WHY, *JSON)
    assert (refused.code, "differ from the live tables" in refused.err) == (6, True)
    told = {(d["table"], d["key"], d["column"]) for d in refused.json}
    assert told == {("workflow_errors", changed, "error_message"), ("workflow_errors", gone, "")}
    topics.put(expiries[2])
    killed_promotion("rebuild_swapped", own, name)
    with away_once(monkeypatch, "validate"):
        promoted = cli("projections", "promote", name, *WHY, "--accept-differences", *JSON)
    assert promoted.code == 0, promoted.err
    later = [str(uuid.uuid4()) for _ in range(2)]
    topics.put(*(event for workflow_id in later for event in healthy(workflow_id)))
    applied(own, live)
    sound(own)
    assert completed(own, [*ids, *later])
    assert query(own, untouched) == others
    assert keys_between_live_tables(own) == keys
    assert listed(cli)[name]["live"] == list(tables)
    back = cli("projections", "rollback", promoted.json["retired"], *WHY, *JSON)
    assert back.code == 0, back.err
    applied(own, live)
    altered = query(own, "SELECT id::text FROM workflow_errors WHERE error_message = 'mine'")
    assert altered == [(changed,)], "as they were left, and caught up"
    assert len(query(own, "SELECT 1 FROM workflow_errors WHERE workflow_id = ANY(%s::uuid[])", later)) == 2
    again = cli("projections", "rollback", back.json["retired"], *WHY, *JSON)
    assert again.code == 0, again.err
    assert keys_between_live_tables(own) == keys
    assert cli("projections", "drop", again.json["retired"], *WHY).code == 0


def test_missing_grants_are_named(own: Addresses, live: Role, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    role, database = f"clerk_{uuid.uuid4().hex[:8]}", own.postgres.rsplit("/", 1)[1]
    owner, host = own.postgres.split("//")[1].split("@")
    waiting = cli("projections", "rebuild", "--table", "resource_leases", *WHY, *JSON).json["name"]
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
            for command in (("rebuild", "--table", "resource_leases"), ("promote", waiting)):
                refused = cli("projections", *command, *WHY)
                assert (refused.code, [grant in refused.err for grant in wanted]) == (1, [True] * 3), refused.err
            refused = cli("projections", "drop", waiting, *WHY)
            assert (refused.code, [grant in refused.err for grant in wanted]) == (1, [False, False, True]), refused.err
            found = {row["check"]: row for row in cli("doctor", *JSON).json}
            assert (found["rights to rebuild"]["state"], found["rights to rebuild"]["fix"]) == (
                "warn",
                "; ".join(wanted),
            )
            for grant in wanted:
                connection.execute(grant.encode())
            (right,) = rights(f"postgresql://{role}@{host}")
            assert right.state == "ok"
            assert cli("projections", "drop", waiting, *WHY).code == 0
            built = cli("projections", "rebuild", "--table", "workflow_errors", *WHY, *JSON)
            assert built.code == 0, built.err
            promoted = cli("projections", "promote", built.json["name"], *WHY, *JSON)
            assert promoted.code == 0, promoted.err
            assert query(own, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'kintsugi'") == [(owner,)]
            assert cli("projections", "drop", promoted.json["retired"], *WHY).code == 0
        finally:
            connection.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())


def test_what_stands_in_the_way_is_said(own: Addresses, live: Role, cli: Cli) -> None:
    with psycopg.connect(own.postgres, autocommit=True) as connection:
        connection.execute("ALTER TABLE kintsugi.workflow_errors ADD COLUMN mine integer")
        altered = cli("projections", "rebuild", *WHY)
        assert (altered.code, "workflow_errors.mine: integer" in altered.err) == (4, True)
        connection.execute("ALTER TABLE kintsugi.workflow_errors DROP COLUMN mine")
        assert not [row for row in listed(cli).values() if row["state"] == "loading"]
        connection.execute(
            "CREATE SCHEMA mine; CREATE VIEW mine.seen AS SELECT id FROM kintsugi.workflows;"
            " CREATE MATERIALIZED VIEW mine.stored AS SELECT id FROM kintsugi.workflows;"
            " CREATE FUNCTION mine.many() RETURNS BIGINT BEGIN ATOMIC SELECT count(*) FROM kintsugi.workflows; END;"
            " CREATE TABLE mine.notes (workflow UUID CONSTRAINT noted REFERENCES kintsugi.workflows (id))"
        )
        built = cli("projections", "rebuild", "--table", "workflows", *WHY, *JSON)
        assert built.code == 0, "who looks at live tables does not keep anybody from building others"
        assert "mine.seen" in built.err, "but hears of it before"
        name = built.json["name"]
        looked_at = cli("projections", "promote", name, *WHY)
        assert looked_at.code == 4
        for told in (
            "view mine.seen",
            "materialized view mine.stored",
            "foreign key noted of mine.notes",
            "SELECT pg_get_functiondef('mine.many()'::regprocedure); DROP FUNCTION mine.many();",
            "SELECT pg_get_viewdef('mine.seen'::regclass); DROP VIEW mine.seen;",
            "DROP MATERIALIZED VIEW mine.stored;",
        ):
            assert told in looked_at.err, looked_at.err
        connection.execute("DROP SCHEMA mine CASCADE")
        connection.execute("CREATE VIEW kintsugi.others AS SELECT id FROM kintsugi.workflow_errors")
        assert cli("projections", "promote", name, *WHY).code == 0, "that view is of a table that stays"
        connection.execute("DROP VIEW kintsugi.others")
    assert cli("projections", "promote", "kintsugi_g9999", *WHY).code == 4
    unknown = cli("projections", "rebuild", "--table", "workflow", *WHY)
    assert (unknown.code, "no table workflow; there are" in unknown.err) == (2, True)
