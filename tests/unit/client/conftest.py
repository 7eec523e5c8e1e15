"""Fixtures of the client's tests without Kafka."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kintsugi_client import Client

from .kit import KeptOutbox, Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A client that keeps what it writes."""
    monkeypatch.setattr("kintsugi_client.client.Outbox", KeptOutbox)
    client = Client.connect("test", kafka="127.0.0.1:1", registry=None)
    assert isinstance(client.outbox, KeptOutbox)
    yield Service(client, client.outbox)
    client.close(5.0)
