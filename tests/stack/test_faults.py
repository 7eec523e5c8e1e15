"""Faults on the real stack that no single role's tests make; each shows that it really happened."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import psycopg
import pytest

from ops.stack import Addresses
from projections.store import Store
from schemas.errors import RetriableError
from schemas.records.events import RecoveryDecided

from .kit import Role, Topics, failing, stand_at_end, wait_for
from .test_loop import PARTITIONS, Member, Place

Start = Callable[..., Role]
#: Members of the group that come and go, and how soon one after the other.
ROUNDS = 12
ROUND_S = 0.3


def test_two_that_decide_on_one_error_decide_it_once(topics: Topics, start: Start, addresses: Addresses) -> None:
    """Row 9: both own every partition, as owner and zombie do, and neither knows of the other."""
    other = f"other-{uuid.uuid4()}"
    stand_at_end(addresses.kafka, other)
    for role in (start(), start("recovery", "--group", other)):
        role.wait_log("partitions assigned")
    ids = {str(uuid.uuid4()) for _ in range(8)}
    for workflow_id in ids:
        topics.put(*failing(workflow_id))

    def decided() -> list[RecoveryDecided]:
        return [d for d in topics.events(RecoveryDecided, ids) if d.attempt_number == 1]

    wait_for("a decision of each of both", lambda: len(decided()) >= 2 * len(ids))
    wait_for("commands", lambda: {c.workflow_id for c in topics.commands(ids)} == ids)
    assert len({d.event_id for d in decided()}) == len({d.command_id for d in decided()}) == len(ids)
    commands = [c for c in topics.commands(ids) if c.attempt_number == 1]
    assert {c.command_id for c in commands} == {d.command_id for d in decided()}


@pytest.mark.parametrize("protocol", [{}, {"group.protocol": "consumer"}], ids=["cooperative", "kip-848"])
def test_while_members_come_and_go_all_the_time_nothing_is_lost(addresses: Addresses, protocol: dict[str, str]) -> None:
    """Row 7: then it is calm, and all comes to an end."""
    place = Place(addresses.kafka)
    place.extra = protocol
    members: list[Member] = []
    try:
        for number in range(ROUNDS):
            members.append(place.join())
            place.send(20)
            time.sleep(ROUND_S)
            if number >= 2:
                members[number - 2].stop()
        place.send(20)
        wait_for("all records", lambda: {v for m in members for v in m.notes.values} == set(place.sent))
        assert all(member.error is None for member in members)
        taken = sum(len(member.notes.ranges) for member in members)
        assert taken >= 2 * PARTITIONS, "partitions moved while records came"
    finally:
        for member in members:
            member.loop.stop()
        for member in members:
            member.thread.join(20)
    assert place.committed() == len(place.sent)
    place.admin.delete_topics([place.topic])[place.topic].result(20)


def test_without_a_free_connection_the_tables_wait(database: str) -> None:
    """Row 21, SQLSTATE 53300."""
    name = f"few_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 0".encode())
        store = Store(database.replace("kintsugi@", f"{name}@"))
        try:
            owner.execute(f"GRANT kintsugi TO {name}".encode())
            with pytest.raises(RetriableError, match="too many connections"):
                store.claim(0)
            owner.execute(f"ALTER ROLE {name} CONNECTION LIMIT 1".encode())
            assert store.claim(0) is None
            store.apply(0, [], [], start=0, end=5)
            assert store.claim(0) == 5
        finally:
            store.close()
            owner.execute(f"DROP ROLE {name}".encode())


def test_a_database_that_may_only_be_read_for_a_while_loses_nothing(database: str) -> None:
    """Row 21, SQLSTATE 25006, as after a failover to a replica."""
    store = Store(database)
    store.claim(0)
    with psycopg.connect(database, autocommit=True) as owner:
        found = owner.execute("SELECT current_database()").fetchone()
        assert found is not None
        where = f'ALTER DATABASE "{found[0]}" '
        owner.execute((where + "SET default_transaction_read_only = on").encode())
        store.close()  # the next connection is to the replica
        with pytest.raises(RetriableError, match="read-only"):
            store.apply(0, [], [], start=0, end=5)
        owner.execute("SET default_transaction_read_only = off")
        owner.execute((where + "RESET default_transaction_read_only").encode())
    store.close()
    assert store.claim(0) is None, "nothing was written"
    store.apply(0, [], [], start=0, end=5)
    assert store.claim(0) == 5
    store.close()
