"""Faults on the real stack that no single role's tests make; each shows that it really happened."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable

import psycopg
import pytest

from consumers.clock import BrokerClock
from consumers.kafka import producer_settings
from consumers.outbox import Outbox
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
#: Kafka's number for a request to produce.
PRODUCE = b"\x00\x00"
#: The answer to each so many-th request to produce is lost.
SWALLOW_EACH = 3
RECORDS = 60


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


class Between:
    """A TCP proxy to the broker. It writes itself into what the broker says of its address, and of some requests to
    produce it passes the request on, lets the broker answer, and ends the connection with the answer still in hand."""

    def __init__(self, servers: str) -> None:
        host, port = servers.split(":")
        self._target = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._said = host.encode() + struct.pack(">i", int(port))
        self._says = host.encode() + struct.pack(">i", self._server.getsockname()[1])
        self._requests = 0
        self.swallowed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(self._target)
                last = threading.Event()
                threading.Thread(target=self._up, args=(client, broker, last), daemon=True).start()
                threading.Thread(target=self._down, args=(broker, client, last), daemon=True).start()

    def _up(self, client: socket.socket, broker: socket.socket, last: threading.Event) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as requests, broker:
            while size := requests.read(4):
                request = requests.read(int.from_bytes(size, "big"))
                if request[:2] == PRODUCE:
                    self._requests += 1
                    if self._requests % SWALLOW_EACH == 0:
                        last.set()
                broker.sendall(size + request)
                if last.is_set():
                    return  # `broker` is closed by the other side of this proxy, when its answer has come

    def _down(self, broker: socket.socket, client: socket.socket, last: threading.Event) -> None:
        with contextlib.suppress(OSError), broker.dup() as answers, client:
            while data := answers.recv(1 << 20):
                if last.is_set():
                    self.swallowed += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data.replace(self._said, self._says))

    def close(self) -> None:
        self._server.close()


def test_what_was_written_without_an_answer_is_there_once(addresses: Addresses) -> None:
    """Row 3: the producer of every role asks again, and the broker knows that it has the record."""
    between = Between(addresses.kafka)
    place = Place(addresses.kafka)
    settings = producer_settings(between.address, "test", {})
    outbox = Outbox(settings, BrokerClock())
    try:
        for number in range(RECORDS):
            place.sent.append(b"%d" % number)
            outbox.send(place.topic, b"key", place.sent[-1], [], cause=0, partition=0)
            if number % 4 == 3:
                assert outbox.flush() == {}
        assert between.swallowed >= 3, "answers were lost"
        member = place.join()
        wait_for("all records", lambda: len(member.notes.seen) >= RECORDS)
        assert member.notes.values == place.sent, "each once, in order"
        member.stop()
    finally:
        outbox.close()
        between.close()
    place.admin.delete_topics([place.topic])[place.topic].result(20)
