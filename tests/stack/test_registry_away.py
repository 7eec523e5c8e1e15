"""A registry that goes away after the start: what was looked up is read and written without it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from ops.stack import Addresses
from schemas.catalog import shipped
from schemas.codec import Codec
from schemas.errors import RetriableError
from schemas.records.events import TimerFired
from schemas.registry import Registry


@pytest.fixture
def registry(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Every shipped schema looked up, as a role does at its start; then no request is answered any more."""

    def away(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    with Registry(addresses.registry) as found:
        for schema in shipped().values():
            found.id_of(schema)
        for request in ("lookup_schema", "get_schema"):
            monkeypatch.setattr(found._client, request, away)
        yield found


def test_a_schema_looked_up_at_the_start_is_read_without_the_registry(registry: Registry) -> None:
    fact = TimerFired(
        event_id=str(uuid.uuid4()),
        workflow_id=str(uuid.uuid4()),
        workflow_type="development",
        occurred_at=1,
        producer="test",
        kind="backoff",
        subject_id="s",
        step_id="build",
        due_at=1,
    )
    with Registry(registry.url) as before:
        data = Codec(before).encode(fact)
    assert Codec(registry).decode(data) == fact


def test_a_schema_never_seen_waits_for_the_registry(registry: Registry) -> None:
    unseen = (0).to_bytes(1, "big") + (2_000_000_000).to_bytes(4, "big")
    with pytest.raises(RetriableError, match="does not answer"):
        Codec(registry).decode(unseen)
