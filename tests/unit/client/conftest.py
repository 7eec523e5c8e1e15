"""Fixtures of the client's tests without Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kintsugi_client import Client

from .kit import KeptOutbox, Service

Connect = Callable[..., Service]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Makes clients that keep what they write; without object storage and keys, but for what is given."""
    monkeypatch.setattr("kintsugi_client.client.Outbox", KeptOutbox)
    made: list[Client] = []

    def connect(**options: Any) -> Service:
        options = {"objects": "", "keys": "", **options}
        client = Client.connect("test", kafka="127.0.0.1:1", registry=None, **options)
        made.append(client)
        assert isinstance(client.outbox, KeptOutbox)
        return Service(client, client.outbox)

    yield connect
    for client in made:
        client.close(5.0)


@pytest.fixture
def service(connect: Connect) -> Service:
    """A client that keeps what it writes."""
    return connect()
