"""Faults of the network between our processes and the servers: cut one way, slow, narrow."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from consumers.clock import BrokerClock
from consumers.kafka import producer_settings
from consumers.outbox import Outbox
from ops.stack import Addresses
from projections import connection as connecting
from projections.store import Store
from schemas.errors import RetriableError

from .kit import wait_for
from .test_loop import PARTITIONS, Member, Notes, Place

RECORDS = 40
#: Each way; a request and its answer take twice as long.
DELAY_S = 0.1
#: 512 kbit/s: the records below take more than a second.
BYTES_PER_S = 64_000
RECORD_BYTES = 2_000


class Line:
    """A TCP proxy that passes everything, late or slowly, or holds what goes one way, as a network does whose packets
    are lost: nothing ends, and when it is mended all of it arrives. It writes itself into what a broker says of its
    address."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._said, self._says = (host.encode() + struct.pack(">i", p) for p in (port, self.port))
        self.delay_s = 0.0
        self.bytes_per_s = 0
        self.held = 0
        self._passes = {"requests": threading.Event(), "answers": threading.Event()}
        self.mend()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, way: str) -> None:
        """Hold "requests" or "answers"."""
        self._passes[way].clear()

    def mend(self) -> None:
        """Let everything pass."""
        for passes in self._passes.values():
            passes.set()

    def close(self) -> None:
        """Take no more connections; those that are there end with the ends that use them."""
        self.mend()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # who waits in `accept` would not hear of `close`
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                for way, source, target in (("requests", client, server), ("answers", server, client)):
                    threading.Thread(target=self._pass, args=(way, source, target), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.bytes_per_s:
                    time.sleep(len(data) / self.bytes_per_s)
                if not self._passes[way].is_set():
                    self.held += len(data)
                    self._passes[way].wait()
                target.sendall(data.replace(self._said, self._says))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()  # the other is closed by who reads from it


@pytest.fixture
def place(addresses: Addresses) -> Iterator[Place]:
    made = Place(addresses.kafka)
    yield made
    for member in made.members:
        member.stop()
    made.admin.delete_topics([made.topic])[made.topic].result(20)


@pytest.fixture
def line(addresses: Addresses) -> Iterator[Line]:
    host, port = addresses.kafka.split(":")
    made = Line(host, int(port))
    yield made
    made.close()


def join_by(line: Line, place: Place) -> Member:
    """A member that reaches the broker through the line."""
    member = Member(line.address, place.topic, place.group, place.extra, Notes())
    place.members.append(member)
    return member


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_a_member_that_is_cut_off_one_way_is_replaced_and_comes_back(place: Place, line: Line, way: str) -> None:
    """Row 11: either end goes on believing in its connection."""
    cut_off = join_by(line, place)
    wait_for("all partitions", lambda: len(cut_off.notes.mine) == PARTITIONS)
    place.send(RECORDS)
    wait_for("all records", lambda: set(cut_off.notes.values) == set(place.sent))
    line.cut(way)
    successor = place.join()
    place.send(RECORDS)
    wait_for("all partitions", lambda: len(successor.notes.mine) == PARTITIONS)
    wait_for("all records", lambda: {*cut_off.notes.values, *successor.notes.values} == set(place.sent))
    assert line.held, "something was on its way"
    line.mend()
    wait_for("both", lambda: cut_off.notes.mine and successor.notes.mine)
    place.send(RECORDS)
    wait_for("all records", lambda: {*cut_off.notes.values, *successor.notes.values} == set(place.sent))
    assert cut_off.error is None
    assert successor.error is None


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_postgres_that_is_cut_off_one_way_is_not_waited_for_without_end(
    database: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Row 11: neither does `statement_timeout` help, nor what TCP notices."""
    monkeypatch.setattr(connecting, "ANSWER_TIMEOUT_S", 1.0)
    host, _, port = database.split("@")[1].split("/")[0].partition(":")
    line = Line(host, int(port))
    store = Store(database.replace(f":{port}/", f":{line.port}/"))
    try:
        store.claim(0)
        store.apply(0, [], [], start=0, end=5)
        line.cut(way)
        with pytest.raises(RetriableError, match=r"no answer within 1 s"):
            store.apply(0, [], [], start=5, end=9)
        assert line.held
        line.mend()
        assert store.claim(0) == 5
        store.apply(0, [], [], start=5, end=9)
        assert store.claim(0) == 9
    finally:
        store.close()
        line.close()


def test_over_a_slow_and_narrow_line_all_arrives_once_and_in_order(place: Place, line: Line) -> None:
    """Row 12: nothing is given up, and nobody is thought dead."""
    line.delay_s, line.bytes_per_s = DELAY_S, BYTES_PER_S
    outbox = Outbox(producer_settings(line.address, "test", {}), BrokerClock())
    began_s = time.monotonic()
    try:
        for number in range(RECORDS):
            place.sent.append(b"%d:" % number + bytes(RECORD_BYTES))
            outbox.send(place.topic, b"key", place.sent[-1], [], cause=0, partition=0)
        assert outbox.flush() == {}
        member = join_by(line, place)
        wait_for("all records", lambda: set(member.notes.values) == set(place.sent))
    finally:
        outbox.close()
    assert time.monotonic() - began_s > 2 * RECORDS * RECORD_BYTES / BYTES_PER_S, "the line was narrow, both ways"
    assert sorted({(offset, value) for _, offset, value in member.notes.seen}) == list(enumerate(place.sent))
